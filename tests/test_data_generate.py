"""Words -> plan -> pictures: balanced, the same from the same seed, and whole whatever moment a run is killed at."""

import contextlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deadiff.apps import cli
from deadiff.data import generate, painter, plan, store, wordnet
from deadiff.data.painter import PainterSpec, checked, pipeline_painter
from deadiff.data.plan import PlanConfig, deal, make_plan
from deadiff.data.splits import TRAIN, UNSEEN_COMBINATION, UNSEEN_STYLE
from deadiff.data.vocabulary import GROUPS, WORDS, StyleWord, SubjectWord, read_styles, read_subjects
from deadiff.errors import ConfigError, DataError
from noise_painter import CONFIG, SPEC, draw_all, noise
from tiny import tiny_pipeline

SUBJECTS = [SubjectWord(word=f"{group} {number}", group=group) for group in GROUPS for number in range(6)]
STYLES = [StyleWord(words=f"style {number}", kind="medium", frame="{style} of {subject}") for number in range(5)]
PLAN = PlanConfig(styles_per_subject=3, unseen_styles=0.0, unseen_combinations=0.2)


def prepared(out: Path) -> int:
    return generate.prepare(out, SUBJECTS, STYLES, PLAN, SPEC, CONFIG)


def parquet_bytes(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((out / "pictures").iterdir())}


# ---------------------------------------------------------------- words


def test_the_lists_hold_thousands_of_subjects_in_four_groups_and_hundreds_of_styles():
    subjects, styles = read_subjects(), read_styles()
    groups = Counter(subject.group for subject in subjects)
    assert set(groups) == set(GROUPS) and len(subjects) > 12_000
    assert min(groups.values()) > 1_500
    assert {style.kind for style in styles} == {"medium", "movement", "artist", "brushwork", "light", "lens", "view"}
    assert len(styles) > 600
    words = {subject.word for subject in subjects}
    assert {"cat", "robot", "guitar", "lighthouse", "unicorn"} <= words
    assert not {"position", "gun", "revolver"} & words  # taken out
    for style in styles[::40]:
        assert style.words in style.prompt("owl") and "an owl" in style.prompt("owl")


def test_the_shipped_subjects_say_where_they_are_from_and_the_licence_goes_with_them():
    sources = Counter(line.split("\t")[2] for line in (WORDS / "subjects.tsv").read_text().splitlines()[1:])
    assert set(sources) == {"curated", "wordnet"}
    assert "Princeton University" in (WORDS / "LICENSE-wordnet.txt").read_text()


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("s.tsv", "animal\tcat\n", "expected the heading"),
        ("s.tsv", "group\tword\n", "holds no subjects"),
        ("s.tsv", "group\tword\ncat\n", "line 2"),
        ("s.txt", "oil\n", "comes before any"),
        ("s.txt", "[medium | a painting]\noil\n", "expected one with"),
        ("s.txt", "[medium]\noil, ink, oil\n", "a second time"),
        ("s.txt", "# nothing\n", "holds no styles"),
    ],
)
def test_wrong_words_are_one_clear_line(name, text, says, tmp_path):
    (tmp_path / name).write_text(text)
    read = read_subjects if name.endswith("tsv") else read_styles
    with pytest.raises(DataError, match=says) as caught:
        read(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_words_are_taken_from_wordnet_by_what_they_are_a_kind_of(tmp_path):
    """A dictionary of seven meanings in WordNet's own format."""
    meanings = [  # offset, file, word, parent, gloss, sense number, times tagged
        ("00000001", "03", "animal", "", "a living being", 1, 9),
        ("00000002", "05", "dog", "00000001", "a pet", 1, 40),
        ("00000003", "05", "corgi", "00000002", "a small dog", 1, 0),
        ("00000004", "05", "hymenopteran", "00000001", "a kind that nobody says", 1, 0),
        ("00000005", "05", "honey_bee", "00000004", "makes honey", 1, 2),
        ("00000006", "05", "Afghan", "00000002", "a name", 1, 5),
        ("00000007", "05", "cur", "00000002", "an offensive word", 1, 5),
    ]
    lines = ["  1 the licence"]
    for offset, file, word, parent, gloss, _, _ in meanings:
        pointers = f"001 @ {parent} n 0000" if parent else "000"
        lines.append(f"{offset} {file} n 01 {word} 0 {pointers} | {gloss}  ")
    (tmp_path / "data.noun").write_text("\n".join(lines) + "\n")
    senses = [f"{word.lower()}%1:{file}:00:: {offset} {number} {count}" for offset, file, word, _, _, number, count in meanings]
    (tmp_path / "index.sense").write_text("\n".join([*senses, "bark%2:32:00:: 00000009 1 3"]) + "\n")
    assert wordnet.drawable(tmp_path)["animals"] == ["dog", "honey bee", "corgi"]  # the most used first
    (tmp_path / "curated.txt").write_text("# ours\n[animals]\nunicorn, dog\n[never]\ncorgi\n")
    assert wordnet.write_subjects(tmp_path, tmp_path)["animals"] == 3
    assert [subject.word for subject in read_subjects(tmp_path / "subjects.tsv")] == ["unicorn", "dog", "honey bee"]


# ---------------------------------------------------------------- the plan


@pytest.mark.parametrize(("players", "cards", "hand"), [(700, 50, 14), (7, 5, 3), (4, 14, 14), (1, 3, 1)])
def test_every_subject_gets_different_styles_and_every_style_is_dealt_equally_often(players, cards, hand):
    hands = deal(players, cards, hand, np.random.default_rng(0))
    assert all(len(set(row)) == hand for row in hands.tolist())
    for part in (hands, hands[: players // 2]):  # broken off in the middle it is balanced too
        times = np.bincount(part.reshape(-1), minlength=cards)
        assert times.max() - times.min() <= (1 if part is hands or len(part) == 0 else 2)


def test_a_plan_is_a_function_of_its_seed():
    first, again = make_plan(SUBJECTS, STYLES, PLAN), make_plan(SUBJECTS, STYLES, PLAN)
    assert [first[n] for n in range(len(first))] == [again[n] for n in range(len(again))]
    other = make_plan(SUBJECTS, STYLES, replace(PLAN, seed=1))
    assert [first[n].prompt for n in range(len(first))] != [other[n].prompt for n in range(len(other))]
    seeds = [first[n].seed for n in range(len(first))]
    assert len(set(seeds)) == len(seeds) == 72


def test_a_limited_plan_takes_every_group_and_draws_the_same_pictures():
    whole = make_plan(SUBJECTS, STYLES, PLAN)
    small = make_plan(SUBJECTS, STYLES, replace(PLAN, limit=8))
    assert Counter(subject.group for subject in small.subjects) == dict.fromkeys(GROUPS, 2)
    known = {(item.subject, item.style): item.seed for item in (whole[n] for n in range(len(whole)))}
    both = [(item, known[item.subject, item.style]) for item in (small[n] for n in range(len(small)))
            if (item.subject, item.style) in known]  # fmt: skip
    assert both and all(item.seed == seed for item, seed in both)


def test_a_few_subjects_share_few_styles_so_that_there_are_pairs():
    made = make_plan(read_subjects(), read_styles(), PlanConfig(limit=40))
    times = Counter(made[number].style for number in range(len(made)))
    assert len(made) == 560 and len(times) == 140 and set(times.values()) == {4}
    kinds = Counter(style.kind for style in made.styles)
    assert len(kinds) == len({style.kind for style in read_styles()}) and max(kinds.values()) < 3 * 140 / len(kinds)
    one = make_plan(read_subjects(), read_styles(), PlanConfig(limit=1))
    assert len(one) == len(one.styles) == 14
    assert len(make_plan(read_subjects(), read_styles(), PlanConfig()).styles) == len(read_styles())


def test_what_training_never_sees_is_drawn_by_lot_from_the_names():
    config = PlanConfig(unseen_styles=0.1, unseen_combinations=0.1)
    made = make_plan(read_subjects()[:2000], read_styles(), config)
    splits: dict[str, Counter] = {}
    for number in range(0, len(made), 3):
        item = made[number]
        splits.setdefault(item.style, Counter())[item.split] += 1
    unseen = [style for style, found in splits.items() if UNSEEN_STYLE in found]
    assert 0.05 < len(unseen) / len(splits) < 0.15 and all(set(splits[style]) == {UNSEEN_STYLE} for style in unseen)
    total = sum(splits.values(), Counter())
    assert 0.08 < total[UNSEEN_COMBINATION] / (total[UNSEEN_COMBINATION] + total[TRAIN]) < 0.12


def test_too_few_styles_are_refused():
    with pytest.raises(ConfigError, match="at most the 5 styles"):
        make_plan(SUBJECTS, STYLES, PlanConfig())


# ---------------------------------------------------------------- drawing


def test_a_run_draws_the_whole_plan_in_the_layout_of_the_icons_data(tmp_path):
    count = prepared(tmp_path)
    assert draw_all(tmp_path) == {"drawn": count, "failed": 0} and count == 72
    rows = list(store.read_split(tmp_path, TRAIN, parts=("pictures",)))
    assert rows and all(row["image"].shape == (16, 16, 3) for row in rows)
    row = rows[0]
    assert row["caption"] == f"{row['rendition']} of a {row['subject']}" and row["set"] == "painter"
    assert set(row) == set(store.row_features())
    assert not any(row["reference_holdout"] for row in rows)
    assert not (tmp_path / "parked" / "00000").exists()


def test_failed_prompts_are_written_down_and_may_be_drawn_again(tmp_path):
    prepared(tmp_path)

    def hates_objects(prompts, seeds):
        if any("objects 1" in prompt for prompt in prompts):
            raise RuntimeError("no\nobjects")
        return noise(prompts, seeds)

    assert draw_all(tmp_path, hates_objects) == {"drawn": 69, "failed": 3}
    failed = [json.loads(line) for path in (tmp_path / "failed").iterdir() for line in path.read_text().splitlines()]
    assert {item["subject"] for item in failed} == {"objects 1"}
    assert {item["reason"] for item in failed} == {"RuntimeError: no objects"}
    assert draw_all(tmp_path) == {"drawn": 69, "failed": 3}  # not by itself
    assert draw_all(tmp_path, retry_failed=True) == {"drawn": 72, "failed": 0}
    prepared(tmp_path / "at once")
    draw_all(tmp_path / "at once")
    assert parquet_bytes(tmp_path) == parquet_bytes(tmp_path / "at once")


def test_a_model_that_always_fails_stops_the_run_instead_of_the_prompts(tmp_path):
    prepared(tmp_path)

    def broken(prompts, seeds):
        return ["the picture is blank"] * len(prompts)

    with pytest.raises(DataError, match="16 prompts in a row gave no picture.*blank"):
        draw_all(tmp_path, broken)
    assert draw_all(tmp_path) == {"drawn": 72, "failed": 0}


def test_another_plan_does_not_mix_with_the_one_in_a_folder(tmp_path):
    generate.prepare(tmp_path, SUBJECTS, STYLES, replace(PLAN, seed=5), SPEC, CONFIG)
    prepared(tmp_path)  # as long as nothing is drawn, an option may be mended
    draw_all(tmp_path)
    with pytest.raises(DataError, match=r"plan\.seed 0 and not 5"):
        generate.prepare(tmp_path, SUBJECTS, STYLES, replace(PLAN, seed=5), SPEC, CONFIG)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(DataError, match="not empty"):
        prepared(tmp_path / "mine")


def test_several_workers_share_a_plan(tmp_path, monkeypatch):
    monkeypatch.setattr(generate, "open_painter", lambda spec: noise)
    prepared(tmp_path)
    for worker in (2, 0, 1):
        found = generate.generate(tmp_path, SPEC, CONFIG, share=(worker, 3))
    assert found == {"planned": 72, "drawn": 72, "failed": 0}
    with pytest.raises(ConfigError, match="share is 3/3"):
        generate.generate(tmp_path, SPEC, CONFIG, share=(3, 3))


def test_a_run_killed_at_any_moment_goes_on_without_a_lost_or_repeated_picture(tmp_path):
    prepared(tmp_path / "killed")
    prepared(tmp_path / "whole")
    draw_all(tmp_path / "whole")
    chance, killed = random.Random(0), 0
    command = [sys.executable, str(Path(__file__).with_name("noise_painter.py")), str(tmp_path / "killed")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as run:
        assert run.stdin and run.stdout
        for _ in range(12):
            run.stdin.write("draw\n")
            run.stdin.flush()
            child = int(run.stdout.readline())
            time.sleep(chance.uniform(0.0, 0.15))
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
            killed += int(run.stdout.readline()) == -signal.SIGKILL
        run.stdin.close()
    assert killed >= 3
    draw_all(tmp_path / "killed")
    assert parquet_bytes(tmp_path / "killed") == parquet_bytes(tmp_path / "whole")
    rows = [row for path in store.shards(tmp_path / "killed") for row in store.read_rows(path, ["subject", "rendition"])]
    times = Counter((row["subject"], row["rendition"]) for row in rows)
    assert len(times) == 72 and set(times.values()) == {1}


# ---------------------------------------------------------------- models


def test_the_embedded_model_draws_a_plan():
    spec = PainterSpec(model="icons", steps=1)
    pictures = painter.open_painter(spec)(["a cat", "a red house"], [1, 2])
    assert all(isinstance(picture, str) or picture.dtype == np.uint8 for picture in pictures) and len(pictures) == 2
    painter.open_painter.cache_clear()


def test_any_diffusers_pipeline_draws_and_a_picture_depends_on_its_seed_alone(tmp_path):
    tiny_pipeline("sd15").save_pretrained(tmp_path / "model")
    paint = painter.open_painter(PainterSpec(model=str(tmp_path / "model"), steps=2, guidance_scale=2.0, negative_prompt="ugly"))
    painter.open_painter.cache_clear()
    alone, pair = paint(["a robot"], [7]), paint(["a cat", "a robot"], [3, 7])
    assert isinstance(alone[0], np.ndarray) and isinstance(pair[1], np.ndarray)
    assert alone[0].shape == (64, 64, 3)
    assert np.abs(alone[0].astype(int) - pair[1]).max() <= 2


def test_blank_and_flagged_pictures_count_as_failed():
    speckled = Image.fromarray(np.random.default_rng(0).integers(0, 255, (8, 8, 3), np.uint8))
    assert checked(Image.new("RGB", (8, 8)), False) == "the picture is blank"
    assert checked(speckled, True) == "flagged by the safety checker"
    assert isinstance(checked(speckled, False), np.ndarray)


def test_options_that_a_pipeline_does_not_take_are_named():
    class Upscaler:
        def __call__(self, prompt, image, generator=None): ...

    with pytest.raises(ConfigError, match="takes no num_inference_steps"):
        pipeline_painter(Upscaler(), PainterSpec(model="x/y", steps=3))


def test_a_plan_is_read_back_as_it_was_written(tmp_path):
    made = make_plan(SUBJECTS, STYLES, PLAN)
    plan.write_plan(made, tmp_path / "plan.parquet", 20)
    assert plan.read_part(tmp_path / "plan.parquet", 1) == [made[n] for n in range(20, 40)]


# ---------------------------------------------------------------- the command line


def test_drawing_and_pairing_from_the_command_line(tmp_path, capsys):
    tiny_pipeline("sd15").save_pretrained(tmp_path / "model")
    (tmp_path / "subjects.tsv").write_text("group\tword\nthings\trobot\nthings\tkey\nanimals\towl\nanimals\tbee\n")
    (tmp_path / "styles.txt").write_text("[medium | {style} of {subject}]\nan oil painting, an etching, a fresco\n")
    words = ["--subjects", str(tmp_path / "subjects.tsv"), "--styles", str(tmp_path / "styles.txt"), "--styles-per-subject", "2"]
    out = str(tmp_path / "out")
    command = ["data", "generate", "--out", out, "--model", str(tmp_path / "model"), *words, "--steps", "1", "--unseen", "0"]
    assert cli.run([*command, "--plan-only"]) == 0
    assert "8 pictures planned" in capsys.readouterr().out
    assert cli.run([*command, "--shard-size", "3"]) == 0  # nothing was drawn yet, so the shards may change
    assert "8 of 8 pictures drawn; next: deadiff data pairs" in capsys.readouterr().out
    assert cli.run([*command, "--shard-size", "3"]) == 0  # at once: all is there
    loose = ["--looks-quantile", "1", "--alike-quantile", "0", "--near-duplicate", "0", "--balance", "0"]
    assert cli.run(["data", "pairs", out, *loose, "--processes", "1"]) == 0
    said = capsys.readouterr().out
    assert re.search(r"^stre: \d+ pairs of [5-8] targets", said, re.MULTILINE)
    assert "sere: 8 pairs of 8 targets" in said
    assert cli.run([*command, "--shard-size", "3", "--seed", "1"]) == 2
    assert "was begun with plan.seed 0 and not 1" in capsys.readouterr().err


def test_the_page_on_pairs_tells_the_truth():
    """Its counts are those of the lists, and every option it names is one of the commands'."""
    import typer

    from deadiff.apps.data_commands import app

    page = (Path(__file__).parents[1] / "docs" / "pairs.md").read_text()
    subjects, styles = read_subjects(), read_styles()
    for text in (page, (WORDS / "README.md").read_text()):
        assert f"{len(subjects):,} subjects" in text and f"{len(styles)}" in text
    for group, count in Counter(subject.group for subject in subjects).items():
        assert f"{group} {count:,}" in page
    for kind, count in Counter(style.kind for style in styles).items():
        assert f"{kind} {count}" in page
    assert f"{len(make_plan(subjects, styles, PlanConfig())):,} pictures" in page
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    known = {option for command in commands.values() for parameter in command.params for option in parameter.opts}
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", page)) - {"--processes"}
    assert named <= known
