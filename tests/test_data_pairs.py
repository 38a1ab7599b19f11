"""Pairs of icons and of made-up records: they share what they should, the reasons are written down, and nothing dominates."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from deadiff.apps import cli
from deadiff.data import features, pairs, store
from deadiff.data.build import BuildConfig, build
from deadiff.data.pair_source import PairSource
from deadiff.data.pairs import PairConfig, make_pairs, pair
from deadiff.data.picture_store import square
from deadiff.data.records import Records, codes, read_records, style_names
from deadiff.data.shard_jobs import run_here
from deadiff.data.similarity import LOOKS, THUMB, difference, looks_of, quantised, style_distance, thumbnail_of
from deadiff.data.splits import TRAIN
from deadiff.errors import CheckpointError, ConfigError, DataError
from deadiff.training.objectives import Objective

ART = Path(__file__).parent / "fixtures" / "art"


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """24 subjects in three sets and two renditions of each, paired."""
    folder = tmp_path_factory.mktemp("icons") / "set"
    build(folder, BuildConfig(size=32, renditions=2), art=ART)
    make_pairs(folder)
    return folder


def index(folder: Path, name: str = "pairs") -> list[dict]:
    return pyarrow.parquet.read_table(folder / "pairs" / f"{name}.parquet").to_pylist()


def made_up(
    folder: Path, styles, subjects, *, looks=None, thumbnails=None, hidden=(), split=None
) -> tuple[Records, features.Features]:
    """Records without pictures; looks by default the style's own, thumbnails at random."""
    count = len(styles)
    folder.mkdir(parents=True, exist_ok=True)
    style, style_texts = codes(pyarrow.array(styles))
    subject, subject_texts = codes(pyarrow.array(subjects))
    rng = np.random.default_rng(0)
    own = rng.integers(-60, 60, (len(style_texts), LOOKS)).astype(np.int8)
    np.save(folder / "looks.npy", own[style] if looks is None else looks)
    random = rng.integers(0, 255, (count, 3 * THUMB**2), dtype=np.uint8)
    np.save(folder / "thumbnails.npy", random if thumbnails is None else thumbnails)
    split, splits = codes(pyarrow.array(split or [TRAIN] * count))
    texts = pyarrow.array(subjects)
    records = Records(
        folder=folder, shards=(folder / "pictures" / "0.parquet",), starts=np.array([0, count]), style=style, styles=style_texts,
        subject=subject, subjects=subject_texts, split=split.astype(np.int8), splits=splits,
        hidden=np.isin(np.arange(count), hidden),
        label=texts, caption=texts, sha256=pyarrow.array([f"{n * 2654435761 % 2**64:016x}" * 4 for n in range(count)]),
    )  # fmt: skip
    return records, features.Features(looks=folder / "looks.npy", thumbnails=folder / "thumbnails.npy")


# ---------------------------------------------------------------- what pairs are


def test_pairs_share_what_they_should_and_never_a_picture(data):
    records = read_records(data)
    found = index(data)
    tasks = Counter(row["objective"] for row in found)
    assert tasks["stre"] > 50 and tasks["sere"] > 50
    for row in found:
        a, b = row["reference"], row["target"]
        assert a != b and records.sha256[a].as_py() != records.sha256[b].as_py()
        same_style, same_subject = records.style[a] == records.style[b], records.subject[a] == records.subject[b]
        assert (same_style, same_subject) == ((True, False) if row["objective"] == "stre" else (False, True))
        assert records.splits[records.split[a]] == records.splits[records.split[b]] == TRAIN
        assert not records.hidden[a]
    assert len({(row["objective"], row["reference"], row["target"]) for row in found}) == len(found)


def test_every_pair_passes_the_thresholds_and_every_dropped_one_fails_the_one_it_names(data):
    limits = json.loads((data / "pairs" / "pairs.json").read_text())["thresholds"]
    for row in index(data):
        assert row["difference"] >= limits["near_duplicate"]
        far = row["style_distance"]
        assert (
            far <= limits["looks_diverge"] * 1.000001 if row["objective"] == "stre" else far >= limits["looks_alike"] * 0.999999
        )
    reasons = Counter()
    for row in index(data, "dropped"):
        reasons[row["reason"]] += 1
        if row["reason"] == "looks_diverge":
            assert row["objective"] == "stre" and row["style_distance"] > limits["looks_diverge"] * 0.999999
        elif row["reason"] == "looks_alike":
            assert row["objective"] == "sere" and row["style_distance"] < limits["looks_alike"] * 1.000001
        elif row["reason"] == "near_duplicate":
            assert row["difference"] < limits["near_duplicate"] * 1.000001
        elif row["reason"] == "alone":
            assert row["reference"] == -1
    assert set(reasons) <= set(pairs.REASONS) - {"kept"} and reasons["looks_diverge"] > 0


def test_the_statistics_are_those_of_the_files(data):
    said = json.loads((data / "pairs" / "pairs.json").read_text())["statistics"]
    found, dropped = index(data), index(data, "dropped")
    for task in ("stre", "sere"):
        own = [row for row in found if row["objective"] == task]
        assert said[task]["pairs"] == len(own)
        assert said[task]["targets"] == len({row["target"] for row in own})
        counts = Counter(row["reason"] for row in dropped if row["objective"] == task)
        assert {reason: count for reason, count in said[task]["dropped"].items() if count} == counts
    assert not (data / "pairs" / ".work").exists()


def test_the_numbers_say_which_picture_is_meant(data):
    named = pyarrow.parquet.read_table(data / "pairs" / "pictures.parquet").to_pylist()
    records = read_records(data)
    for number in (0, 77, len(named) - 1):
        row = store.read_rows(data / named[number]["shard"])[named[number]["row"]]
        assert row["sha256"] == named[number]["sha256"] and row["subject"] == named[number]["subject"]
        assert records.place(number) == (data / named[number]["shard"], named[number]["row"])


def test_the_same_seed_gives_the_same_bytes_on_any_number_of_processes(data, tmp_path, monkeypatch):
    monkeypatch.setattr(pairs, "CHUNK", 100)
    for folder, runner in ((tmp_path / "one", run_here(1)), (tmp_path / "two", run_here(2))):
        make_pairs(data, folder, run=runner)
    for name in ("pairs", "pictures"):
        assert (tmp_path / "one" / f"{name}.parquet").read_bytes() == (tmp_path / "two" / f"{name}.parquet").read_bytes()
        assert (data / "pairs" / f"{name}.parquet").read_bytes() == (tmp_path / "one" / f"{name}.parquet").read_bytes()
    make_pairs(data, tmp_path / "other", PairConfig(seed=1))
    assert (tmp_path / "one" / "pairs.parquet").read_bytes() != (tmp_path / "other" / "pairs.parquet").read_bytes()


def test_a_killed_run_goes_on_with_the_parts_that_are_there(data, tmp_path, monkeypatch):
    monkeypatch.setattr(pairs, "CHUNK", 100)

    def stopped(what, jobs, progress):
        for job in jobs[: len(jobs) // 2]:
            job.run()
        raise KeyboardInterrupt

    records, found = read_records(data), features.embed(read_records(data))
    with pytest.raises(KeyboardInterrupt):
        pair(records, found, tmp_path, PairConfig(), run=stopped)
    ran = []

    def rest(what, jobs, progress):
        ran.extend(job for job in jobs if not job.done())
        run_here()(what, jobs, progress)

    pair(records, found, tmp_path, PairConfig(), run=rest)
    assert 0 < len(ran) < 8
    assert (tmp_path / "pairs.parquet").read_bytes() == (data / "pairs" / "pairs.parquet").read_bytes()


# ---------------------------------------------------------------- made-up records


def test_near_duplicates_and_equal_pictures_are_never_paired(tmp_path):
    styles, subjects = ["a"] * 6, ["cat", "dog", "owl", "cow", "bee", "ant"]
    thumbnails = np.random.default_rng(1).integers(0, 255, (6, 3 * THUMB**2), dtype=np.uint8)
    thumbnails[1] = np.clip(thumbnails[0].astype(int) + 2, 0, 255)  # picture 1 looks like picture 0
    records, found = made_up(tmp_path, styles, subjects, thumbnails=thumbnails)
    records = replace(records, sha256=pyarrow.array(["0" * 64] * 2 + records.sha256[2:].to_pylist()))
    equal = replace(records, sha256=pyarrow.array([f"{n:016x}" * 4 for n in (0, 1, 2, 3, 4, 4)]))
    note = pair(equal, found, tmp_path / "pairs", PairConfig(per_target=5, candidates=8, balance=0))
    kept = {frozenset((row["reference"], row["target"])) for row in index(tmp_path) if row["objective"] == "stre"}
    assert frozenset((0, 1)) not in kept and frozenset((4, 5)) not in kept and len(kept) == 13
    assert note["statistics"]["stre"]["dropped"]["near_duplicate"] == 2 == note["statistics"]["stre"]["dropped"]["same_picture"]


def test_style_pairs_that_look_like_two_styles_are_dropped(tmp_path):
    styles = ["a"] * 20 + ["b"] * 20
    looks = np.where(np.arange(40)[:, None] < 20, 30, -30) * np.ones((40, LOOKS))
    looks[7] = -60  # labelled a, drawn rather like b
    records, found = made_up(tmp_path, styles, [f"thing {n}" for n in range(40)], looks=looks.astype(np.int8))
    pair(records, found, tmp_path / "pairs", PairConfig(looks_quantile=0.1, balance=0))
    assert not any(7 in (row["reference"], row["target"]) for row in index(tmp_path))
    dropped = [row for row in index(tmp_path, "dropped") if row["reason"] == "looks_diverge"]
    assert dropped and all(7 in (row["reference"], row["target"]) for row in dropped)


def test_no_style_and_no_subject_dominates(tmp_path):
    rng = np.random.default_rng(0)
    styles = ["popular"] * 900 + [f"rare {n % 30}" for n in range(600)]
    subjects = ["cat" if rng.random() < 0.3 else f"thing {rng.integers(60)}" for _ in styles]
    records, found = made_up(tmp_path, styles, subjects)
    free = pair(records, found, tmp_path / "free", PairConfig(balance=0))["statistics"]
    note = pair(records, found, tmp_path / "pairs", PairConfig(balance=2.0))["statistics"]
    for task in ("stre", "sere"):
        assert free[task]["pairs_per_style"]["most"] > 2 * free[task]["pairs_per_style"]["median"]
        assert note[task]["pairs_per_style"]["most"] <= note[task]["caps"]["style"]
        assert note[task]["pairs_per_subject"]["most"] <= note[task]["caps"]["subject"]
        assert note[task]["dropped"]["style_cap"] > 0
    own = [row for row in index(tmp_path) if row["objective"] == "sere"]
    for end in ("reference", "target"):
        assert Counter(records.style[row[end]] for row in own).most_common(1)[0][1] <= note["sere"]["caps"]["style"]
    few = pair(records, found, tmp_path / "few", PairConfig(max_per_style=5, max_per_subject=3))["statistics"]["stre"]
    assert few["pairs_per_style"]["most"] <= 5 and few["pairs_per_subject"]["most"] <= 3


def test_every_picture_is_a_reference_about_as_often_as_a_target(tmp_path):
    records, found = made_up(tmp_path, ["a", "b"] * 200, [f"thing {n // 2}" for n in range(400)])
    pair(records, found, tmp_path / "pairs", PairConfig(balance=0))
    own = [row for row in index(tmp_path) if row["objective"] == "stre"]
    assert set(Counter(row["reference"] for row in own).values()) == {2} == set(Counter(row["target"] for row in own).values())


def test_held_back_pictures_are_targets_only_and_splits_do_not_mix(tmp_path):
    split = [TRAIN] * 30 + ["unseen_style"] * 30
    records, found = made_up(tmp_path, ["a"] * 60, [f"thing {n}" for n in range(60)], hidden=[3, 40], split=split)
    pair(records, found, tmp_path / "pairs", PairConfig(balance=0))
    own = index(tmp_path)
    assert {row["target"] for row in own} == set(range(30)) and 3 not in {row["reference"] for row in own}
    pair(records, found, tmp_path / "pairs", PairConfig(balance=0, split="unseen_style"))
    assert {row["target"] for row in index(tmp_path)} == set(range(30, 60))
    with pytest.raises(ConfigError, match="no picture is of the split 'test'"):
        pair(records, found, tmp_path / "pairs", PairConfig(split="test"))


def test_a_style_or_subject_that_stands_alone_is_said_to(tmp_path):
    records, found = made_up(tmp_path, ["a", "b", "c"], ["cat", "dog", "owl"])
    note = pair(records, found, tmp_path / "pairs", PairConfig())["statistics"]
    for task in ("stre", "sere"):
        assert note[task]["pairs"] == 0 and note[task]["dropped"]["alone"] == 3
    assert len(index(tmp_path, "dropped")) == 6


@pytest.mark.parametrize("count", [1, 2, 5, 1000])
def test_a_circle_holds_every_group_once_in_a_random_order(count):
    rng = np.random.default_rng(count)
    group = rng.integers(0, 7, count)
    target = rng.random(count) < 0.8
    shown = target & (rng.random(count) < 0.8)
    order, slot, start = pairs.circle(group, target, shown, seed=0)
    assert sorted(order) == np.flatnonzero(shown).tolist()
    for number in np.unique(group):
        own = order[start[number] : start[number + 1]]
        assert (group[own] == number).all()
    assert all(order[slot[number]] == number for number in np.flatnonzero(shown))


# ---------------------------------------------------------------- looks


def test_looks_tell_renderings_apart_and_know_the_same_hand(data):
    rows = [row for row in store.read_split(data, TRAIN) if row["rendition"] == "plain"]
    rows = [row for row in rows if row["set"] in ("twemoji", "fluent-emoji-high-contrast")]
    raw = np.array([looks_of(row["image"]) for row in rows])
    looks = quantised(raw, raw.mean(axis=0), raw.std(axis=0) + 1e-6)
    hand = np.array([row["set"] for row in rows])
    i, j = np.triu_indices(len(rows), 1)
    far = style_distance(looks[i], looks[j])
    same = hand[i] == hand[j]
    assert far[same].mean() < 0.8 * far[~same].mean()
    assert (style_distance(looks, looks) == 0).all()


def test_differences_are_measured_in_shares_of_the_full_scale():
    black, white = np.zeros((1, 192), np.uint8), np.full((1, 192), 255, np.uint8)
    assert difference(black, white) == 1 and difference(white, white) == 0
    assert thumbnail_of(np.zeros((33, 50, 3), np.uint8)).shape == (192,)
    for picture in (np.zeros((3, 200, 3), np.uint8), np.full((64, 64, 3), 255, np.uint8)):
        assert np.isfinite(looks_of(picture)).all()


def test_features_are_computed_once_and_again_for_a_changed_shard(data, tmp_path):
    import shutil

    shutil.copytree(data / "plain", tmp_path / "plain")
    features.embed(read_records(tmp_path))
    first = {path.name: path.stat().st_mtime_ns for path in (tmp_path / ".features").iterdir()}
    features.embed(read_records(tmp_path))
    assert first == {path.name: path.stat().st_mtime_ns for path in (tmp_path / ".features").iterdir()}
    shard = tmp_path / "plain" / "noto.parquet"
    rows = store.read_rows(shard)
    store.write_shard(shard, [{**row, "image": row["image"]["bytes"]} for row in rows[:-1]])
    features.embed(read_records(tmp_path))
    now = {path.name: path.stat().st_mtime_ns for path in (tmp_path / ".features").iterdir()}
    assert {name for name in first if now[name] != first[name]} == {"plain-noto.npz", "looks.npy", "thumbnails.npy", "whole.json"}


def test_a_clip_tower_tells_subjects_apart_where_one_is_given(data, tmp_path):
    import small_models

    small_models.vision().save_pretrained(tmp_path / "clip")
    note = make_pairs(data, tmp_path / "pairs", PairConfig(subject_quantile=0.9), clip=str(tmp_path / "clip"))
    assert note["clip"] and note["statistics"]["sere"]["dropped"]["subjects_diverge"] > 0
    assert note["statistics"]["stre"]["dropped"]["subjects_diverge"] == 0
    with pytest.raises(CheckpointError, match="cannot be opened as a CLIP vision tower"):
        features.clip_embeddings(str(tmp_path / "nothing"), [np.zeros((8, 8, 3), np.uint8)])


def test_styles_are_named_by_set_or_by_rendition_and_palette():
    sets, renditions, palettes = (pyarrow.array(x) for x in (["noto"] * 3, ["plain", "ink", "oil"], ["", "sepia", None]))
    assert style_names(sets, renditions, palettes).to_pylist() == ["noto", "ink, sepia", "oil"]


# ---------------------------------------------------------------- training reads them


def test_a_draw_is_a_function_of_seed_and_number(data):
    first, again, other = PairSource(data), PairSource(data), PairSource(data, seed=1)
    for objective in Objective:
        shown, drawn, captions = first.draw(objective, 5, 6)
        assert shown.shape == drawn.shape == (6, 32, 32, 3) and shown.dtype == np.uint8 and len(captions) == 6
        same = again.draw(objective, 5, 6)
        assert np.array_equal(shown, same[0]) and np.array_equal(drawn, same[1]) and captions == same[2]
        assert not np.array_equal(shown, other.draw(objective, 5, 6)[0])
        assert not np.array_equal(shown, first.draw(objective, 6, 6)[0])
        assert np.array_equal(shown, drawn) == (objective is Objective.RECONSTRUCTION)


def test_drawn_numbers_are_pairs_of_the_index_and_name_their_pictures(data):
    source = PairSource(data, style_words={Objective.STRE: 0.0})
    listed = {(row["objective"], row["reference"], row["target"]) for row in index(data)}
    for objective in (Objective.STRE, Objective.SERE):
        references, targets, captions = source.numbers(objective, 0, 50)
        assert {(str(objective), int(a), int(b)) for a, b in zip(references, targets, strict=True)} <= listed
        shown, drawn, said = source.draw(objective, 0, 50)
        assert captions == said and np.array_equal(shown[3], source.picture(references[3]))
    place = source.records.place(int(targets[0]))
    row = store.read_rows(place[0])[place[1]]
    assert np.array_equal(source.picture(targets[0]), store.decode_png(row["image"]["bytes"]))
    assert source.sha256(int(targets[0])) == row["sha256"] and source.caption(int(targets[0])) == row["caption"]
    _, targets, captions = source.numbers(Objective.STRE, 0, 20)
    assert captions == [source.caption(int(number), style_words=False) for number in targets]


def test_pairs_of_other_pictures_are_refused(data, tmp_path):
    import shutil

    shutil.copytree(data / "plain", tmp_path / "plain")
    with pytest.raises(DataError, match="holds no pairs.json: make pairs"):
        PairSource(tmp_path)
    shutil.copytree(data / "pairs", tmp_path / "pairs")
    with pytest.raises(DataError, match="made from other pictures"):
        PairSource(tmp_path)


def test_pictures_of_another_shape_are_cut_padded_or_squashed():
    picture = np.zeros((20, 40, 3), np.uint8)
    picture[:, :10] = 255
    assert square(picture, 20, "crop").mean() == 0
    assert square(picture, 40, "pad")[0].mean() == 255 and square(picture, 40, "pad")[20, 20].mean() == 0
    assert square(picture, 10, "squash").shape == (10, 10, 3)
    with pytest.raises(ConfigError, match="expected one of crop"):
        square(picture, 10, "stretch")


# ---------------------------------------------------------------- the command line


def test_pairs_are_made_and_looked_at_from_the_command_line(data, tmp_path, capsys):
    assert cli.run(["data", "pairs", str(data), "--out", str(tmp_path / "pairs"), "--processes", "1"]) == 0
    assert "stre:" in capsys.readouterr().out
    assert (
        cli.run(
            ["data", "look", str(data), "--out", str(tmp_path / "sheets"), "--pairs", str(tmp_path / "pairs"), "--thumb", "16"]
        )
        == 0
    )
    written = {path.name for path in (tmp_path / "sheets").iterdir()}
    assert {"sets.jpg", "stre.jpg", "sere.jpg", "dropped-looks-diverge.jpg"} <= written


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["pairs", "{tmp}"], "DataError: .* holds no shards"),
        (["pairs", "{data}", "--candidates", "0"], "ConfigError: candidates is 0"),
        (["pairs", "{data}", "--balance", "0.5"], "ConfigError: balance is 0.5"),
        (["pairs", "{data}", "--split", "none"], "ConfigError: no picture is of the split 'none'"),
        (["look", "{data}", "--out", "{tmp}/s", "--pairs", "{tmp}"], "DataError: .* holds no pairs.json"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(arguments, says, data, tmp_path, capsys):
    import re

    said = [argument.replace("{tmp}", str(tmp_path)).replace("{data}", str(data)) for argument in arguments]
    assert cli.run(["data", *said]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.strip() and "━" not in line]
    assert len(lines) == 1 and re.match(f"error: {says}", lines[0])
