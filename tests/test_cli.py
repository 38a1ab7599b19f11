"""The command line: quick help that imports nothing heavy, pictures with their recipes, lists, folders, sheets, inspection."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from deadiff.apps.cli import COMMANDS, home, run
from deadiff.recipe import read_recipe
from tiny import picture, tiny_model_folder


@pytest.fixture(scope="module")
def desk(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("desk")
    tiny_model_folder(folder / "model")
    (folder / "styles").mkdir()
    for i in (1, 2):
        picture(i).save(folder / "styles" / f"s{i}.png")
    return folder


def python(code: str) -> tuple[float, str]:
    """Best of three: seconds of CPU that a fresh interpreter spends, beyond starting at all; what it prints."""
    timed = f"import time, sys; t = time.process_time(); {code}; print(time.process_time() - t)"
    runs = [subprocess.run([sys.executable, "-c", timed], capture_output=True, text=True, check=True).stdout for _ in range(3)]
    return min(float(out.split()[-1]) for out in runs), runs[0]


def test_importing_deadiff_is_quick_and_imports_no_torch():
    seconds, printed = python("import deadiff; print('torch' in sys.modules, 'PIL' in sys.modules)")
    assert "False False" in printed and seconds < 0.3


def test_help_is_quick_and_imports_no_torch():
    code = "from deadiff.apps.cli import run; code = run(['--help']); print(code, 'torch' in sys.modules, 'rich' in sys.modules)"
    seconds, printed = python(code)
    assert "0 False False" in printed and "stylize" in printed and seconds < 0.5


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself_with_an_example(name, capfd):
    import importlib.util

    if importlib.util.find_spec(home(name)) is None:
        assert run([name]) == 2  # not in this installation: not listed either
        assert "No such command" in capfd.readouterr().err
        return
    assert run([name, "--help"]) == 0
    printed = capfd.readouterr().out
    assert "Usage:" in printed and ("Example: deadiff" in printed or "Commands" in printed)


def test_stylize_writes_pictures_with_recipes_and_a_sheet_and_makes_them_again(desk, tmp_path, capfd):
    out = tmp_path / "out"
    style = f"{desk}/styles/s1.png"
    options = ["--model", f"{desk}/model", "--style", style, "--style", f"{desk}/styles/s2.png:0.3", "--content", style]
    assert run(["stylize", "a robot", *options, "--num", "3", "--seed", "7", "--out", str(out), "--strength", "0.9"]) == 0
    printed = capfd.readouterr().out.split()
    assert [Path(p).name for p in printed] == [*(f"a-robot_s1_{seed}.png" for seed in (7, 8, 9)), "sheet.png"]
    recipe = read_recipe(out / "a-robot_s1_8.png")
    assert (recipe.prompt, recipe.seed, recipe.strength, recipe.model) == ("a robot", 8, 0.9, f"{desk}/model")
    assert [(s.path, s.weight) for s in recipe.style] == [(style, 1.0), (f"{desk}/styles/s2.png", 0.3)]
    assert recipe.versions["deadiff"] and recipe.num_inference_steps == 3

    assert run(["stylize", "--again", str(out / "a-robot_s1_8.png"), "--out", str(tmp_path / "again")]) == 0
    captured = capfd.readouterr()
    assert Path(captured.out.strip()).read_bytes() == (out / "a-robot_s1_8.png").read_bytes()
    assert "warning" not in captured.err
    with Image.open(out / "sheet.png") as sheet:
        assert sheet.width > 3 * 192 and sheet.height > 192


def test_again_with_another_model_warns_and_draws(desk, tmp_path, capfd):
    out = tmp_path / "out"
    assert (
        run(["stylize", "a robot", "--model", f"{desk}/model", "--seed", "7", "--steps", "1", "--no-sheet", "--out", str(out)])
        == 0
    )
    tiny_model_folder(tmp_path / "other")
    from safetensors.torch import load_file, save_file

    weights = tmp_path / "other" / "unet" / "diffusion_pytorch_model.safetensors"
    changed = {k: v * 1.01 for k, v in load_file(weights).items()}
    save_file(changed, weights, metadata={"format": "pt"})
    capfd.readouterr()
    assert run(["stylize", "--again", str(out / "a-robot_7.png"), "--model", str(tmp_path / "other"), "--out", str(out)]) == 0
    assert "warning: the model's weights differ" in capfd.readouterr().err
    assert (out / "a-robot_7_2.png").exists()


def test_lists_and_folders_draw_every_prompt_in_every_style(desk, tmp_path, capfd):
    (tmp_path / "prompts.txt").write_text("a robot\n\na boat\n")
    rows = [
        {"prompt": "a robot", "style": [["styles/s1.png", 0.7], "styles/s2.png"], "seed": 5, "num_images": 2},
        {"prompt": "a boat", "strength": 0.4},
    ]
    (desk / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    common = ["--model", f"{desk}/model", "--steps", "1", "--seed", "7", "--json"]
    assert (
        run(
            [
                "stylize",
                "--prompts",
                f"{tmp_path}/prompts.txt",
                "--style-dir",
                f"{desk}/styles",
                "--out",
                f"{tmp_path}/a",
                *common,
            ]
        )
        == 0
    )
    made = json.loads(capfd.readouterr().out)
    names = [Path(p["path"]).name for p in made["pictures"]]
    assert names == ["a-robot_s1_7.png", "a-robot_s2_7.png", "a-boat_s1_7.png", "a-boat_s2_7.png"] and made["sheet"].endswith(
        "sheet.png"
    )
    assert run(["stylize", "--prompts", f"{desk}/rows.jsonl", "--out", f"{tmp_path}/b", *common]) == 0
    recipes = [p["recipe"] for p in json.loads(capfd.readouterr().out)["pictures"]]
    assert sorted((r["prompt"], r["seed"], r["strength"], len(r["style"])) for r in recipes) == [
        ("a boat", 7, 0.4, 0),
        ("a robot", 5, 1.0, 2),
        ("a robot", 6, 1.0, 2),
    ]


def test_a_photo_and_a_mask_are_taken_from_the_command_line(desk, tmp_path, capfd):
    picture(5, (200, 100)).save(tmp_path / "photo.jpg")
    Image.new("1", (200, 100), 1).save(tmp_path / "mask.png")
    common = [
        "--model",
        f"{desk}/model",
        "--style",
        f"{desk}/styles/s1.png",
        "--image",
        f"{tmp_path}/photo.jpg",
        "--out",
        f"{tmp_path}/out",
    ]
    assert run(["stylize", "a robot", *common, "--image-strength", "0.7", "--seed", "7"]) == 0
    assert run(["stylize", "a robot", *common, "--mask", f"{tmp_path}/mask.png", "--seed", "8"]) == 0
    capfd.readouterr()
    recipe = read_recipe(tmp_path / "out" / "a-robot_s1_7.png")
    assert recipe.image is not None and recipe.image_strength == 0.7
    assert run(["stylize", "--again", f"{tmp_path}/out/a-robot_s1_8.png", "--out", f"{tmp_path}/again"]) == 0
    assert (tmp_path / "again" / "a-robot_s1_8.png").read_bytes() == (tmp_path / "out" / "a-robot_s1_8.png").read_bytes()


def test_inspect_says_what_things_are_and_under_which_terms(desk, tmp_path, capfd):
    def found(path) -> dict:
        assert run(["inspect", str(path), "--json"]) == 0
        return json.loads(capfd.readouterr().out)

    model = found(desk / "model")
    assert model["what"].startswith("a DEADiff model") and model["routes"] == "16 layers: 11 style, 5 content"
    assert model["provenance"]["licence"] == "Apache-2.0" and model["parts"]["unet"]["parameters"] > 1000
    assert found(desk / "model" / "deadiff")["what"].startswith("a DEADiff adapter")
    assert found(desk / "model" / "deadiff" / "model.safetensors")["what"] == "the weights of a DEADiff adapter"
    assert found(desk / "styles" / "s1.png")["what"] == "a picture without a recipe"
    run(["stylize", "a robot", "--model", f"{desk}/model", "--steps", "1", "--seed", "7", "--no-sheet", "--out", str(tmp_path)])
    capfd.readouterr()
    assert found(tmp_path / "a-robot_7.png")["recipe"]["prompt"] == "a robot"
    embedded = found("icons")  # by its name, as everywhere
    assert embedded["base"] == "icons" and embedded["look"].endswith("(weight 7.4), tone 0.5")
    assert model["look"] == ""
    assert run(["inspect", str(desk / "model")]) == 0
    assert "licence: Apache-2.0" in capfd.readouterr().out


def hear_interrupts() -> None:
    """A shell without job control starts what it runs in the background deaf to Ctrl-C, and so are its children."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_an_interrupt_ends_cleanly_with_130(desk, tmp_path):
    command = [
        sys.executable,
        "-c",
        "from deadiff.apps.cli import main; main()",
        "stylize",
        "a robot",
        "--model",
        f"{desk}/model",
    ]
    process = subprocess.Popen(
        [*command, "--num", "5000", "--batch-size", "1", "--steps", "2", "--out", str(tmp_path / "out")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=hear_interrupts,
    )
    assert process.stdout is not None
    process.stdout.readline()  # the first picture is there
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in said and "finished pictures are in" in said
    names = [file.name for file in (tmp_path / "out").iterdir()]
    assert names and all(name.endswith(".png") and not name.startswith(".") for name in names)
