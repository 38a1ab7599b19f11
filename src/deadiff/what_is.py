"""What a file or folder is: a drawn picture, a model, an adapter, a checkpoint, a LoRA. Whose weights, under which terms."""

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from deadiff.errors import CheckpointError, ConfigError, DEADiffError
from deadiff.hub import ADAPTER_FOLDER
from deadiff.recipe import read_recipe
from deadiff.references import SUFFIXES, one_line, read_picture

OPENRAIL = "CreativeML OpenRAIL-M, with use restrictions"
SIZES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
MAX_HEADER = 100 * 2**20  # bytes; the format's own limit
# The first match of a key's beginning tells what a .safetensors file is.
_KINDS = (
    (("extractors.",), "the weights of a DEADiff adapter"),
    (("style_blip.", "content_blip."), "the released DEADiff checkpoint"),
    (("model.diffusion_model.", "first_stage_model."), "a Stable Diffusion base in one file"),
    (("lora_", "unet.down_blocks", "text_encoder.", "transformer."), "a LoRA"),
    (("controlnet_",), "a ControlNet"),
    (("down_blocks.", "conv_in."), "a U-Net or ControlNet"),
    (("encoder.", "decoder."), "an autoencoder"),
    (("text_model.", "embeddings."), "a text encoder"),
)


def what_is(path: str | Path) -> dict[str, Any]:
    """A description as plain data; "what" says it in words. Raises DEADiffError, one line, for what is none of ours."""
    place = Path(path).expanduser()
    if str(path) == "icons" and not place.exists():  # the embedded model by its name, as everywhere
        from deadiff.embedded import ICONS

        place = ICONS
    if not place.exists():
        raise ConfigError(f"there is no '{path}': check the path")
    if place.is_dir():
        return _folder(place)
    if not place.is_file():
        raise ConfigError(f"'{path}' is a device or a pipe: expected a file or a folder")
    if place.stat().st_size == 0:
        raise ConfigError(f"'{path}' is empty (0 bytes): the download or copy may have failed")
    if place.suffix == ".safetensors":
        return _safetensors(place)
    if place.suffix in (".ckpt", ".pt", ".pth", ".bin"):
        return _checkpoint(place)
    return _picture(place)


def header(path: Path) -> dict[str, Any]:
    """The header of a .safetensors file, key -> {dtype, shape}, without reading a weight. Raises CheckpointError."""
    try:
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= min(MAX_HEADER, path.stat().st_size - 8):
                raise ValueError("its header's length is impossible")
            entries = json.loads(file.read(length))
        entries.pop("__metadata__", None)
        end = max((entry["data_offsets"][1] for entry in entries.values()), default=0)
        if path.stat().st_size != 8 + length + end:
            raise ValueError(f"it has {path.stat().st_size:,} bytes where its header says {8 + length + end:,}")
        return entries
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"'{path}' is not a whole safetensors file: {one_line(error)}; download it again") from error


def _counts(entries: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Parameters, bytes and dtypes of header entries."""
    parameters, size, dtypes = 0, 0, set()
    for entry in entries:
        count = 1
        for side in entry["shape"]:
            count *= side
        parameters += count
        size += count * SIZES.get(entry["dtype"], 1)
        dtypes.add(entry["dtype"])
    return {"parameters": parameters, "megabytes": round(size / 1e6, 1), "numbers": ", ".join(sorted(dtypes))}


def _safetensors(path: Path) -> dict[str, Any]:
    entries = header(path)
    kind = next((what for starts, what in _KINDS if any(key.startswith(starts) for key in entries)), "weights of an unknown kind")
    return {"what": kind, "path": str(path), "weights": len(entries), **_counts(entries.values())}


def _folder(path: Path) -> dict[str, Any]:
    adapter = path / ADAPTER_FOLDER if (path / ADAPTER_FOLDER / "config.json").is_file() else path
    is_pipeline = (path / "model_index.json").is_file() or (path / "unet" / "config.json").is_file()
    has_adapter = (adapter / "config.json").is_file() and "routes" in _json(adapter / "config.json")
    if not is_pipeline and not has_adapter:
        raise ConfigError(f"'{path}' is a folder without a model: expected model_index.json, or an adapter's config.json")
    found: dict[str, Any] = {"path": str(path)}
    if is_pipeline:
        found["what"] = "a DEADiff model: base and adapter" if has_adapter else "a diffusers base model without DEADiff weights"
        index = _json(path / "model_index.json") if (path / "model_index.json").is_file() else {}
        found["pipeline"] = index.get("_class_name", "StableDiffusionPipeline, embedded in eight bits")
        found["parts"] = {part.name: _part(part) for part in sorted(path.iterdir()) if part.is_dir() and _weights(part)}
        found["safety checker"] = bool((index.get("safety_checker") or [None])[0])
    else:
        found["what"] = "a DEADiff adapter, to be used with a base"
    if has_adapter:
        found |= _adapter(adapter)
    return found


def _adapter(folder: Path) -> dict[str, Any]:
    from deadiff.config import read_config
    from deadiff.defaults import Defaults

    config = read_config(folder)
    roles: dict[str, int] = {}
    for role in config.route_table.values():
        roles[role] = roles.get(role, 0) + 1
    return {
        "base": config.base,
        "routes": f"{len(config.route_table)} layers: " + ", ".join(f"{count} {role}" for role, count in roles.items()),
        "tokens": f"{config.num_tokens} of each role, {config.token_dim} wide",
        "references": f"{config.preprocess.size} pixels, {config.preprocess.resize}",
        "look": _look(config.look),
        "adapter": _part(folder),
        "defaults": asdict(Defaults.read(folder, config.base)),
        "provenance": dict(config.provenance),
    }


def _look(look: Any) -> str:
    """A LookConfig in words: what a drawing takes from the reference's own latents; empty where it takes nothing."""
    said = [f"self-attention of {', '.join(look.shared)} (weight {look.weight:g})"] if look.shared else []
    said += [f"tone {look.tone:g}"] if look.tone else []
    return ", ".join(said)


def _weights(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def _part(folder: Path) -> dict[str, Any]:
    files = _weights(folder)
    if not files:
        raise CheckpointError(f"'{folder}' holds no .safetensors file: is the folder complete?")
    return _counts(entry for file in files for entry in header(file).values())


def _json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot read '{path}': {one_line(error)}") from error
    return data if isinstance(data, dict) else {}


def _checkpoint(path: Path) -> dict[str, Any]:
    from deadiff.checkpoint import open_checkpoint
    from deadiff.official_plan import PROVENANCE

    state = open_checkpoint(path)
    found = {"path": str(path), "weights": len(state), "parameters": sum(tensor.numel() for tensor in state.values())}
    if any(key.startswith("style_blip.") for key in state):
        use = f"`deadiff convert {path.name} OUT` makes a model folder of it"
        return {"what": "the released DEADiff checkpoint", **found, "provenance": PROVENANCE, "use": use}
    if any(key.startswith("model.diffusion_model.") for key in state):
        return {"what": "a plain Stable Diffusion checkpoint: no DEADiff weights", **found, "licence": f"usually {OPENRAIL}"}
    return {"what": "weights of an unknown kind", **found}


def _picture(path: Path) -> dict[str, Any]:
    if path.suffix.lower() == ".png":
        try:
            recipe = read_recipe(path)
            return {"what": "a picture drawn by deadiff", "path": str(path), "recipe": asdict(recipe)}
        except DEADiffError as error:
            if "carries no recipe" not in str(error):
                raise
    if path.suffix.lower() not in SUFFIXES:
        raise ConfigError(f"'{path}' is nothing that deadiff knows: expected .ckpt, .safetensors, a model folder or a picture")
    picture, sha256 = read_picture(path, what="picture")
    return {
        "what": "a picture without a recipe",
        "path": str(path),
        "pixels": f"{picture.width}x{picture.height}",
        "sha256": sha256,
    }
