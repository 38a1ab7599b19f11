"""Everything in miniature, by the commands a user types and a tiny base: draw pictures, pair them, cache, train, go on, draw."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deadiff.apps.cli import run as deadiff
from deadiff.training.run_folder import RunFolder
from tiny import tiny_model_folder

RECIPE = Path(__file__).parent.parent / "recipes" / "icons" / "deadiff.toml"
SUBJECTS = "group\tword\ncharacters\trobot\nanimals\tcat\nobjects\tred apple\nscenes\thouse\nobjects\tkey\nanimals\tfish\n"
STYLES = "[medium | {style} of {subject}]\na blueprint, a neon sign, an oil painting, a woodcut\n"
SMALL = [
    "--set",
    "loop.global_batch=2",
    "--set",
    "loop.batch_size=2",
    "--set",
    "loop.warmup_steps=5",
    "--set",
    "loop.log_steps=10",
]
SMALL += ["--set", "loop.validate_steps=0", "--set", "loop.preview_steps=0", "--set", "loop.decay_steps=0"]


def test_from_words_to_ones_own_adapter(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "subjects.tsv").write_text(SUBJECTS)
    (tmp_path / "styles.txt").write_text(STYLES)
    data, run = tmp_path / "data", tmp_path / "run"
    model = str(tiny_model_folder(tmp_path / "model", "icons"))

    drawn = ["--model", model, "--styles-per-subject", "4", "--steps", "2", "--unseen", "0"]
    words = ["--subjects", str(tmp_path / "subjects.tsv"), "--styles", str(tmp_path / "styles.txt")]
    assert deadiff(["data", "generate", "--out", str(data), *words, *drawn]) == 0
    assert "24 of 24 pictures drawn" in capfd.readouterr().out
    assert deadiff(["data", "pairs", str(data), "--looks-quantile", "1", "--alike-quantile", "0", "--near-duplicate", "0"]) == 0
    said = capfd.readouterr().out
    assert "stre: " in said and "sere: " in said

    train = ["train", str(RECIPE), "--data", str(data), "--run", str(run), "--base", model, "--vision", model, *SMALL]
    assert deadiff([*train, "--set", "loop.steps=30"]) == 0
    assert "cache vision  done 24  of 24" in capfd.readouterr().out
    assert deadiff([*train, "--set", "loop.steps=50"]) == 0  # goes on, from the caches
    said = capfd.readouterr().out
    assert "cache" not in said and "step 40" in said and "step 10 " not in said
    curve = RunFolder(run).curve()
    assert [line["step"] for line in curve] == [10, 20, 30, 40, 50] and all(np.isfinite(line["loss"]) for line in curve)
    assert {"stre", "sere", "reconstruction"} < curve[-1].keys()
    assert json.loads((data / "cache" / "icons-128" / "vision" / "about.json").read_text())["encoder"]

    reference = Path(__file__).parent.parent / "examples" / "references" / "neon-camera.png"
    given = ["--style", str(reference), "--model", str(run / "adapter"), "--base", model]
    assert deadiff(["stylize", "a robot", *given, "--steps", "2", "--seed", "7", "--out", str(tmp_path / "out")]) == 0
    pictures = [path for path in (tmp_path / "out").glob("*.png") if "sheet" not in path.name]
    assert pictures and Image.open(pictures[0]).size == (128, 128)
