"""The protocol from recipe to report on tiny models and judges that look at colours: what is drawn, scored, resumed and said."""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import tiny
from deadiff.errors import ConfigError, DataError
from deadiff.evaluation import protocol, summary
from deadiff.evaluation.design import (
    BASELINES,
    Cell,
    EvalRecipe,
    Method,
    ReferenceRecipe,
    StrengthRecipe,
    read_eval_recipe,
    spaced,
)
from deadiff.evaluation.drawing import identity, open_method, picture_of
from deadiff.evaluation.plots import Point, Series, scatter, ticks
from deadiff.evaluation.protocol import Evaluation, evaluate, open_results
from deadiff.evaluation.reference_set import StyleReference
from deadiff.evaluation.report import write_report
from deadiff.evaluation.scores import ICONS_COLUMNS, IconsScorer
from deadiff.evaluation.summary import FAILS, HOLDS, OPEN, Averages, verdicts
from deadiff.evaluation.table import Scores, read_scores, write_scores

SUBJECTS = ["1F916", "1F408", "1F3B8"]  # robot, cat, guitar


class ColourJudges:
    """Subjects and styles by mean colour: deterministic, no weights."""

    subjects = SUBJECTS
    styles = ("red", "green", "blue")

    def style_features(self, pictures: np.ndarray) -> np.ndarray:
        mean = pictures.reshape(len(pictures), -1, 3).mean(1) + 1.0
        return mean / np.linalg.norm(mean, axis=1, keepdims=True)

    def subject(self, pictures: np.ndarray) -> np.ndarray:
        odds = np.exp(pictures.reshape(len(pictures), -1, 3).std(1) / 20)
        return odds / odds.sum(1, keepdims=True)

    def style(self, pictures: np.ndarray) -> np.ndarray:
        return self.style_features(pictures) ** 8


def icons_scorer(named: Sequence[str]) -> IconsScorer:
    return IconsScorer(ColourJudges(), named, "colours")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny.tiny_model_folder(tmp_path_factory.mktemp("model")))


@pytest.fixture
def recipe(tmp_path: Path) -> EvalRecipe:
    for number in range(3):
        tiny.picture(number, (64, 64)).save(tmp_path / f"ref{number}.png")
    text = (
        'name = "small"\nseeds = 2\nnum_inference_steps = 2\n'
        '[prompts]\n"a robot" = "1F916"\n"a cat" = "1F408"\n'
        '[references]\nfiles = ["ref*.png"]\n'
        "[strength]\nvalues = [0.5]\nreferences = 2\nprompts = 1\n"
    )
    (tmp_path / "small.toml").write_text(text)
    return read_eval_recipe(tmp_path / "small.toml")


@pytest.fixture(scope="module")
def finished(model: str, tmp_path_factory: pytest.TempPathFactory) -> Evaluation:
    folder = tmp_path_factory.mktemp("finished")
    for number in range(3):
        tiny.picture(number, (64, 64)).save(folder / f"ref{number}.png")
    recipe = EvalRecipe(
        name="small",
        prompts={"a robot": "1F916", "a cat": "1F408"},
        references=ReferenceRecipe(files=("ref*.png",)),
        seeds=2,
        num_inference_steps=2,
        strength=StrengthRecipe(values=(0.5,), references=2, prompts=1),
        variants={"turned": {"of": "one", "routes": turned(model)}},
        folder=folder,
    )
    return evaluate(recipe, {"one": model}, folder / "out", icons_scorer, command="deadiff eval small.toml --model one")


def turned(model: str) -> dict[str, str]:
    """The model's own table with the roles exchanged."""
    from deadiff.config import read_config

    other = {"style": "content", "content": "style"}
    return {path: other[role] for path, role in read_config(Path(model) / "deadiff").route_table.items()}


def test_every_method_is_scored_on_the_same_cells(finished: Evaluation) -> None:
    assert [m.name for m in finished.methods] == [
        "one",
        "turned",
        *(k for k in BASELINES if k not in ("words", "true")),
    ]  # none known
    assert len(finished.main_cells) == 3 * 2 * 2
    for method in finished.methods:
        assert len(finished.scores[method.name].chosen(finished.main_cells)) == 12
    curves = [c for c in finished.scores["one"].cells if c.strength == 0.5]
    assert len(curves) == 2 and not [c for c in finished.scores["plain"].cells if c.strength != 1]


def test_baselines_are_what_they_say(finished: Evaluation) -> None:
    pasted, random = finished.scores["reference"], finished.scores["random"]
    assert np.allclose(pasted.columns["style"], 1.0)  # nothing is more like the reference than itself
    for cell, picture in zip(random.cells, random.pictures, strict=True):
        assert picture.startswith("references/") and cell.reference not in picture
    plain = finished.scores["plain"]
    of_prompt = {(c.prompt, c.seed): p for c, p in zip(plain.cells, plain.pictures, strict=True)}
    assert all(
        of_prompt[c.prompt, c.seed] == p for c, p in zip(plain.cells, plain.pictures, strict=True)
    )  # whatever the reference
    pixels = [np.asarray(Image.open(finished.out / p)) for p in (plain.pictures[0], finished.scores["one"].pictures[0])]
    assert not np.array_equal(*pixels)


def test_the_same_call_draws_nothing_twice_and_replaces_what_is_lost(
    recipe: EvalRecipe, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[str] = []
    real = protocol.draw_missing

    def counted(method: Method, *arguments: object) -> int:
        drawn.extend([method.name] * real(method, *arguments))  # type: ignore[arg-type]
        return 0

    monkeypatch.setattr(protocol, "draw_missing", counted)
    out = tmp_path / "out"
    first = evaluate(recipe, {"one": model}, out, icons_scorer)
    assert drawn.count("one") == 14 and drawn.count("plain") == 4
    lost = out / first.scores["one"].pictures[5]
    before = lost.read_bytes()
    lost.unlink()
    drawn.clear()
    again = evaluate(recipe, {"one": model}, out, icons_scorer)
    assert drawn == ["one"] and abs(decoded(before) - decoded(lost.read_bytes())).max() <= 3  # drawn alone: another batch
    assert np.array_equal(again.scores["one"].columns["text"], first.scores["one"].columns["text"])
    drawn.clear()
    more = replace(recipe, prompts={**recipe.prompts, "a guitar": "1F3B8"})
    with pytest.raises(ConfigError, match="other references or prompts"):  # the references avoid the subjects of the prompts
        evaluate(more, {"one": model}, out, icons_scorer)


def decoded(png: bytes) -> np.ndarray:
    import io

    return np.asarray(Image.open(io.BytesIO(png))).astype(int)


def test_a_killed_run_keeps_the_pictures_that_were_drawn(recipe: EvalRecipe, model: str, tmp_path: Path) -> None:
    out, seen = tmp_path / "out", []

    def stop(what: str, done: int, total: int) -> None:
        seen.append(done)
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(recipe, {"one": model}, out, icons_scorer, progress=stop)
    kept = sorted((out / "pictures").rglob("*.png"))
    assert len(kept) == 4 and not list(out.rglob("*.partial"))
    stamps = {path: path.stat().st_mtime_ns for path in kept}
    evaluate(recipe, {"one": model}, out, icons_scorer)
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in stamps.items())


def test_a_model_that_was_trained_on_or_routed_otherwise_never_mixes_with_its_former_self(recipe: EvalRecipe, model: str) -> None:
    method = Method(name="one", title="one", model=model)
    stylizer = open_method(method)
    first = identity(method, stylizer, recipe)
    assert identity(method, stylizer, recipe) == first
    assert identity(method, stylizer, replace(recipe, num_inference_steps=5)) != first
    routed = open_method(replace(method, routes=turned(model)))
    assert identity(method, routed, recipe) != first
    next(stylizer.adapter.image_kv.parameters()).data.add_(1)
    from deadiff.stylizer import Stylizer

    changed = Stylizer(stylizer.pipe, stylizer.adapter, defaults=stylizer.defaults)
    assert identity(method, changed, recipe) != first


def test_the_reports_hold_every_method_and_need_nothing_from_outside(finished: Evaluation) -> None:
    page, markdown = (path.read_text() for path in write_report(finished))
    for method in finished.methods:
        assert method.title in page and method.title in markdown
    assert not re.search(r'(src|href)="(?!data:)', page) and "http" not in page.replace("http://www.w3.org/2000/svg", "")
    assert page.count("<svg") == 2 and page.count("data:image/jpeg") == 5
    for name in re.findall(r"!\[[^]]*\]\(([^)]+)\)", markdown):
        assert (finished.out / name).is_file()
    assert "deadiff eval small.toml --model one" in page
    index = open_results(finished.out)
    for name in index["scores"].values():
        assert read_scores(finished.out / name, index["scorer"]) is not None


def made_up(means: dict[str, tuple[float, float, float]], noise: float = 0.01, **claims: tuple[str, ...]) -> Evaluation:
    """An evaluation whose methods have given means of style, text and leak."""
    from deadiff.evaluation.design import Claims

    recipe = EvalRecipe(
        name="made up",
        prompts={f"prompt {i}": "1F916" for i in range(12)},
        references=ReferenceRecipe(files=("x",)),
        seeds=2,
        claims=Claims(ours="ours", **claims),  # type: ignore[arg-type]
    )
    references = [StyleReference(name=f"r{i}", kind="seen style" if i % 2 else "unseen style") for i in range(10)]
    methods = [Method(name=n, title=n.upper(), kind="plain" if n == "plain" else "model") for n in means]
    rng = np.random.default_rng(0)
    scores = {}
    for method in methods:
        cells = list(recipe.cells(method, [r.name for r in references]))
        columns = {c.name: np.full(len(cells), np.nan) for c in ICONS_COLUMNS}
        for column, value in zip(("style", "text", "leak"), means[method.name], strict=True):
            columns[column] = value + noise * rng.standard_normal(len(cells))
        scores[method.name] = Scores(cells=cells, pictures=["p.png"] * len(cells), columns=columns)
    return Evaluation(
        out=Path("."), recipe=recipe, references=references, methods=methods, scores=scores,
        folders={}, columns=ICONS_COLUMNS, scorer="made up",
    )  # fmt: skip


def outcomes(evaluation: Evaluation) -> dict[str, str]:
    return {v.claim.split(":")[0]: v.outcome for v in verdicts(evaluation, Averages(evaluation))}


def test_verdicts_follow_the_numbers() -> None:
    good = {"ours": (0.8, 0.6, 0.1), "rival": (0.85, 0.3, 0.5), "plain": (0.2, 0.61, 0.05), "without": (0.8, 0.4, 0.1)}
    found = outcomes(made_up(good, rivals=("rival",), reconstructive=("rival",), ablations=("without",)))
    assert found == {
        "no rival is better in both style and text": HOLDS,
        "text fidelity is at least 95% of the plain base's": HOLDS,
        "style is at least 90% of the best reconstructive rival's": HOLDS,
        "the gain in style over the plain base is at least 90% of that rival's (stricter)": HOLDS,
        "the reference's subject leaks least of all methods that read a reference": HOLDS,
        "what it takes away matters": HOLDS,
    }
    bad = {"ours": (0.5, 0.4, 0.6), "rival": (0.9, 0.5, 0.5), "plain": (0.2, 0.6, 0.05), "without": (0.6, 0.4, 0.5)}
    found = outcomes(made_up(bad, rivals=("rival",), reconstructive=("rival",), ablations=("without",)))
    assert set(found.values()) == {FAILS}
    assert (
        outcomes(made_up({**good, "without": good["ours"]}, noise=0.1, ablations=("without",)))["what it takes away matters"]
        == OPEN
    )


def test_what_nobody_measured_gets_no_verdict() -> None:
    nan = float("nan")
    found = outcomes(made_up({"ours": (0.5, nan, nan), "rival": (0.6, nan, nan)}, rivals=("rival",), reconstructive=("rival",)))
    assert list(found) == ["style is at least 90% of the best reconstructive rival's"]


def test_differences_are_paired_and_seeds_are_averaged_first() -> None:
    evaluation = made_up({"ours": (0.5, 0.5, 0.5), "rival": (0.5, 0.5, 0.5)}, noise=0.0)
    hard = np.array([int(c.prompt.split()[1]) / 10 for c in evaluation.scores["ours"].cells])  # a prompt's own difficulty
    for name, shift in (("ours", 0.0), ("rival", 0.02)):
        evaluation.scores[name].columns["text"][:] = hard + shift
    averages = Averages(evaluation)
    assert averages.count == 120  # not 240
    gap = averages.difference("rival", "ours", "text")
    assert gap is not None and gap.low == pytest.approx(0.02) and gap.high == pytest.approx(0.02)
    alone = averages.mean("ours", "text")
    assert alone is not None and alone.high - alone.low > 0.2  # the prompts differ, and 12 of them are few
    part = averages.mean("ours", "text", references={"r1"})
    assert part is not None and part.count == 12
    assert averages.mean("ours", "style_hit") is None  # a score that applies to nothing


def test_leak_wins_and_hits_are_counted_by_name(tmp_path: Path) -> None:
    """Pictures whose only varied channel is that of the prompt's, or of the reference's subject."""
    from deadiff.evaluation.scores import Shot

    def varied(channel: int, name: str) -> Path:
        pixels = np.full((8, 8, 3), 100, np.uint8)
        pixels[::2, :, channel] = 240
        Image.fromarray(pixels).save(tmp_path / name)
        return tmp_path / name

    reference = StyleReference(name="r", style="green", subject="1F408")
    pictures = [varied(0, "prompt.png"), varied(1, "leak.png")]
    shots = [
        Shot(picture=p, reference=reference, reference_picture=pictures[1], prompt="a robot", subject="1F916") for p in pictures
    ]
    found = icons_scorer(["1F916", "1F408"]).score(shots)
    assert list(found["leak_wins"]) == [0.0, 1.0] and list(found["text_hit"]) == [1.0, 0.0]
    assert list(found["style_hit"]) == [0.0, 1.0] and found["style"][1] == pytest.approx(1.0)
    assert found["text"][0] + found["leak"][0] == pytest.approx(1.0)  # among the named subjects
    with pytest.raises(DataError, match="know no subject '1F40B'"):
        icons_scorer(["1F40B"])


def test_the_gram_distance_is_measured_where_a_network_is_given(tmp_path: Path) -> None:
    """A texture is far from a flat ground and at no distance from itself, wherever it lies."""
    from deadiff.evaluation.scores import Shot

    class Edges:
        name = "edges"

        def maps(self, pictures: np.ndarray) -> list[np.ndarray]:
            grey = pictures.mean(3) / 255
            return [np.stack([np.abs(np.diff(grey, axis=1))[:, :, :-1], np.abs(np.diff(grey, axis=2))[:, :-1]], 1)]

    striped = np.zeros((16, 16, 3), np.uint8)
    striped[::2] = 255
    made = {"striped": striped, "shifted": 255 - striped, "flat": np.full_like(striped, 128)}
    for name, pixels in made.items():
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    reference = StyleReference(name="r", style="green", subject="1F408")
    shots = [
        Shot(
            picture=tmp_path / f"{n}.png", reference=reference, reference_picture=tmp_path / "striped.png", prompt="", subject=""
        )
        for n in made
    ]
    scorer = IconsScorer(ColourJudges(), ["1F916"], "colours", Edges())
    assert [column.name for column in scorer.columns][-1] == "gram" and scorer.name.endswith("and edges")
    assert scorer.score(shots)["gram"] == pytest.approx([0, 0, 1])
    assert "gram" not in icons_scorer(["1F916"]).score(shots)


def test_scores_survive_a_round_trip_and_other_judges_start_anew(tmp_path: Path) -> None:
    cells = [Cell(reference="r", prompt="a cat, 'grey'", seed=s, strength=0.5) for s in range(3)]
    scores = Scores(cells=cells, pictures=["a", "b", "c"], columns={"style": np.array([0.1, np.nan, 0.3])})
    write_scores(tmp_path / "s" / "one.parquet", scores, "judge A")
    back = read_scores(tmp_path / "s" / "one.parquet", "judge A")
    assert (
        back is not None
        and back.cells == cells
        and np.array_equal(back.columns["style"], scores.columns["style"], equal_nan=True)
    )
    assert read_scores(tmp_path / "s" / "one.parquet", "judge B") is None
    with pytest.raises(DataError, match="1 cells have no scores"):
        back.chosen([Cell(reference="r", prompt="a dog", seed=0)])
    (tmp_path / "s" / "one.parquet").write_bytes(b"PAR1 cut short")
    with pytest.raises(DataError, match="cannot be read"):
        read_scores(tmp_path / "s" / "one.parquet", "judge A")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("prompts = [", "is not TOML"),
        ('[references]\nfiles = ["*"]', "prompts"),
        ('prompts = ["a cat"]', "references"),
        ('prompts = ["a cat"]\n[references]\nseen = 0', "no references"),
        ('prompts = ["a cat"]\ncolour = 1\n[references]\nseen = 1', "unknown key 'colour'"),
        ('prompts = ["a cat"]\n[references]\nseen = 1\nsome = 2', "unknown key 'some'"),
        ('prompts = ["a cat"]\nseeds = 0\n[references]\nseen = 1', "seeds is 0"),
        ('prompts = ["a cat"]\n[references]\nseen = 1\n[variants.x]\nof = "y"', "expected of"),
        ('prompts = ["a cat"]\nreferences = 4', "expected a table"),
    ],
)
def test_a_bad_evaluation_recipe_is_one_clear_line(text: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text(text)
    with pytest.raises(ConfigError, match=says) as caught:
        read_eval_recipe(tmp_path / "r.toml")
    assert "\n" not in str(caught.value)


def test_a_model_may_not_take_a_baselines_name(recipe: EvalRecipe, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="like a baseline"):
        evaluate(recipe, {"plain": "icons"}, tmp_path / "out", icons_scorer)
    with pytest.raises(ConfigError, match="no model to evaluate"):
        evaluate(recipe, {}, tmp_path / "out", icons_scorer)


def test_seeds_differ_between_prompts_and_agree_between_methods(recipe: EvalRecipe) -> None:
    method = Method(name="one", title="one")
    cells = list(recipe.cells(method, ["a", "b"]))
    assert len({(c.prompt, c.seed) for c in cells}) == 4 and len({c.seed for c in cells}) == 4
    paths = {picture_of(method, "f", c, [StyleReference(name="a"), StyleReference(name="b")], Path("o")) for c in cells}
    assert len(paths) == len(cells)  # no picture overwrites another


def test_spaced_items_start_with_the_first_and_repeat_none() -> None:
    assert spaced(range(32), 8) == [0, 4, 8, 12, 16, 20, 24, 28]
    assert spaced([1, 2], 5) == [1, 2]


def test_ticks_are_round_and_enclose() -> None:
    for low, high in ((0.0, 1.0), (0.123, 0.131), (-3.0, 9000.0), (0.5, 0.5)):
        found = ticks(low, high)
        assert found[0] <= low and found[-1] >= high and 2 <= len(found) <= 12
        assert len({round(b - a, 9) for a, b in zip(found, found[1:], strict=False)}) == 1


def test_a_plot_leaves_out_what_is_not_a_number_and_escapes_what_is_text() -> None:
    svg = scatter([Series(title="<b> & co", points=[Point(x=0.1, y=float("nan")), Point(x=0.2, y=0.3)])], "x", "y")
    assert svg.count("<circle") == 1 and "&lt;b&gt; &amp; co" in svg and "nan" not in svg
    import xml.etree.ElementTree as ElementTree

    ElementTree.fromstring(svg)


def test_summary_targets_are_the_issues() -> None:
    assert (summary.TEXT_KEPT, summary.STYLE_KEPT) == (0.95, 0.90)
