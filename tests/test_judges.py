"""The judges: trained, packed, loaded and asked in miniature; those in the package on art that they never learned from."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from deadiff.apps.cli import run as command
from deadiff.data.build import BuildConfig, build
from deadiff.data.splits import HELD_OUT_SETS
from deadiff.data.store import read_split
from deadiff.errors import CheckpointError, ConfigError, DataError
from deadiff.evaluation import icons_figures, judge_report, judge_training
from deadiff.evaluation.icons_sheets import draw_sheets
from deadiff.evaluation.judges import FOLDER, Judges, load_judges, style_centroids
from deadiff.evaluation.judges.networks import NetworkConfig, prepare
from deadiff.evaluation.metrics import leakage

ART = Path(__file__).parent / "fixtures" / "art"
LOOP = "[loop]\nsteps = 5\nbatch_size = 8\nlearning_rate = 2e-3\nwarmup_steps = 2\nlog_steps = 2\nprecision = 'fp32'\n"
MODEL = "[model]\nsize = 32\nwidths = [8, 12, 16]\ndepths = [1, 1]\n"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    build(folder, BuildConfig(size=64, renditions=2), art=ART)
    return folder


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    for name, more in {"subject": "", "style": "embedding = 8\n"}.items():
        (folder / f"{name}.toml").write_text(f"judge = '{name}'\n{LOOP}{MODEL}{more}")
        judge_training.run(folder / f"{name}.toml", data, folder)
    return folder


@pytest.fixture(scope="module")
def tiny(data: Path, trained: Path) -> Judges:
    judge_report.pack(trained, data, trained / "packed")
    return load_judges(trained / "packed")


def test_judges_are_trained_packed_and_asked(tiny: Judges, trained: Path) -> None:
    pictures = np.random.default_rng(0).integers(0, 256, (5, 64, 64, 3), np.uint8)
    assert tiny.subject(pictures).shape == (5, len(tiny.subjects)) and len(tiny.labels) == len(tiny.subjects)
    np.testing.assert_allclose(tiny.subject(pictures).sum(1), 1, atol=1e-5)
    assert tiny.style(pictures).shape == (5, len(tiny.styles))
    np.testing.assert_allclose(np.linalg.norm(tiny.style_features(pictures), axis=1), 1, atol=1e-5)
    table = json.loads((trained / "packed" / "judges.json").read_text())
    assert table["accuracy"] and table["trained"]["subject"]["samples"] == 40
    assert any(style in HELD_OUT_SETS for style in tiny.styles)  # unseen styles are known by their centroids


def test_a_judge_is_trained_by_deadiff_train(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "subject.toml").write_text(f"judge = 'subject'\n{LOOP}{MODEL}")
    assert command(["train", str(tmp_path / "subject.toml"), "--data", str(data), "--run", str(tmp_path / "run")]) == 0
    assert "step 4  loss" in capsys.readouterr().out and (tmp_path / "run" / "subject" / "weights.safetensors").is_file()


def test_an_answer_depends_neither_on_the_batch_nor_on_the_size(tiny: Judges) -> None:
    pictures = np.random.default_rng(1).integers(0, 256, (70, 32, 32, 3), np.uint8)
    alone = np.concatenate([tiny.subject(pictures[i : i + 1]) for i in (0, 64, 69)])
    np.testing.assert_allclose(tiny.subject(pictures)[[0, 64, 69]], alone, atol=1e-5)
    large = pictures[:3].repeat(4, 1).repeat(4, 2)
    np.testing.assert_allclose(tiny.subject(large), tiny.subject(pictures[:3]), atol=1e-5)


def test_no_test_picture_is_learned_from_or_shapes_a_centroid(data: Path) -> None:
    rows = judge_report.all_rows(data)
    tests, shaping = judge_report.choose(rows)
    assert tests and shaping and not tests.keys() & shaping.keys()
    for i in tests:
        assert not judge_training.taught_subject(rows[i]) and not judge_training.taught_style(rows[i])
    drawings = {(rows[i]["subject"], rows[i]["family"]) for i, group in tests.items() if group != "unseen sets"}
    learned = {(row["subject"], row["family"]) for row in rows if judge_training.taught_subject(row)}
    assert drawings and not drawings & learned  # not in another rendition either
    assert not any(
        row["set"] in HELD_OUT_SETS for row in rows if judge_training.taught_subject(row) or judge_training.taught_style(row)
    )


def test_a_resumed_judge_equals_an_unbroken_one(data: Path, trained: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "subject.toml"
    recipe.write_text(f"judge = 'subject'\n{LOOP}{MODEL}".replace("steps = 5", "steps = 3", 1))
    judge_training.run(recipe, data, tmp_path)
    recipe.write_text(f"judge = 'subject'\n{LOOP}{MODEL}")
    judge_training.run(recipe, data, tmp_path)
    whole, parts = ((folder / "subject" / "weights.safetensors").read_bytes() for folder in (trained, tmp_path))
    assert whole == parts


def test_the_centroid_is_the_mean_direction() -> None:
    features = np.array([[1.0, 0], [0, 1], [0, -1]])
    styles, centroids = style_centroids(features, ["a", "a", "b"])
    assert styles == ["a", "b"]
    np.testing.assert_allclose(centroids, [[2**-0.5, 2**-0.5], [0, -1]], atol=1e-6)
    with pytest.raises(DataError, match="one name a picture"):
        style_centroids(features, ["a"])


def test_augmented_pictures_stay_pictures_and_are_a_function_of_the_draw(data: Path) -> None:
    pictures, rows = judge_training.read_pictures(data, judge_training.taught_subject, 32)
    task = judge_training.SubjectTask(NetworkConfig(size=32, widths=(8, 8), depths=(1,)), pictures, rows, 0, 0.5)
    (x, target), (again, _), (other, _) = task.batch(3, 16), task.batch(3, 16), task.batch(4, 16)
    assert torch.equal(x, again) and not torch.equal(x, other)
    assert x.shape == (16, 3, 32, 32) and x.abs().max() <= 1.001 and x.std() > 0.1
    assert target.max() < len(task.names)


def test_small_pictures_are_averages_of_areas() -> None:
    picture = torch.zeros(1, 4, 4, 3, dtype=torch.uint8)
    picture[0, :2, :2] = 255
    assert prepare(picture, 2)[0, 0].tolist() == [[1, -1], [-1, -1]]
    assert prepare(torch.full((1, 5, 7, 3), 255, dtype=torch.uint8), 4).min() > 0.999


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("judge = 'taste'", "judge = subject or style"),
        ("judge = 'style'\nsize = 3", "unknown key 'size'"),
        ("judge = ", "TOML"),
        (
            "judge = 'style'\n[loop]\nsteps = 1\nbatch_size = 1\n[model]\nsize = 30\nwidths = [8, 8, 8]\ndepths = [1, 1]",
            "multiple",
        ),
        ("judge = 'style'\n[loop]\nsteps = 1\nbatch_size = 1\n[model]\nsize = 32\nwidths = [8, 8]\ndepths = [1, 1]", "stages"),
    ],
)
def test_a_bad_recipe_of_a_judge_is_one_clear_line(text: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "judge.toml").write_text(text)
    with pytest.raises(ConfigError, match=says):
        judge_training.run(tmp_path / "judge.toml", tmp_path, tmp_path)


def test_wrong_pictures_names_and_folders_are_refused(tiny: Judges, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="expected uint8"):
        tiny.subject(np.zeros((2, 8, 8, 3), np.float32))
    with pytest.raises(DataError, match="no subject"):
        tiny.subject_number("robot")
    with pytest.raises(CheckpointError, match="holds no judges"):
        load_judges(tmp_path)


def test_trivial_answers_are_scored_in_the_order_they_deserve(tiny: Judges, data: Path) -> None:
    found = judge_report.baselines(tiny, data, 20)
    style = [found[name]["style like the reference's (SS)"] for name in found]
    assert list(found) == ["the true picture", "the reference pasted back", "a random picture"]
    assert style[1] == 1.0 == max(style)
    assert (
        found["the reference pasted back"]["reference's subject preferred"]
        != found["the true picture"]["reference's subject preferred"]
    )


# ---- the six figures ----


class Stand_in:  # noqa: N801
    """A Stylizer that draws by rule: the content reference, the style reference, or noise of its seed."""

    class defaults:  # noqa: N801
        num_inference_steps, guidance_scale = 4, 5.0

    fingerprint = "none"

    def __init__(self) -> None:
        self.jobs: list = []

    def __call__(self, prompts, *, num_inference_steps=None, **options):
        if isinstance(prompts, str):
            return self
        self.jobs += prompts
        self.images = []
        for job in prompts:
            shown = job.content or job.style
            shown = shown[0][0] if isinstance(shown, list) else shown
            noise = np.random.default_rng(job.seed).integers(0, 256, (64, 64, 3), np.uint8)
            self.images.append(shown or Image.fromarray(noise))
        return self


def test_the_six_figures_are_measured_and_a_pasted_reference_is_caught(tiny: Judges, data: Path, tmp_path: Path) -> None:
    stand_in = Stand_in()
    found = icons_figures.measure("none", tmp_path, 20, data=data, stylizer=stand_in, judges=tiny)
    figures = found["figures"]
    assert [name.split()[0] for name in figures] == ["1", "2", "3", "4", "5", "6"]
    assert json.loads((tmp_path / "figures.json").read_text())["figures"] == json.loads(json.dumps(figures))
    with Image.open(tmp_path / "figures.png") as sheet:
        assert sheet.width > 400
    for name in ("2 seen styles, unseen combinations", "3 unseen styles"):
        named = figures[name]["style named"]
        assert 0 <= named["low"] <= named["estimate"] <= named["high"] <= 1 and named["count"] > 0
    # each picture is drawn from its own prompt, reference and seed; drawn again it is the same
    again = Stand_in()
    icons_figures.measure("none", tmp_path, 20, data=data, stylizer=again, judges=tiny)
    assert [(j.prompt, j.seed) for j in again.jobs] == [(j.prompt, j.seed) for j in stand_in.jobs]


def test_references_are_held_out_and_never_show_what_the_prompt_asks_for(tiny: Judges, data: Path) -> None:
    art = icons_figures.HeldOut(data, tiny, 0)
    for split in ("unseen_combination", "unseen_style"):
        draws = art.styled(split, 40)
        assert draws
        for d in draws:
            row = art.rows[d.style]
            assert row["split"] == split and row["reference_holdout"] and row["subject"] != d.subject
            if split == "unseen_combination":
                assert judge_training.split_of(d.subject, row["set"]) == "unseen_combination"
    assert all(
        art.rows[d.content]["rendition"] == "plain" and d.subject == art.rows[d.content]["subject"] for d in art.redrawn(20)
    )
    other = icons_figures.HeldOut(data, tiny, 1)
    assert [d.subject for d in other.prompts(10)] != [d.subject for d in art.prompts(10)]


def test_true_pictures_are_the_prompts_subjects_in_the_references_styles(tiny: Judges, data: Path) -> None:
    art = icons_figures.HeldOut(data, tiny, 0)
    draws = art.styled("unseen_style", 40)
    found = {i: number for i, d in enumerate(draws) if (number := art.true_picture(d)) is not None}
    assert found
    held = {(icons_figures.style_name(row), row["subject"]) for row in art.rows}
    for i, d in enumerate(draws):
        style = icons_figures.style_name(art.rows[d.style])
        assert (i in found) == ((style, d.subject) in held)
        if i in found:
            row = art.rows[found[i]]
            assert (icons_figures.style_name(row), row["subject"]) == (style, d.subject)


def test_contact_sheets_are_chosen_by_lot_and_failures_by_score(tiny: Judges, data: Path, tmp_path: Path) -> None:
    stand_in, label = Stand_in(), sorted(icons_figures.HeldOut(data, tiny, 0).labels.values())[0]
    written = draw_sheets(stand_in, tmp_path, data=data, judges=tiny, prompts=("a robot that nobody knows", label), references=4)
    assert {path.stem for path in written} == {"table", "strength", "mix", "content", "both", "failures"}
    for path in written:
        with Image.open(path) as sheet:
            assert sheet.width > 200 and sheet.height > 100
    table = stand_in.jobs[:8]
    assert [job.prompt for job in table] == [stand_in.jobs[0].prompt] * 4 + [label] * 4 and len({job.seed for job in table}) == 1
    swept = [job.strength for job in stand_in.jobs if job.strength is not None]
    assert sorted(set(swept)) == [0.0, 0.5, 1.0, 1.5, 2.0]
    assert all(weight > 0 for job in stand_in.jobs if isinstance(job.style, list) for _, weight in job.style)


# ---- the judges of the package ----


@pytest.fixture(scope="module")
def packaged() -> Judges:
    return load_judges()


@pytest.fixture(scope="module")
def unseen(data: Path, packaged: Judges) -> tuple[np.ndarray, list[dict]]:
    """Real art of a set that no judge has learned from."""
    rows = [row for row in read_split(data, "unseen_style", parts=("plain",)) if row["subject"] in packaged.subjects]
    return np.stack([row.pop("image") for row in rows]), rows


def test_the_packaged_judges_are_small_and_name_real_art_they_never_saw(packaged: Judges, unseen) -> None:
    assert sum(path.stat().st_size for path in FOLDER.glob("*.safetensors")) < 8e6
    pictures, rows = unseen
    seen = packaged.subject(pictures)
    right = np.array([packaged.subjects[i] == row["subject"] for i, row in zip(seen.argmax(1), rows, strict=True)])
    assert len(right) >= 20 and right.mean() > 0.3  # of 1,647; chance is 0.0006


def test_the_trivial_baselines_are_scored_as_they_should_be(packaged: Judges, unseen) -> None:
    pictures, rows = unseen
    features = packaged.style_features(pictures)
    n = len(rows)
    shifted = np.roll(np.arange(n), 1)  # the prompt asks for the neighbour's subject, in the style of one's own reference
    number = np.array([packaged.subject_number(row["subject"]) for row in rows])
    pasted, true = (leakage(packaged.subject(pictures[which]), number[shifted], number) for which in (np.arange(n), shifted))
    noise = np.random.default_rng(0).integers(0, 256, pictures.shape, np.uint8)
    random = leakage(packaged.subject(noise), number[shifted], number)
    assert (
        pasted.preferred.mean() > 0.8 > 0.2 > true.preferred.mean()
    )  # the reference pasted back leaks, the true picture does not
    assert true.prompt.mean() > 0.3 > 0.1 > max(random.prompt.mean(), pasted.prompt.mean())
    own = (features * features).sum(1).mean()
    alike = (features * features[shifted]).sum(1).mean()
    chance = (features * packaged.style_features(noise)).sum(1).mean()
    assert own == pytest.approx(1) and own > alike > chance + 0.2  # pasted, true, random
