"""A user's own pictures -> shards: by layout, by table, or by tags with clustered styles; nothing is lost in silence."""

import csv
import io
import json
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from deadiff.apps import cli
from deadiff.data import importing, store
from deadiff.data.build import generator
from deadiff.data.clustering import kmeans, usual_number
from deadiff.data.importing import ImportConfig, import_pictures
from deadiff.data.listing import from_layout, layout_pattern, tags_of, words
from deadiff.data.pair_source import PairSource
from deadiff.data.pairs import PairConfig, make_pairs
from deadiff.data.renditions import render
from deadiff.data.shard_jobs import run_here
from deadiff.errors import ConfigError, DataError

SMALL = ImportConfig(size=48, shard_size=5)
SUBJECTS = ("barn owl", "red fox", "old house", "apple")


def drawing(number: int, side: int = 64) -> np.ndarray:
    """A shape of its own for each number."""
    picture = np.full((side, side, 3), 255, np.uint8)
    rng = np.random.default_rng(number)
    for _ in range(5):
        y, x = rng.integers(0, side - 24, 2)
        picture[y : y + 22, x : x + 22] = rng.integers(0, 220, 3)
    return picture


def save(path: Path, picture: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(path)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """STYLE/SUBJECT.png, two of the first subject, and what people have lying about."""
    base = tmp_path / "pictures of mine"
    for number, subject in enumerate(SUBJECTS):
        for style in ("ink_wash", "oil"):
            shade = drawing(number) // (1 if style == "oil" else 2)
            save(base / style / f"{subject.replace(' ', '_')}-01.png", shade)
    save(base / "oil" / "barn owl (2).jpg", drawing(9, 200))
    (base / "oil" / "broken.png").write_bytes(b"\x89PNG nothing")
    save(base / "oil" / "white.png", np.full((20, 20, 3), 255, np.uint8))
    save(base / "loose.png", drawing(3))
    (base / "notes.txt").write_text("not a picture")
    return base


def rows_of(out: Path) -> list[dict]:
    return [row for path in store.shards(out) for row in store.read_rows(path)]


def left_out(out: Path) -> dict[str, str]:
    lines = [line for path in sorted((out / "left_out").iterdir()) for line in path.read_text().splitlines()]
    return {item["file"]: item["reason"] for item in map(json.loads, lines)}


def test_a_layout_says_what_pictures_show_and_what_is_left_out_is_written_down(folder, tmp_path):
    assert import_pictures(tmp_path / "out", folder, SMALL) == {"found": 12, "imported": 9, "left_out": 3}
    rows = rows_of(tmp_path / "out")
    assert {(row["subject"], row["rendition"]) for row in rows} == {(s, t) for s in SUBJECTS for t in ("ink wash", "oil")}
    owl = next(row for row in rows if row["subject"] == "barn owl")
    assert (
        owl["caption"] == "a barn owl" and owl["set"] == "imported" and owl["split"] == "train" and not owl["reference_holdout"]
    )
    assert all(min(store.decode_png(row["image"]["bytes"]).shape[:2]) <= 48 for row in rows)
    reasons = left_out(tmp_path / "out")
    assert set(reasons) == {"oil/broken.png", "oil/white.png", "loose.png"}
    assert "blank" in reasons["oil/white.png"] and "does not read as {style}/{subject}" in reasons["loose.png"]


def test_imported_pictures_can_be_paired_and_drawn_in_training(folder, tmp_path):
    out = tmp_path / "out"
    import_pictures(out, folder, SMALL)
    make_pairs(out, config=PairConfig(looks_quantile=1.0, alike_quantile=0.0, balance=0))
    for objective in ("stre", "sere", "reconstruction"):
        shown, drawn, captions = PairSource(out).draw(objective, 0, 3)
        assert shown.shape == drawn.shape == (3, 48, 48, 3) and len(captions) == 3


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "parquet"])
def test_tables_of_every_kind_say_the_same(kind, folder, tmp_path):
    table = [
        {"file": "oil/apple-01.png", "subject": "apple", "style": "oil on canvas", "caption": "one apple", "tags": "fruit, red"},
        {"file": "ink_wash/apple-01.png", "subject": "apple", "style": "ink", "caption": "", "tags": ""},
        {"file": "oil/nowhere.png", "subject": "pear", "style": "ink", "caption": "", "tags": ""},
        {"file": "loose.png", "subject": "house", "style": "", "caption": "", "tags": ""},
    ]
    path = tmp_path / f"table.{kind}"
    if kind == "parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(table), path)
    elif kind == "jsonl":
        path.write_text("\n".join(json.dumps(row) for row in table))
    else:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(table[0]), delimiter="\t" if kind == "tsv" else ",")
            writer.writeheader()
            writer.writerows(table)
    assert import_pictures(tmp_path / "out", folder, SMALL, table=path) == {"found": 4, "imported": 2, "left_out": 2}
    first, second = rows_of(tmp_path / "out")
    assert (first["rendition"], first["caption"], first["tags"]) == ("oil on canvas", "one apple", ["fruit", "red"])
    assert second["caption"] == "an apple"
    assert left_out(tmp_path / "out") == {"oil/nowhere.png": "there is no such file", "loose.png": "it has no style"}


def test_a_parquet_table_may_hold_its_pictures(tmp_path):
    def png(number: int) -> bytes:
        buffer = io.BytesIO()
        Image.fromarray(drawing(number)).save(buffer, "PNG")
        return buffer.getvalue()

    table = [{"image": {"bytes": png(n), "path": None}, "subject": f"thing {n}", "style": "ink"} for n in range(12)]
    table[7]["image"] = {"bytes": b"", "path": None}
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(table), tmp_path / "table.parquet")
    found = import_pictures(tmp_path / "out", None, SMALL, table=tmp_path / "table.parquet")
    assert found == {"found": 12, "imported": 11, "left_out": 1} and set(left_out(tmp_path / "out")) == {"#7"}
    last = rows_of(tmp_path / "out")[-1]
    assert last["subject"] == "thing 11"
    assert np.array_equal(store.decode_png(last["image"]["bytes"]), importing.shrunk(drawing(11), 48))


def test_styles_of_unlabelled_pictures_are_clustered_and_subjects_come_from_tags(tmp_path):
    looks = ("blueprint", "neon", "pencil")
    for number in range(30):
        look = looks[number % 3]
        save(tmp_path / "in" / f"{number:02d}.png", render(drawing(number, 96), look, generator(0, look))[0])
        (tmp_path / "in" / f"{number:02d}.txt").write_text(f"thing {number // 3}, shape, shape\n")
    (tmp_path / "in" / "05.txt").unlink()
    config = ImportConfig(size=96, shard_size=8, clusters=3)
    found = import_pictures(tmp_path / "out", tmp_path / "in", config, tags=True, run=run_here(1))
    assert found == {"found": 30, "imported": 29, "left_out": 1}
    assert "expected 05.txt beside it" in left_out(tmp_path / "out")["05.png"]
    rows = rows_of(tmp_path / "out")
    numbers = [number for number in range(30) if number != 5]
    clusters = {(row["rendition"], looks[number % 3]) for row, number in zip(rows, numbers, strict=True)}
    assert len(clusters) == 3  # each cluster is one look
    assert rows[0]["subject"] == "thing 0" and rows[0]["tags"] == ["shape"] and rows[0]["caption"] == "a thing 0, shape"
    note = json.loads((tmp_path / "out" / "clusters.json").read_text())
    assert sum(item["pictures"] for item in note.values()) == 29 and set(note) == {"style 1", "style 2", "style 3"}


def test_tags_may_come_from_a_table_and_clip_may_take_part(tmp_path):
    import small_models

    small_models.vision().save_pretrained(tmp_path / "clip")
    for number in range(6):
        save(tmp_path / "in" / f"{number}.png", drawing(number))
    (tmp_path / "tags.csv").write_text("file,tags\n" + "\n".join(f'{n}.png,"owl {n}, night"' for n in range(5)))
    found = import_pictures(tmp_path / "out", tmp_path / "in", SMALL, tags=tmp_path / "tags.csv", clip=str(tmp_path / "clip"))
    assert found == {"found": 6, "imported": 5, "left_out": 1}
    assert {row["subject"] for row in rows_of(tmp_path / "out")} == {f"owl {n}" for n in range(5)}


def test_k_means_finds_what_lies_apart_the_same_every_time():
    rng = np.random.default_rng(0)
    points = np.concatenate([rng.normal(centre, 0.1, (count, 4)) for centre, count in ((0, 10), (5, 30), (9, 20))]).astype(
        np.float32
    )
    label, centres = kmeans(points, 3, seed=1)
    assert label.tolist() == [2] * 10 + [0] * 30 + [1] * 20  # the greatest comes first
    assert np.allclose(centres[:, 0], [5, 9, 0], atol=0.2)
    assert np.array_equal(label, kmeans(points, 3, seed=1)[0])
    assert len(np.unique(kmeans(np.zeros((4, 2), np.float32), 3)[0])) == 1  # equal pictures are one style
    assert (usual_number(3), usual_number(90), usual_number(100_000)) == (2, 3, 200)


def test_an_import_goes_on_and_does_not_mix_with_another(folder, tmp_path):
    out = tmp_path / "out"
    import_pictures(out, folder, SMALL)
    first = (out / "pictures" / "00001.parquet").read_bytes()
    (out / "pictures" / "00001.parquet").unlink()
    before = (out / "pictures" / "00000.parquet").stat().st_mtime_ns
    import_pictures(out, folder, SMALL)
    assert (out / "pictures" / "00001.parquet").read_bytes() == first
    assert (out / "pictures" / "00000.parquet").stat().st_mtime_ns == before
    save(folder / "oil" / "another.png", drawing(40))
    with pytest.raises(DataError, match="was begun with found 12 and not 13"):
        import_pictures(out, folder, SMALL)


def test_places_are_read_as_words():
    assert words("barn_owl-02", numbered=True) == "barn owl" and words("barn owl (3)", numbered=True) == "barn owl"
    assert words("2001", numbered=True) == "2001" and words("pop-art 60") == "pop art 60"
    assert tags_of(" owl,night , owl,") == ("owl", "night") == tags_of(["owl", "night"])
    found = layout_pattern("{group}/{any}/{subject}__{style}").fullmatch("animals/2024/owl__ink")
    assert found and found.groupdict() == {"group": "animals", "subject": "owl", "style": "ink"}


def test_a_layout_that_names_no_subject_is_refused(folder):
    with pytest.raises(ConfigError, match="has 0 {subject}"):
        from_layout(folder, "{style}/{any}")
    with pytest.raises(ConfigError, match=r"names {artist}: expected any, group"):
        from_layout(folder, "{artist}/{style}/{subject}")


def test_importing_pairing_and_looking_from_the_command_line(folder, tmp_path, capsys):
    out = str(tmp_path / "out")
    assert cli.run(["data", "import", str(folder), "--out", out, "--size", "48", "--processes", "1"]) == 0
    assert "9 of 12 pictures imported, 3 left out" in capsys.readouterr().out
    assert cli.run(["data", "pairs", out, "--looks-quantile", "1", "--balance", "0", "--processes", "1"]) == 0
    assert cli.run(["data", "look", out, "--out", str(tmp_path / "sheets")]) == 0
    assert {"styles.jpg", "stre.jpg"} <= {path.name for path in (tmp_path / "sheets").iterdir()}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["import", "--out", "{tmp}/o"], "ConfigError: there is nothing to import"),
        (["import", "{tmp}/no", "--out", "{tmp}/o"], "DataError: '.*' is no folder"),
        (["import", "{tmp}", "--out", "{tmp}/o"], "DataError: '.*' holds no pictures"),
        (["import", "--table", "{tmp}/no.csv", "--out", "{tmp}/o"], "DataError: '.*no.csv' does not exist"),
        (["import", "--table", "{tmp}/a.txt", "--out", "{tmp}/o"], "DataError: .* is no table that can be read"),
        (["import", "{tmp}", "--out", "{tmp}/o", "--clusters", "1"], "ConfigError: clusters is 1"),
        (
            ["import", "{tmp}", "--out", "{tmp}/o", "--tags", "--layout", "{style}/{subject}"],
            "ConfigError: a layout and a table or tags",
        ),
        (["generate", "--out", "{tmp}/o", "--share", "4/4"], "ConfigError: --share is '4/4'"),
        (["generate", "--out", "{tmp}/o", "--subjects", "{tmp}/no.tsv"], "DataError: '.*no.tsv' does not exist"),
        (["generate", "--out", "{tmp}/o", "--model", "{tmp}/no", "--limit", "4"], "CheckpointError: there is no model"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(arguments, says, tmp_path, capsys):
    import re

    (tmp_path / "a.txt").write_text("a")
    assert cli.run(["data", *(argument.replace("{tmp}", str(tmp_path)) for argument in arguments)]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if "Error" in line]
    assert len(lines) == 1 and re.match(f"error: {says}", lines[0])
