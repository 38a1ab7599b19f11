"""What users get wrong: every mistake is one line on stderr and exit code 2, never a traceback, and nothing half-written."""

import errno
import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deadiff import writing
from deadiff.apps.cli import run
from test_references import encoded, png_of_size
from tiny import picture, tiny_model_folder


@pytest.fixture(scope="module")
def desk(tmp_path_factory) -> Path:
    """A folder with a model and with everything that people hand over by mistake."""
    folder = tmp_path_factory.mktemp("desk")
    tiny_model_folder(folder / "model")
    picture(1).save(folder / "ref.png")
    (folder / "empty.png").write_bytes(b"")
    (folder / "page.png").write_bytes(b"<!DOCTYPE html><html><body>Not found</body></html>")
    (folder / "drawing.svg").write_bytes(b'<svg xmlns="http://www.w3.org/2000/svg"/>')
    (folder / "cut.jpg").write_bytes(encoded(Image.effect_noise((300, 300), 80), "JPEG")[:3000])
    (folder / "bomb.png").write_bytes(png_of_size(10_000, 10_000))
    (folder / "notes.txt").write_text("to do")
    (folder / "words.jsonl").write_text('{"prompt": "a robot"}\nnot json\n')
    (folder / "typo.jsonl").write_text('{"promt": "a robot"}\n')
    (folder / "number.jsonl").write_text('{"prompt": 7}\n')
    (folder / "list.jsonl").write_text("[1, 2]\n")
    (folder / "lost.jsonl").write_text('{"prompt": "a robot", "style": "gone.png"}\n')
    (folder / "seeds.jsonl").write_text('{"prompt": "a robot", "seed": -3}\n')
    (folder / "latin.txt").write_bytes("caf\xe9".encode("latin-1"))
    (folder / "blank.txt").write_text("\n\n")
    (folder / "nothing").mkdir()
    os.mkfifo(folder / "pipe.png")
    (folder / "code.ckpt").write_bytes(pickle.dumps(np.arange(3)))
    (folder / "weights.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{}")
    (folder / "broken").mkdir()
    (folder / "broken" / "config.json").write_text("{")
    (folder / "cut-model").mkdir()
    for file in (folder / "model").rglob("*"):
        target = folder / "cut-model" / file.relative_to(folder / "model")
        if file.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(file.read_bytes())
    weights = folder / "cut-model" / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    return folder


ROBOT = ["stylize", "a robot", "--model", "{desk}/model", "--out", "{out}"]
# name -> (arguments, what the line must say). {desk} is the folder above, {out} a fresh place for pictures.
BAD = {
    "no command": (["draw"], "No such command"),
    "a command misspelt": (["stilize"], "Did you mean 'stylize'"),
    "an option misspelt": ([*ROBOT, "--stlye", "x.png"], "--stlye"),
    "nothing to draw": (["stylize", "--out", "{out}"], "neither a prompt nor --prompts"),
    "prompt and file": ([*ROBOT, "--prompts", "{desk}/notes.txt"], "both a prompt and --prompts"),
    "no such reference": ([*ROBOT, "--style", "{desk}/gone.png"], "gone.png' does not exist"),
    "an empty reference": ([*ROBOT, "--style", "{desk}/empty.png"], "empty (0 bytes)"),
    "a web page as reference": ([*ROBOT, "--style", "{desk}/page.png"], "web page"),
    "an SVG as reference": ([*ROBOT, "--style", "{desk}/drawing.svg"], "SVG"),
    "a cut JPEG": ([*ROBOT, "--style", "{desk}/cut.jpg"], "cut short"),
    "a text file as reference": ([*ROBOT, "--style", "{desk}/notes.txt"], "not a picture"),
    "a 100-megapixel bomb": ([*ROBOT, "--style", "{desk}/bomb.png"], "100 megapixels"),
    "a folder as reference": ([*ROBOT, "--style", "{desk}/nothing"], "is a folder"),
    "a pipe as reference": ([*ROBOT, "--style", "{desk}/pipe.png"], "pipe"),
    "a device as reference": ([*ROBOT, "--style", "/dev/zero"], "device"),
    "an address as reference": ([*ROBOT, "--style", "https://example.org/a.png"], "download it first"),
    "a negative weight": ([*ROBOT, "--style", "{desk}/ref.png:-1"], "weight is -1"),
    "a weight that is no number": ([*ROBOT, "--style", "{desk}/ref.png:nan"], "weight is nan"),
    "only weight 0": ([*ROBOT, "--style", "{desk}/ref.png:0"], "weight 0"),
    "an empty folder of styles": ([*ROBOT, "--style-dir", "{desk}/nothing"], "holds no pictures"),
    "no folder of styles": ([*ROBOT, "--style-dir", "{desk}/gone"], "does not exist"),
    "style and folder of styles": (
        [*ROBOT, "--style", "{desk}/ref.png", "--style-dir", "{desk}"],
        "both --style and --style-dir",
    ),
    "a content reference that is gone": ([*ROBOT, "--content", "{desk}/gone.png"], "does not exist"),
    "a photo that is gone": ([*ROBOT, "--image", "{desk}/gone.png"], "does not exist"),
    "a mask without photo": ([*ROBOT, "--mask", "{desk}/ref.png"], "without an image"),
    "a control image without ControlNet": ([*ROBOT, "--control", "{desk}/ref.png"], "no ControlNet"),
    "no such ControlNet": ([*ROBOT, "--controlnet", "{desk}/gone"], "there is no ControlNet"),
    "no such LoRA": ([*ROBOT, "--lora", "{desk}/gone.safetensors"], "there is no LoRA"),
    "0 steps": ([*ROBOT, "--steps", "0"], "--steps"),
    "-5 steps": ([*ROBOT, "--steps", "-5"], "--steps"),
    "a million steps": ([*ROBOT, "--steps", "1000000"], "--steps"),
    "steps in words": ([*ROBOT, "--steps", "many"], "--steps"),
    "no photo step left": ([*ROBOT, "--image", "{desk}/ref.png", "--image-strength", "0.1", "--steps", "2"], "leaves no step"),
    "an image strength above 1": ([*ROBOT, "--image", "{desk}/ref.png", "--image-strength", "1.5"], "--image-strength"),
    "a negative seed": ([*ROBOT, "--seed", "-1"], "--seed"),
    "a giant seed": ([*ROBOT, "--seed", "99999999999999999999999"], "--seed"),
    "no pictures": ([*ROBOT, "--num", "0"], "--num"),
    "a guidance that is no number": ([*ROBOT, "--guidance", "nan"], "--guidance"),
    "a negative strength": ([*ROBOT, "--strength", "-0.5"], "--strength"),
    "an infinite strength": ([*ROBOT, "--strength", "inf"], "--strength"),
    "a window in words": ([*ROBOT, "--window", "early"], "START:END"),
    "a window backwards": ([*ROBOT, "--window", "0.8:0.2"], "start before the end"),
    "a window beyond the end": ([*ROBOT, "--window", "0:2"], "style_window end is 2"),
    "no such scheduler": ([*ROBOT, "--scheduler", "dmp++"], "did you mean 'dpm++'"),
    "no such resize": ([*ROBOT, "--style", "{desk}/ref.png", "--resize", "stretch"], "squash, pad or crop"),
    "a width that does not fit": ([*ROBOT, "--width", "100"], "multiple of 16"),
    "a tiny height": ([*ROBOT, "--height", "1"], "--height"),
    "no such device": ([*ROBOT, "--device", "tpu9"], "device 'tpu9'"),
    "no such dtype": ([*ROBOT, "--dtype", "int4"], "dtype is 'int4'"),
    "no batch": ([*ROBOT, "--batch-size", "0"], "--batch-size"),
    "a safety checker that is not there": ([*ROBOT, "--safety-checker"], "no safety checker"),
    "no such model": (["stylize", "x", "--model", "{desk}/gone", "--out", "{out}"], "there is no model"),
    "a folder without model": (["stylize", "x", "--model", "{desk}/nothing", "--out", "{out}"], "no adapter in"),
    "a checkpoint as model": (["stylize", "x", "--model", "{desk}/code.ckpt", "--out", "{out}"], "deadiff convert"),
    "a broken adapter": (["stylize", "x", "--model", "{desk}/broken", "--out", "{out}"], "cannot read"),
    "a truncated model": (["stylize", "x", "--model", "{desk}/cut-model", "--out", "{out}"], "cannot be loaded"),
    "no such base": ([*ROBOT, "--base", "{desk}/gone"], "there is no base model"),
    "a base with code": ([*ROBOT, "--base", "{desk}/code.ckpt"], "not a .safetensors file"),
    "a broken base file": ([*ROBOT, "--base", "{desk}/weights.safetensors"], "cannot be loaded"),
    "a model of the hub without network": (["stylize", "x", "--model", "nobody/nothing", "--out", "{out}"], "cannot download"),
    "no prompts file": (["stylize", "--prompts", "{desk}/gone.txt", "--out", "{out}"], "does not exist"),
    "an empty prompts file": (["stylize", "--prompts", "{desk}/blank.txt", "--out", "{out}"], "holds no prompts"),
    "prompts that are not UTF-8": (["stylize", "--prompts", "{desk}/latin.txt", "--out", "{out}"], "not UTF-8"),
    "a row that is not JSON": (["stylize", "--prompts", "{desk}/words.jsonl", "--out", "{out}"], "line 2 of"),
    "a row with a typo": (["stylize", "--prompts", "{desk}/typo.jsonl", "--out", "{out}"], "promt"),
    "a row with a number": (["stylize", "--prompts", "{desk}/number.jsonl", "--out", "{out}"], "expected text"),
    "a row with a list": (["stylize", "--prompts", "{desk}/list.jsonl", "--out", "{out}"], "expected an object"),
    "a row whose reference is gone": (["stylize", "--prompts", "{desk}/lost.jsonl", "--out", "{out}"], "does not exist"),
    "a row with a negative seed": (["stylize", "--prompts", "{desk}/seeds.jsonl", *ROBOT[2:]], "seed is -3"),
    "a prompt that is no text": (["stylize", "a \udce9 robot", *ROBOT[2:]], "not valid text"),
    "a file as out folder": (["stylize", "x", "--out", "{desk}/notes.txt"], "cannot be written to"),
    "an out folder in a device": (["stylize", "x", "--out", "/dev/null/pictures"], "cannot be written to"),
    "an out folder with a NUL": (["stylize", "x", "--out", "a\0b"], "null byte"),
    "again without recipe": (["stylize", "--again", "{desk}/ref.png", "--out", "{out}"], "carries no recipe"),
    "again without picture": (["stylize", "--again", "{desk}/gone.png", "--out", "{out}"], "does not exist"),
    "again with a prompt": (["stylize", "x", "--again", "{desk}/ref.png", "--out", "{out}"], "leave PROMPT"),
    "inspect nothing": (["inspect", "{desk}/gone"], "check the path"),
    "inspect a text": (["inspect", "{desk}/notes.txt"], "nothing that deadiff knows"),
    "inspect an empty folder": (["inspect", "{desk}/nothing"], "without a model"),
    "inspect a cut file": (["inspect", "{desk}/weights.safetensors"], "not a whole safetensors file"),
    "inspect code": (["inspect", "{desk}/code.ckpt"], "code"),
    "convert nothing": (["convert", "{desk}/gone.ckpt", "{out}"], "no file"),
    "convert a folder": (["convert", "{desk}/model", "{out}"], "is a folder"),
    "convert code": (["convert", "{desk}/code.ckpt", "{out}"], "code"),
    "convert to nothing known": (["convert", "{desk}/code.ckpt", "{out}", "--dtype", "int8"], "dtype is 'int8'"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_mistake_is_one_line_and_leaves_nothing_behind(name, desk, tmp_path, capfd):
    arguments, message = BAD[name]
    out = tmp_path / "pictures"
    code = run([argument.replace("{desk}", str(desk)).replace("{out}", str(out)) for argument in arguments])
    printed, said = capfd.readouterr()
    lines = [line for line in said.splitlines() if line.strip()]
    assert code == 2 and printed == ""
    assert len(lines) == 1 and lines[0].startswith("error: ") and message in lines[0], said
    assert not out.exists() or not list(out.iterdir())


GOOD = {
    "a prompt of 10,000 characters": "robot " * 1667,
    "emoji": "a \U0001f916 in the \U0001f327",
    "other scripts": "\u30ed\u30dc \u0440\u043e\u0431 \u0631\u0648",
    "an empty prompt": "",
    "quotes, slashes and a null": "../../a \"robot\" / 'x' \0 <b>",
}


@pytest.mark.parametrize("name", GOOD)
def test_unusual_prompts_are_drawn(name, desk, tmp_path, capfd):
    out = tmp_path / "pictures"
    code = run(
        [
            "stylize",
            GOOD[name],
            "--model",
            f"{desk}/model",
            "--style",
            f"{desk}/ref.png",
            "--out",
            str(out),
            "--steps",
            "1",
            "--seed",
            "3",
        ]
    )
    said = capfd.readouterr().err
    files = sorted(file.name for file in out.iterdir())
    assert code == 0 and len(files) == 2 and "sheet.png" in files and any(file.endswith("ref_3.png") for file in files)
    assert ("longer than the 32 tokens" in said) == (name == "a prompt of 10,000 characters")
    assert "Traceback" not in said


def test_a_full_disk_is_one_line_and_keeps_only_whole_files(desk, tmp_path, capfd, monkeypatch):
    out = tmp_path / "pictures"
    written = []

    def full(descriptor: int) -> None:
        written.append(descriptor)
        if len(written) > 1:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(writing.os, "fsync", full)
    code = run(
        [a.replace("{desk}", str(desk)).replace("{out}", str(out)) for a in [*ROBOT, "--num", "3", "--steps", "1", "--seed", "3"]]
    )
    said = [line for line in capfd.readouterr().err.splitlines() if "error" in line]
    assert code == 2 and len(said) == 1 and "No space left on device" in said[0]
    assert [file.name for file in out.iterdir()] == ["a-robot_3.png"]
    Image.open(out / "a-robot_3.png").load()


def test_existing_pictures_are_never_replaced(desk, tmp_path, capfd):
    arguments = [a.replace("{desk}", str(desk)).replace("{out}", str(tmp_path)) for a in [*ROBOT, "--steps", "1", "--seed", "3"]]
    assert run(arguments) == run(arguments) == 0
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a-robot_3.png", "a-robot_3_2.png", "sheet.png", "sheet_2.png"]
    capfd.readouterr()


def test_a_reference_that_is_gone_or_changed_is_asked_for_by_its_option(desk, tmp_path, capfd):
    reference = tmp_path / "mine.png"
    picture(1).save(reference)
    model = ["--model", f"{desk}/model", "--out", str(tmp_path / "out")]
    assert run(["stylize", "a robot", "--style", str(reference), "--steps", "1", "--seed", "3", "--no-sheet", *model]) == 0
    drawn = tmp_path / "out" / "a-robot_mine_3.png"
    before = drawn.read_bytes()
    moved = reference.rename(tmp_path / "moved.png")
    capfd.readouterr()
    assert run(["stylize", "--again", str(drawn), "--out", str(tmp_path / "two")]) == 2
    assert "give it with --style FILE" in capfd.readouterr().err
    picture(2).save(reference)
    assert run(["stylize", "--again", str(drawn), "--out", str(tmp_path / "two")]) == 2
    assert "is not the style reference" in capfd.readouterr().err
    assert run(["stylize", "--again", str(drawn), "--style", str(moved), "--out", str(tmp_path / "two"), "--json"]) == 0
    made = json.loads(capfd.readouterr().out)["pictures"][0]
    assert Path(made["path"]).read_bytes() == before


def test_there_are_at_least_forty_bad_inputs():
    assert len(BAD) >= 40
