"""The importer: what it accepts, what it refuses and with which words, what it writes, what it costs."""

import importlib.machinery
import json
import os
import pickle
import re
import resource
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from recorded import reduced_state, write_vocabulary
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel

from deadiff import official
from deadiff.adapter import DEADiffAdapter
from deadiff.checkpoint import open_checkpoint
from deadiff.clip_bpe import read_merges, tokenizer_from_merges
from deadiff.errors import CheckpointError, ConfigError
from deadiff.official import convert, find_tokenizer
from deadiff.official_keys import place
from deadiff.official_plan import Heads, make_plan

HEADS = Heads(unet=4, text=4, vision=4, qformer=4)


@pytest.fixture(scope="module")
def state():
    """The reduced checkpoint with equal vision towers, as the published one has them."""
    state = reduced_state()
    for key in [k for k in state if k.startswith("style_blip.visual_encoder.")]:
        state[key.replace("style_blip", "content_blip")] = state[key]
    return state


@pytest.fixture(scope="module")
def checkpoint(state, tmp_path_factory):
    path = tmp_path_factory.mktemp("official") / "deadiff_v1.ckpt"
    torch.save({"state_dict": state, "global_step": 7}, path)
    return path


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
    return write_vocabulary(tmp_path_factory.mktemp("vocabulary") / "bpe_simple_vocab_16e6.txt.gz")


# ---- what comes out ----


def test_equal_vision_towers_are_held_once(checkpoint, vocabulary, tmp_path):
    report = convert(checkpoint, tmp_path / "out", "fp32", tokenizer=vocabulary, heads=HEADS)
    assert report.ignored["second copy of the frozen vision tower, equal to the first: held once"] == 41
    assert not report.warnings
    weights = load_file(tmp_path / "out/deadiff/model.safetensors")
    assert not any(key.startswith("content_vision") for key in weights) and any(key.startswith("vision") for key in weights)
    assert not DEADiffAdapter.from_pretrained(tmp_path / "out").config.two_eyes


@pytest.mark.parametrize(("name", "dtype"), [("fp16", torch.float16), ("bf16", torch.bfloat16), ("fp32", torch.float32)])
def test_the_folder_is_a_diffusers_pipeline_in_the_asked_precision(checkpoint, state, vocabulary, tmp_path, name, dtype):
    report = convert(checkpoint, tmp_path / "out", name, tokenizer=vocabulary, heads=HEADS)
    pipe = StableDiffusionPipeline.from_pretrained(tmp_path / "out", dtype=dtype, local_files_only=True)
    adapter = DEADiffAdapter.from_pretrained(tmp_path / "out")
    assert {pipe.unet.dtype, pipe.vae.dtype, pipe.text_encoder.dtype, adapter.dtype} == {dtype}
    files = list((tmp_path / "out").rglob("*.safetensors"))
    assert len(files) == 4 and {t.dtype for f in files for t in load_file(f).values()} == {dtype}
    assert report.bytes_written == sum(t.nbytes for f in files for t in load_file(f).values())
    official_key = "model.diffusion_model.output_blocks.5.1.transformer_blocks.0.attn2.i_to_k.weight"
    assert torch.equal(adapter.kv("up_blocks.1.attentions.2").to_k.weight, state[official_key].to(dtype))
    adapter.inject(pipe.unet)


def test_whose_weights_these_are_and_under_which_terms_is_in_the_config(checkpoint, vocabulary, tmp_path):
    convert(checkpoint, tmp_path / "out", tokenizer=vocabulary, heads=HEADS)
    provenance = json.loads((tmp_path / "out/deadiff/config.json").read_text())["provenance"]
    assert (
        "OpenRAIL-M" in provenance["licence"] and "research use" in provenance["terms"] and "qth/DEADiff" in provenance["model"]
    )
    assert re.fullmatch(r"[0-9a-f]{64}", provenance["sha256 of the checkpoint"])


def test_text_weights_carry_the_names_that_sd_15_files_have(checkpoint, vocabulary, tmp_path):
    convert(checkpoint, tmp_path / "out", tokenizer=vocabulary, heads=HEADS)
    assert all(key.startswith("text_model.") for key in load_file(tmp_path / "out/text_encoder/model.safetensors"))
    _, info = CLIPTextModel.from_pretrained(tmp_path / "out/text_encoder", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]


def test_progress_reaches_the_end(checkpoint, vocabulary, tmp_path):
    seen: list[tuple[int, int]] = []
    convert(checkpoint, tmp_path / "out", tokenizer=vocabulary, heads=HEADS, progress=lambda *x: seen.append(x))
    assert seen == sorted(seen) and seen[-1][0] == seen[-1][1] > 0


def test_the_report_names_every_part_and_reason(checkpoint, vocabulary, tmp_path):
    lines = convert(checkpoint, tmp_path / "out", tokenizer=vocabulary, heads=HEADS).lines()
    assert lines[0].startswith("1340 keys") and any("BLIP-2's pre-training" in line for line in lines) and len(lines) == 10


def test_weights_left_over_from_training_are_accepted_and_said_so(state, vocabulary, tmp_path):
    extra = {"model_ema.decay": torch.ones(()), "model_ema.diffusion_modelout0weight": torch.ones(3), "logvar": torch.zeros(1000)}
    pickled = type("ModelCheckpoint", (), {"__module__": "pytorch_lightning.callbacks.model_checkpoint"})
    sys.modules.setdefault("pytorch_lightning", type(sys)("pytorch_lightning"))
    module = type(sys)("pytorch_lightning.callbacks.model_checkpoint")
    module.ModelCheckpoint = pickled
    sys.modules["pytorch_lightning.callbacks"] = sys.modules["pytorch_lightning.callbacks.model_checkpoint"] = module
    try:
        payload = {"state_dict": {**state, **extra}, "callbacks": {pickled: {"best": 1}}, "optimizer_states": [{"state": {}}]}
        torch.save(payload, tmp_path / "trained.ckpt")
    finally:
        for name in [m for m in sys.modules if m.startswith("pytorch_lightning")]:
            del sys.modules[name]
    report = convert(tmp_path / "trained.ckpt", tmp_path / "out", tokenizer=vocabulary, heads=HEADS)
    assert report.ignored["moving average left over from training: the released app runs the plain weights (use_ema False)"] == 2


def test_a_checkpoint_without_position_ids_heads_and_schedule_is_enough(state, vocabulary, tmp_path):
    shapes = {key: tuple(tensor.shape) for key, tensor in state.items()}
    needless = make_plan(shapes, HEADS).ignored
    torch.save(
        {key: tensor for key, tensor in state.items() if key not in needless}, tmp_path / "bare.ckpt"
    )  # and no "state_dict"
    report = convert(tmp_path / "bare.ckpt", tmp_path / "out", tokenizer=vocabulary, heads=HEADS)
    assert not report.ignored and report.used == {"unet": 684, "vae": 244, "text_encoder": 36, "deadiff": 291}


def test_old_files_that_cannot_be_mapped_are_read_all_the_same(state, vocabulary, tmp_path):
    torch.save({"state_dict": state}, tmp_path / "old.ckpt", _use_new_zipfile_serialization=False)
    assert convert(tmp_path / "old.ckpt", tmp_path / "out", tokenizer=vocabulary, heads=HEADS).used["unet"] == 684


# ---- what is refused ----


class Malice:
    def __reduce__(self):
        return os.system, ("echo harm > harm.txt",)


def damaged(name: str, path: Path, state: dict) -> Path:
    """Write a checkpoint that is wrong in one way."""
    if name == "plain SD 1.5":
        own = ("_blip.", "_proj_layer.", ".i_to_")
        torch.save({"state_dict": {k: v for k, v in state.items() if not any(s in k for s in own)}}, path)
    elif name == "truncated":
        torch.save({"state_dict": state}, path)
        os.truncate(path, path.stat().st_size // 2)
    elif name == "truncated old format":
        torch.save({"state_dict": state}, path, _use_new_zipfile_serialization=False)
        os.truncate(path, path.stat().st_size // 2)
    elif name == "code":
        torch.save({"state_dict": state, "x": Malice()}, path)
    elif name == "code in a bare pickle":
        path.write_bytes(pickle.dumps(Malice()))
    elif name == "wrong shape":
        torch.save({"state_dict": state | {"style_proj_layer.dense2.bias": torch.zeros(63)}}, path)
    elif name == "missing key":
        torch.save({"state_dict": {k: v for k, v in state.items() if k != "content_blip.ln_vision.bias"}}, path)
    elif name == "missing key that tells a size":
        torch.save({"state_dict": {k: v for k, v in state.items() if k != "style_blip.query_tokens"}}, path)
    elif name == "unknown key":
        torch.save({"state_dict": state | {"style_blip.Qformer.bert.pooler.dense.weight": torch.zeros(1)}}, path)
    elif name == "unknown part":
        torch.save({"state_dict": state | {"lora.weight": torch.zeros(1)}}, path)
    elif name == "another schedule":
        torch.save({"state_dict": state | {"betas": torch.linspace(1e-4, 0.02, 1000)}}, path)
    elif name == "safetensors":
        save_file({"x": torch.zeros(1)}, path)
    elif name == "a picture":
        path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(1000))
    elif name == "empty":
        path.touch()
    elif name == "a zip of something else":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("hello.txt", "hello")
    elif name == "no tensors":
        torch.save({"state_dict": {"epoch": 3}}, path)
    elif name == "another model":
        torch.save({"transformer.weight": torch.zeros(1)}, path)
    elif name == "a folder":
        path.mkdir()
    return path


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("plain SD 1.5", "32 of 32 image key/value weights are missing in '.*': is this plain SD 1.5"),
        (
            "truncated",
            r"\(0.0\d GB\) is truncated or not a PyTorch checkpoint: expected deadiff_v1.ckpt of 7.43 GB; download it again",
        ),
        ("truncated old format", "is truncated or not a PyTorch checkpoint"),
        ("code", "holds code beside weights: unpickling would call .*system, refused"),
        ("code in a bare pickle", "truncated or not a PyTorch checkpoint|holds code"),
        ("wrong shape", r"style_proj_layer.dense2.bias in '.*' has shape \(63,\): expected \(64,\)"),
        ("missing key", "1 of .* weights of the deadiff are missing in '.*', first extractors.content.ln_vision.bias"),
        ("missing key that tells a size", "extractors.style.query_tokens is missing"),
        ("unknown key", "have no place in the deadiff, first style_blip.Qformer.bert.pooler.dense.weight"),
        ("unknown part", "1 keys of '.*' are unknown, first lora.weight"),
        ("another schedule", "betas of '.*' are not Stable Diffusion's"),
        ("safetensors", "is a safetensors file: expected deadiff_v1.ckpt"),
        ("a picture", "truncated or not a PyTorch checkpoint"),
        ("empty", "truncated or not a PyTorch checkpoint"),
        ("a zip of something else", "truncated or not a PyTorch checkpoint"),
        ("no tensors", "holds no state_dict of tensors"),
        ("another model", "holds no model.diffusion_model.* weights"),
        ("a folder", "is a folder: expected the file deadiff_v1.ckpt"),
        ("nothing", "no file '.*': download deadiff_v1.ckpt from the hub repository qth/DEADiff"),
    ],
)
def test_every_wrong_file_is_one_clear_line_and_leaves_nothing_behind(name, message, state, vocabulary, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = damaged(name, tmp_path / "x.ckpt", state)
    with pytest.raises(CheckpointError, match=message) as caught:
        convert(path, tmp_path / "out", tokenizer=vocabulary, heads=HEADS)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400
    assert sorted(p.name for p in tmp_path.iterdir()) in ([], ["x.ckpt"]), "no output, no leftovers, no harm done"


def test_an_output_that_exists_and_a_dtype_that_does_not_are_refused(checkpoint, vocabulary, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine.txt").write_text("mine")
    with pytest.raises(ConfigError, match="exists already"):
        convert(checkpoint, tmp_path / "out", tokenizer=vocabulary)
    with pytest.raises(ConfigError, match="dtype is 'int8': expected one of fp32, fp16, bf16"):
        convert(checkpoint, tmp_path / "other", "int8", tokenizer=vocabulary)
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["mine.txt", "out"]


def test_a_full_disk_is_found_out_before_and_during_writing(checkpoint, vocabulary, tmp_path, monkeypatch):
    usage = type("usage", (), {"free": 1_000_000})
    with monkeypatch.context() as patch:
        patch.setattr("shutil.disk_usage", lambda _: usage)
        with pytest.raises(CheckpointError, match=r"has 0.0 GB free: the converted model needs"):
            convert(checkpoint, tmp_path / "out", tokenizer=vocabulary, heads=HEADS)

    def full(path, *_):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(official, "stream_safetensors", full)
    with pytest.raises(CheckpointError, match=r"No space left on device.*nothing was left there"):
        convert(checkpoint, tmp_path / "out", tokenizer=vocabulary, heads=HEADS)
    assert not list(tmp_path.iterdir())


def test_numbers_beyond_half_precision_are_refused_not_made_infinite(state, vocabulary, tmp_path):
    torch.save({"state_dict": state | {"content_proj_layer.dense2.bias": torch.full((64,), 1e6)}}, tmp_path / "big.ckpt")
    with pytest.raises(
        CheckpointError, match="content_proj_layer.dense2.bias holds numbers that float16 cannot: convert to fp32"
    ):
        convert(tmp_path / "big.ckpt", tmp_path / "out", tokenizer=vocabulary, heads=HEADS)
    convert(tmp_path / "big.ckpt", tmp_path / "out", "fp32", tokenizer=vocabulary, heads=HEADS)


def test_no_key_can_go_unnoticed(state):
    """Take any one key away: the plan fails if it was used and is unchanged if it was not. (Every 60th, for time.)"""
    shapes = {key: tuple(tensor.shape) for key, tensor in state.items()}
    whole = make_plan(shapes, HEADS)
    for key in [*shapes][::60]:
        rest = {k: v for k, v in shapes.items() if k != key}
        if key in whole.ignored:
            assert key not in make_plan(rest, HEADS).ignored
        else:
            with pytest.raises(CheckpointError, match="missing"):
                make_plan(rest, HEADS)


@pytest.mark.parametrize(
    "key",
    [
        "model.diffusion_model.input_blocks.12.0.in_layers.0.weight",
        "model.diffusion_model.input_blocks.1.0.in_layers.1.weight",
        "model.diffusion_model.label_emb.0.weight",
        "first_stage_model.encoder.down.0.attn.0.q.weight",
        "style_blip.visual_encoder.transformer.resblocks.0.attn.bias_k",
        "cond_stage_model.model.positional_embedding",
        "",
    ],
)
def test_keys_like_the_right_ones_are_unknown(key):
    assert place(key, 4, 4) is None


# ---- memory ----

_MEASURE = """
import resource, sys
from deadiff.official import convert
from deadiff.official_plan import Heads
import torch, os
base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
convert(sys.argv[1], sys.argv[2], sys.argv[3], tokenizer=sys.argv[4], heads=Heads(unet=4, text=4, vision=4, qformer=4))
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - base) * 1024)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is counted in kilobytes on Linux only")
def test_converting_takes_little_more_memory_than_the_file_is_large(state, vocabulary, tmp_path):
    """A checkpoint of half a gigabyte. At the published 7.43 GB the whole process peaked at 1.06 x the file, see docs/log.md."""
    rows = 400_000
    wide = {k: v for k, v in state.items() if not k.endswith(("position_ids", "decoder.weight"))}
    for role in ("style", "content"):
        wide[f"{role}_blip.Qformer.bert.embeddings.word_embeddings.weight"] = torch.zeros(rows, 64)
    wide["cond_stage_model.transformer.text_model.embeddings.token_embedding.weight"] = torch.zeros(3 * rows, 64)
    torch.save({"state_dict": wide}, tmp_path / "wide.ckpt")
    size = (tmp_path / "wide.ckpt").stat().st_size
    command = [sys.executable, "-c", _MEASURE, tmp_path / "wide.ckpt", tmp_path / "out", "fp32", vocabulary]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True)
    grown = int(done.stdout.split()[-1])
    assert size > 5e8 and grown < 1.3 * size, f"{grown / size:.2f} x the checkpoint's {size / 1e9:.2f} GB"


# ---- the tokenizer ----


def test_the_tokenizer_is_found_in_a_folder_a_base_model_a_file_or_an_installed_open_clip(vocabulary, tmp_path, monkeypatch):
    expected = tokenizer_from_merges(read_merges(vocabulary))
    expected.save_pretrained(tmp_path / "base/tokenizer")
    (tmp_path / "open_clip").mkdir()
    (tmp_path / "open_clip/__init__.py").touch()
    (tmp_path / "open_clip" / vocabulary.name).write_bytes(vocabulary.read_bytes())
    spec = importlib.machinery.ModuleSpec("open_clip", None, origin=str(tmp_path / "open_clip/__init__.py"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: spec if name == "open_clip" else None)
    for source in (vocabulary, tmp_path / "base", tmp_path / "base/tokenizer", None):
        found = find_tokenizer(source)
        assert found("A curly-haired boy").input_ids == expected("A curly-haired boy").input_ids
        assert (found.model_max_length, found.pad_token_id, len(found)) == (77, 49407, 49408)


def test_without_a_tokenizer_the_error_says_what_to_bring(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(CheckpointError, match="cannot download CLIP's tokenizer .or pass --tokenizer"):
        find_tokenizer()
    with pytest.raises(CheckpointError, match="no tokenizer in .*: expected vocab.json"):
        find_tokenizer(tmp_path)
    (tmp_path / "words.txt.gz").write_bytes(b"not gzip")
    with pytest.raises(CheckpointError, match="cannot read .*words.txt.gz"):
        find_tokenizer(tmp_path / "words.txt.gz")


def test_the_published_model_is_taken_from_the_cache_once_it_is_there(tmp_path, monkeypatch, checkpoint, vocabulary):
    monkeypatch.setenv("DEADIFF_HOME", str(tmp_path))
    with pytest.raises(CheckpointError, match="the published weights cannot be downloaded"):
        official.sd15_folder()
    convert(checkpoint, tmp_path / "sd15-fp16", tokenizer=vocabulary, heads=HEADS)
    assert official.sd15_folder() == tmp_path / "sd15-fp16"


def test_opening_a_checkpoint_maps_it_and_reads_nothing(checkpoint):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    state = open_checkpoint(checkpoint)
    assert len(state) == 1340 and resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20_000
