"""Files from the Hugging Face hub, and what to do on a machine that cannot reach it. Imports no torch."""

from pathlib import Path

from deadiff.errors import CheckpointError

ADAPTER_FOLDER = "deadiff"  # inside a model folder
OFFICIAL_REPO, OFFICIAL_FILE = "qth/DEADiff", "deadiff_v1.ckpt"  # as the authors published it
OFFICIAL_SIZE = "7.43 GB"
TOKENIZER_REPO = "stable-diffusion-v1-5/stable-diffusion-v1-5"
TOKENIZER_FILES = [
    "tokenizer/*",
    "vocab.json",
    "merges.txt",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
]


def fetch(repo_id: str, patterns: list[str], revision: str | None = None, purpose: str = "the model") -> Path:
    """Download (or find in the cache) the files of a hub repository that match; returns the local folder.

    Raises CheckpointError, one line that says what to download from where and how to point to it, whatever went wrong.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, RepositoryNotFoundError

    files = ", ".join(patterns)
    try:
        return Path(snapshot_download(repo_id, revision=revision, allow_patterns=patterns))
    except HFValidationError as error:
        raise CheckpointError(f"'{repo_id}' is neither a folder here nor a hub id like owner/name") from error
    except RepositoryNotFoundError as error:
        raise CheckpointError(
            f"no repository '{repo_id}' on the hub, or it is private: check the name or run `hf auth login`"
        ) from error
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise CheckpointError(
            f"cannot download {purpose} from the Hugging Face hub ({type(error).__name__}): on a machine with network run "
            f"`hf download {repo_id} --local-dir DIR` (files: {files}), copy DIR here and give its path instead of '{repo_id}'"
        ) from error


def fetch_official() -> Path:
    """The published checkpoint, from the hub or its cache. Raises CheckpointError that says how to bring it by hand."""
    try:
        return fetch(OFFICIAL_REPO, [OFFICIAL_FILE]) / OFFICIAL_FILE
    except CheckpointError as error:
        raise CheckpointError(
            f"the published weights cannot be downloaded: on a machine with network get {OFFICIAL_FILE} ({OFFICIAL_SIZE}) from "
            f"the hub repository {OFFICIAL_REPO}, run `deadiff convert {OFFICIAL_FILE} OUT` here and load OUT"
        ) from error


def adapter_folder(source: str | Path, revision: str | None = None) -> Path:
    """The folder that holds an adapter's config.json: `source` itself, its deadiff/ folder, or a hub repository's."""
    path = Path(source).expanduser()
    if not path.exists():
        looks_local = isinstance(source, Path) or str(source).startswith((".", "/", "~")) or str(source).count("/") != 1
        if looks_local:
            expected = "a folder with config.json and model.safetensors, or a hub id owner/name"
            raise CheckpointError(f"no adapter at '{source}': expected {expected}")
        patterns = [f"{prefix}{name}" for prefix in ("", f"{ADAPTER_FOLDER}/") for name in ("config.json", "model.safetensors")]
        path = fetch(str(source), patterns, revision, "the adapter")
    if not path.is_dir():
        raise CheckpointError(
            f"'{source}' is a file: expected an adapter's folder (`deadiff convert` makes one from a checkpoint)"
        )
    for folder in (path / ADAPTER_FOLDER, path):
        if (folder / "config.json").is_file():
            return folder
    raise CheckpointError(f"no adapter in '{path}': expected config.json there or in its {ADAPTER_FOLDER}/ folder")
