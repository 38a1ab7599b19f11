"""Speed against quality on a tiny model: what a way costs, where guidance acts, what is proposed, and the commands themselves."""

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import deadiff
import test_evaluation as fakes
import tiny
from deadiff.apps import eval_commands
from deadiff.apps.cli import run as command
from deadiff.errors import ConfigError
from deadiff.evaluation import judges
from deadiff.evaluation.field_scores import Encoders, FieldScorer
from deadiff.evaluation.intervals import Interval
from deadiff.evaluation.reference_set import StyleReference
from deadiff.evaluation.scores import Shot
from deadiff.evaluation.speed import ALWAYS, Grid, Measured, Way, guided_in, measure_speed, proposed, read_speed_recipe

RECIPES = Path(__file__).parent.parent / "recipes" / "eval"
SPEED = """
seeds = 1
[prompts]
"a robot" = "1F916"
"a cat" = "1F408"
[references]
files = ["ref*.png"]
[grid]
schedulers = ["ddim", "dpm++"]
steps = [2]
guidance = 3.0
guidances = [1.0, 3.0]
intervals = [[0.0, 1.0], [0.5, 1.0]]
at = ["dpm++", 2]
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny.tiny_model_folder(tmp_path_factory.mktemp("model")))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in range(2):
        tiny.picture(number, (64, 64)).save(tmp_path / f"ref{number}.png")
    (tmp_path / "speed.toml").write_text(SPEED)
    (tmp_path / "small.toml").write_text(SPEED.partition("[grid]")[0].replace("seeds = 1", "seeds = 1\nnum_inference_steps = 1"))
    return tmp_path


def test_a_way_costs_a_pass_a_step_and_one_more_where_guidance_acts() -> None:
    assert Way(scheduler="ddim", steps=50, guidance=3.0).passes == 100
    assert Way(scheduler="ddim", steps=50, guidance=1.0).passes == 50
    assert Way(scheduler="ddim", steps=20, guidance=3.0, interval=(0.0, 0.5)).passes == 30
    assert Way(scheduler="ddim", steps=20, guidance=1.0, interval=(0.0, 0.5)).passes == 20


def test_guidance_outside_its_interval_does_nothing(model: str) -> None:
    """Off everywhere = guidance 1; on everywhere = no hook; and afterwards the U-Net is as it was."""
    stylizer = deadiff.load(model)

    def drawn(guidance: float, interval: tuple[float, float], count: int = 2) -> np.ndarray:
        with guided_in(stylizer.pipe.unet, Way(scheduler="ddim", steps=4, guidance=guidance, interval=interval)):
            images = stylizer("a robot", style=tiny.picture(1), seed=3, num_images=count, guidance_scale=guidance,
                              num_inference_steps=4, scheduler="ddim", batch_size=2).images  # fmt: skip
        return np.stack([np.asarray(image).astype(int) for image in images])

    full = drawn(4.0, ALWAYS, 4)
    plain = drawn(1.0, ALWAYS)
    assert abs(drawn(4.0, (0.99, 1.0)) - plain).max() <= 2  # in none of the four steps: (0, .25, .5, .75)
    assert abs(full[:2] - plain).max() > 2
    half = drawn(4.0, (0.5, 1.0), 4)
    assert abs(half[:2] - plain).max() > 2 and abs(half - full).max() > 2
    assert abs(half[2:] - drawn(4.0, (0.5, 1.0), 4)[2:]).max() == 0  # the second batch counts its steps anew
    assert not stylizer.pipe.unet._forward_hooks


def test_every_way_is_drawn_scored_and_resumed(folder: Path, model: str) -> None:
    recipe, grid = read_speed_recipe(folder / "speed.toml")
    ways = grid.ways()
    assert ways[0] == Way(scheduler="ddim", steps=50, guidance=3.0)  # the yardstick, though the grid does not name it
    assert len(ways) == 5 and len(set(ways)) == 5
    from dataclasses import replace

    small = replace(grid, schedulers=("dpm++",), guidances=(1.0,))
    out = folder / "out"
    first = measure_speed(recipe, small, model, out, fakes.icons_scorer, command="deadiff eval speed speed.toml")
    assert [m.way.steps for m in first] == [50, 2, 2]
    assert first[0].distance == 0 and first[0].style_gap.estimate == 0 and first[1].distance > 0
    stamps = {path: path.stat().st_mtime_ns for path in (out / "pictures").rglob("*.png")}
    assert len(stamps) == 3 * 4
    again = measure_speed(recipe, small, model, out, fakes.icons_scorer)
    assert {path: path.stat().st_mtime_ns for path in (out / "pictures").rglob("*.png")} == stamps
    assert [(m.style, m.distance) for m in again] == [(m.style, m.distance) for m in first]
    assert all(m.seconds and m.seconds > 0 for m in again)  # kept from the first sitting
    found = json.loads((out / "speed.json").read_text())
    assert [way["passes"] for way in found["ways"]] == [100, 4, 2]
    page = (out / "speed.html").read_text()
    assert page.count("<svg") == 3 and "src=" not in page
    for name in ("style", "text", "distance"):
        assert f"plots/speed-{name}.svg" in (out / "speed.md").read_text() and (out / "plots" / f"speed-{name}.svg").is_file()


def measured(steps: int, style: float, enough: bool) -> Measured:
    exactly = Interval(estimate=style, low=style, high=style)
    return Measured(
        way=Way(scheduler="ddim", steps=steps, guidance=3.0), style=exactly, text=exactly, style_gap=exactly, text_gap=exactly,
        distance=0.0, seconds=None, enough=enough,
    )  # fmt: skip


def test_the_cheapest_way_that_is_good_enough_is_proposed() -> None:
    ways = [measured(50, 0.9, True), measured(20, 0.89, True), measured(20, 0.8895, True), measured(4, 0.5, False)]
    assert proposed(ways) is ways[1]
    assert proposed(ways[3:]) is None


@pytest.mark.parametrize(
    ("grid", "says"),
    [
        ("steps = []\nschedulers = []", "needs schedulers"),
        ("intervals = [[0.5, 0.2]]", "start before the end"),
        ("colour = 1", "unexpected keyword argument 'colour'"),
    ],
)
def test_a_bad_grid_is_one_clear_line(grid: str, says: str, folder: Path) -> None:
    (folder / "bad.toml").write_text(SPEED.partition("[grid]")[0] + "[grid]\n" + grid)
    with pytest.raises(ConfigError, match=says):
        read_speed_recipe(folder / "bad.toml")


def test_the_shipped_speed_recipe_can_be_read() -> None:
    recipe, grid = read_speed_recipe(RECIPES / "speed.toml")
    assert len(recipe.prompts) == 12 and {"ddim", "dpm++", "unipc"} <= {way.scheduler for way in grid.ways()}
    assert any(way.interval != ALWAYS for way in grid.ways()) and Grid() == grid


# ---- the commands ----


def test_eval_compares_asks_and_counts_from_the_command_line(
    folder: Path, model: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """deadiff eval RECIPE, then preference, then its votes; nothing but the recipe and folders given."""
    monkeypatch.setattr(judges, "load_judges", lambda folder=None: fakes.ColourJudges())
    out = folder / "out"
    assert command(["eval", str(folder / "small.toml"), "--model", f"mine={model}", "--out", str(out)]) == 0
    assert capsys.readouterr().out.split() == [str(out / "report.html"), str(out / "report.md")]
    assert "mine" in (out / "report.md").read_text()
    assert command(["eval", "preference", str(out), "--pairs", "10", "--method", "mine", "--method", "plain"]) == 0
    key = json.loads((out / "preference-key.json").read_text())
    answers = {str(q["number"]): "left" if q["left"] == "mine" else "right" for q in key["questions"]}
    (out / "ann.json").write_text(json.dumps({"page": key["page"], "voter": "ann", "answers": answers}))
    assert command(["eval", "preference", str(out), "--votes", str(out / "ann.json")]) == 0
    assert "10 votes of 1 voter;" in capsys.readouterr().out and (out / "preference.md").is_file()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["missing.toml"], "cannot be read"),
        (["small.toml", "--model", "a=x", "--model", "a=y"], "two models are called 'a'"),
        (["small.toml", "--model", "=x"], "expected a model, or NAME=MODEL"),
        (["small.toml", "--model", "nowhere"], "there is no model 'nowhere'"),
        (["small.toml", "--csd", "x.pth"], "--csd goes with --clip"),
        (["small.toml", "--clip", "c", "--judges", "j"], "exclude each other"),
        (["preference", "nowhere"], "no finished evaluation"),
        (["preference", "nowhere", "--pairs", "0"], "--pairs"),
        (["speed", "missing.toml"], "cannot be read"),
        (["paper", "--recipes", "nowhere"], "holds no recipes"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(
    arguments: list[str], says: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(judges, "load_judges", lambda folder=None: fakes.ColourJudges())
    monkeypatch.chdir(folder)
    assert command(["eval", *arguments]) == 2
    said = capsys.readouterr().err
    assert says in said and said.startswith("error: ") and said.count("\n") == 1


def test_every_help_page_has_an_example() -> None:
    for name in ([], ["compare"], ["preference"], ["speed"], ["icons"], ["paper"]):
        shown = CliRunner().invoke(eval_commands.app, [*name, "--help"])
        assert shown.exit_code == 0 and "Example: deadiff eval" in " ".join(shown.output.split())


def test_icons_figures_come_from_the_command_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from deadiff.evaluation import icons_figures

    def measure(model: str, out: Path, draws: int, seed: int, **more: object) -> dict:
        assert (model, draws, seed) == ("icons", 7, 3) and more["data"] == Path("somewhere")
        return {"figures": {"1 fidelity": {"top1": {"estimate": 0.5, "low": 0.4, "high": 0.6}, "target": 0.6}}}

    monkeypatch.setattr(icons_figures, "measure", measure)
    assert command(["eval", "icons", "--draws", "7", "--seed", "3", "--data", "somewhere"]) == 0
    assert "1 fidelity: top1 0.500 [0.400, 0.600]  target 0.600" in capsys.readouterr().out


# ---- the field's scores ----


class ColourEncoder:
    """Pictures and texts in one space of three colours."""

    name = "colours"

    def pictures(self, pictures: list[np.ndarray]) -> np.ndarray:
        means = np.stack([p.reshape(-1, 3).mean(0) for p in pictures]) + 1e-3
        return means / np.linalg.norm(means, axis=1, keepdims=True)

    def texts(self, texts: list[str]) -> np.ndarray:
        found = np.full((len(texts), 3), 0.1)
        for i, text in enumerate(texts):
            found[i, 0 if "robot" in text else 1] += 1 + 0.01 * len(text)
        return found / np.linalg.norm(found, axis=1, keepdims=True)


class Head:
    def score(self, features: np.ndarray) -> np.ndarray:
        return features[:, 0] * 10


def test_clip_csd_dino_and_the_aesthetic_head_serve_the_same_protocol(tmp_path: Path) -> None:
    from PIL import Image

    paths = []
    for i, colour in enumerate([(250, 5, 5), (5, 250, 5), (5, 5, 250)]):
        paths.append(tmp_path / f"{i}.png")
        Image.new("RGB", (20 + i, 16), colour).save(paths[-1])  # sizes may differ
    shots = [
        Shot(picture=paths[0], reference=StyleReference(name="b"), reference_picture=paths[2], prompt="a robot"),
        Shot(picture=paths[1], reference=StyleReference(name="b"), reference_picture=paths[2], prompt="a robot"),
        Shot(picture=paths[2], reference=StyleReference(name="b"), reference_picture=paths[2], prompt="a robot"),
        Shot(picture=paths[2], reference=StyleReference(name="a"), reference_picture=paths[0], prompt="a robot"),
    ]
    eye = ColourEncoder()
    scorer = FieldScorer(Encoders(clip=eye, csd=eye, dino=eye, aesthetic=Head()))
    assert [c.name for c in scorer.columns] == ["style", "text", "quality", "csd", "clip_i", "leak"]
    found = scorer.score(shots)
    assert found["text"][0] > 0.9 > found["text"][1]
    assert found["csd"][2] == pytest.approx(1) and found["clip_i"][1] < 0.1
    assert found["leak"][2] > 0.9 and found["leak"][3] < -0.9  # the pasted reference; another's
    assert found["quality"][0] == pytest.approx(10, abs=0.1)
    few = FieldScorer(Encoders(clip=eye))
    assert set(few.score(shots)) == {"style", "text", "clip_i"} and few.name != scorer.name
