"""The icons data set, built from the art in tests/fixtures: small, offline, the same code as the real one."""

import json
import re
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import ImageFont
from typer.testing import CliRunner

from deadiff import writing
from deadiff.apps import cli
from deadiff.apps.data_commands import app
from deadiff.data import art, build, icons, store, subjects
from deadiff.data.captions import MAX_WORDS, caption, style_phrases, subject_phrases, tag_counts
from deadiff.data.renditions import RENDITIONS
from deadiff.data.splits import (
    HELD_OUT_RENDITIONS,
    HELD_OUT_SETS,
    PLAIN,
    TRAIN,
    UNSEEN_COMBINATION,
    UNSEEN_STYLE,
    is_reference_holdout,
    split_of,
)
from deadiff.errors import ConfigError, DataError

ART = Path(__file__).parent / "fixtures" / "art"
CONFIG = build.BuildConfig(size=48, renditions=2)


@pytest.fixture(scope="module")
def data_set(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("icons") / "set"
    build.build(folder, CONFIG, art=ART)
    return folder


def all_rows(folder: Path) -> list[dict]:
    return [row for shard in store.shards(folder) for row in store.read_rows(shard)]


def parquet_bytes(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*.parquet"))}


# ---------------------------------------------------------------- the build


def test_every_set_is_drawn_plain_and_every_training_set_is_rendered(data_set):
    rows = all_rows(data_set)
    plain = [row for row in rows if row["rendition"] == PLAIN]
    assert {row["set"] for row in plain} == {"twemoji", "noto", "fluent-emoji-high-contrast", "fxemoji"}
    assert len(plain) == 96
    rendered = [row for row in rows if row["rendition"] != PLAIN]
    assert {row["set"] for row in rendered} == {"twemoji", "noto", "fluent-emoji-high-contrast"}
    assert len(rendered) == 72 * (CONFIG.renditions + 1)
    assert sum(row["rendition"] in HELD_OUT_RENDITIONS for row in rendered) == 72


def test_a_row_says_what_its_picture_is(data_set):
    for row in all_rows(data_set):
        image = store.decode_png(row["image"]["bytes"])
        assert image.shape == (48, 48, 3)
        assert row["split"] == split_of(row["subject"], row["set"], row["rendition"])
        assert row["reference_holdout"] == is_reference_holdout(row["subject"], row["set"], row["rendition"])
        assert row["licence"] == art.SETS_BY_NAME[row["set"]].licence
        assert row["caption"] == row["caption"].lower() and 1 <= len(row["caption"].split()) <= MAX_WORDS
        assert len(row["sha256"]) == 64


def test_the_shards_open_in_datasets_with_decoded_pictures(data_set):
    import datasets
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(data_set / "plain" / "noto.parquet")
    opened = datasets.Dataset(table)
    assert opened.features == store.row_features()
    assert opened[0]["image"].size == (48, 48)


def test_the_same_seed_gives_the_same_bytes_in_one_process_or_two(data_set, tmp_path):
    build.build(tmp_path / "again", CONFIG, art=ART, processes=2)
    assert parquet_bytes(tmp_path / "again") == parquet_bytes(data_set)


def test_another_seed_gives_other_renditions_of_the_same_drawings(data_set, tmp_path):
    build.build(tmp_path / "other", build.BuildConfig(size=48, renditions=2, seed=1), art=ART)
    one, other = all_rows(data_set), all_rows(tmp_path / "other")

    def pictures(rows: list[dict], plain: bool) -> set[str]:
        return {row["sha256"] for row in rows if (row["rendition"] == PLAIN) == plain}

    assert pictures(one, True) == pictures(other, True)
    assert pictures(one, False) != pictures(other, False)


def test_a_killed_build_goes_on_to_the_same_bytes_and_leaves_no_half_file(data_set, tmp_path, monkeypatch):
    real, written = store.write_shard, []

    def dies_at_the_sixth(path, rows):
        if len(written) == 5:
            raise KeyboardInterrupt
        written.append(path)
        real(path, rows)

    monkeypatch.setattr(build, "write_shard", dies_at_the_sixth)
    with pytest.raises(KeyboardInterrupt):
        build.build(tmp_path / "killed", CONFIG, art=ART)
    assert len(parquet_bytes(tmp_path / "killed")) == 5
    (tmp_path / "killed" / "plain" / ".noto.parquet.1.partial").write_bytes(b"half")  # what kill -9 leaves
    monkeypatch.undo()
    build.build(tmp_path / "killed", CONFIG, art=ART)
    assert parquet_bytes(tmp_path / "killed") == parquet_bytes(data_set)
    assert not list((tmp_path / "killed").rglob("*.partial*"))


def test_a_write_that_fails_leaves_the_old_file(tmp_path):
    writing.write_text_whole(tmp_path / "a", "old")

    def half(path: Path) -> None:
        path.write_text("ne")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        writing.write_whole(tmp_path / "a", half)
    assert (tmp_path / "a").read_text() == "old" and len(list(tmp_path.iterdir())) == 1


def test_a_folder_built_otherwise_is_refused(data_set, tmp_path):
    with pytest.raises(DataError, match="another seed"):
        build.build(data_set, build.BuildConfig(size=48, renditions=2, seed=9), art=ART)
    (tmp_path / "letter.txt").write_text("not ours")
    with pytest.raises(DataError, match=r"not empty and holds no build\.json"):
        build.build(tmp_path, CONFIG, art=ART)


def test_limit_takes_subjects_from_the_whole_list(tmp_path):
    build.build(tmp_path / "mini", build.BuildConfig(size=32, renditions=0, limit=4), art=ART)
    order = [row["hexcode"] for row in json.loads((ART / "subjects.json").read_text())]
    kept = {order.index(row["subject"]) for row in all_rows(tmp_path / "mini")}
    assert len(kept) == 4 and {0, 23} <= kept


@pytest.mark.parametrize("wrong", [{"size": 4}, {"renditions": -1}, {"renditions": 400}, {"limit": 0}])
def test_a_config_that_cannot_be_built_is_refused(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        build.BuildConfig(**wrong)


# ---------------------------------------------------------------- splits


def test_no_held_out_picture_leaks_into_training(data_set):
    train = list(store.read_split(data_set, TRAIN, images=False))
    combinations = list(store.read_split(data_set, UNSEEN_COMBINATION, images=False))
    styles = list(store.read_split(data_set, UNSEEN_STYLE, images=False))
    assert train and combinations and styles
    assert not {row["set"] for row in train} & HELD_OUT_SETS
    assert not {row["rendition"] for row in train} & HELD_OUT_RENDITIONS
    # a drawing that is held out is in training under no finish and no rendition
    assert not {(row["subject"], row["family"]) for row in train} & {(row["subject"], row["family"]) for row in combinations}
    assert not {row["sha256"] for row in train} & {row["sha256"] for row in combinations + styles}
    assert all(row["reference_holdout"] for row in combinations + styles)


def test_about_a_tenth_of_the_combinations_and_a_twentieth_of_the_references_are_held_out():
    points = [f"{point:04X}" for point in range(0x1F300, 0x1F300 + 4000)]
    split = [split_of(point, "noto") for point in points]
    assert 0.085 < split.count(UNSEEN_COMBINATION) / 4000 < 0.115
    references = [is_reference_holdout(point, "noto") for point, where in zip(points, split, strict=True) if where == TRAIN]
    assert 0.04 < sum(references) / len(references) < 0.06


def test_a_hold_out_covers_the_whole_family_and_every_seen_rendition():
    held_out = [
        f"{point:04X}" for point in range(0x1F300, 0x1F400) if split_of(f"{point:04X}", "fluent-3d") == UNSEEN_COMBINATION
    ]
    assert held_out
    for subject in held_out:
        for name in ("fluent-emoji", "fluent-emoji-flat", "fluent-emoji-high-contrast"):
            for rendition in (PLAIN, *build.SEEN_RENDITIONS):
                assert split_of(subject, name, rendition) == UNSEEN_COMBINATION
    assert any(split_of(subject, "twemoji") == TRAIN for subject in held_out)  # other hands' drawings of it are learned from


def test_held_out_sets_and_renditions_are_unseen_styles_whatever_the_subject():
    assert {art_set.name for art_set in art.SETS if art_set.held_out} == {
        "fxemoji",
        "streamline-emojis",
        "openmoji",
        "openmoji-black",
        "emojione-v1",
    }
    assert len(HELD_OUT_RENDITIONS) == 5 and set(RENDITIONS) >= HELD_OUT_RENDITIONS
    for point in range(0x1F300, 0x1F320):
        assert all(split_of(f"{point:04X}", name) == UNSEEN_STYLE for name in HELD_OUT_SETS)
        assert all(split_of(f"{point:04X}", "twemoji", rendition) == UNSEEN_STYLE for rendition in HELD_OUT_RENDITIONS)


def test_the_lots_have_not_been_drawn_again():
    """Trained weights and reported figures depend on these: a change here is a new data set."""
    names = ("twemoji", "noto", "emojione", "fluent-3d", "noto-mono", "symbola")
    drawn = {
        name: [f"{point:04X}" for point in range(0x1F400, 0x1F410) if split_of(f"{point:04X}", name) != TRAIN] for name in names
    }
    assert drawn == PINNED


PINNED = {
    "twemoji": ["1F407", "1F408"],
    "noto": ["1F407"],
    "emojione": ["1F40F"],
    "fluent-3d": ["1F40E"],
    "noto-mono": ["1F404", "1F40A"],
    "symbola": ["1F402", "1F409"],
}


def test_share_alike_art_is_never_trained_on():
    assert all(art_set.held_out for art_set in art.SETS if "-SA-" in art_set.licence)


def test_an_unknown_set_or_split_is_an_error(data_set):
    with pytest.raises(DataError, match="no set is called 'wingdings'"):
        split_of("1F600", "wingdings")
    with pytest.raises(DataError, match="no split is called 'test'"):
        next(store.read_split(data_set, "test"))
    with pytest.raises(DataError, match="holds no shards"):
        store.shards(data_set / "nowhere")


def test_a_split_is_read_into_one_array(data_set):
    pictures, rows = store.read_arrays(data_set, TRAIN, parts=("plain",))
    assert pictures.shape == (len(rows), 48, 48, 3) and pictures.dtype == np.uint8
    assert [icons.pixel_sha256(picture) for picture in pictures] == [row["sha256"] for row in rows]


# ---------------------------------------------------------------- art


def test_every_package_is_pinned_by_version_and_checksum():
    for art_set in art.SETS:
        assert len(art_set.package.sha256) == 64 and art_set.package.version[0].isdigit()
        assert art_set.licence and art_set.attribution and art_set.url.startswith("https://")


def test_the_notice_names_every_set_its_licence_and_its_makers():
    notice = (Path(__file__).parents[1] / "NOTICE").read_text()
    for art_set in art.SETS:
        entry = f"{art_set.name}: {art_set.attribution}. {art_set.licence}. {art_set.url}"
        assert entry in notice, entry


def test_fetching_checks_what_it_got(tmp_path):
    package = art.Package(name="@scope/thing", version="1.0.0", sha256="0" * 64)
    with pytest.raises(DataError, match="--offline forbids"):
        art.fetch([package], tmp_path, offline=True)
    (tmp_path / package.file).write_bytes(b"something else")
    with pytest.raises(DataError, match=r"sha256 .* expected 000000"):
        art.fetch([package], tmp_path, offline=True)


def test_a_missing_network_client_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(art.shutil, "which", lambda client: None)
    with pytest.raises(DataError, match="'npm' is needed to fetch left-pad 1.3.0"):
        art.fetch([art.Package(name="left-pad", version="1.3.0", sha256="0" * 64)], tmp_path)


def test_a_failed_download_is_one_line_and_leaves_nothing(tmp_path, monkeypatch):
    failed = subprocess.CompletedProcess(["npm"], 1, stdout="", stderr="noise\nnpm error 404 Not Found\n")
    monkeypatch.setattr(art.shutil, "which", lambda client: client)
    monkeypatch.setattr(art.subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(DataError, match=r"npm pack left-pad@1\.3\.0 --silent` failed \(npm error 404 Not Found\)"):
        art.fetch([art.Package(name="left-pad", version="1.3.0", sha256="0" * 64)], tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_sets_without_code_points_are_aligned_by_name():
    def subject(hexcode: str, label: str, *others: str) -> subjects.Subject:
        return subjects.Subject(hexcode=hexcode, label=label, tags=(), group="", names=((subjects.slug(label),), others))

    listed = [
        subject("1F44B", "waving hand", "wave"),
        subject("1F30A", "water wave"),
        subject("1F426", "bird"),
        subject("1F47B", "ghost"),
    ]
    assert subjects.match_by_name(listed, ["bird-2", "bird-1", "waving-hand"]) == {"1F44B": "waving-hand", "1F426": "bird-1"}
    assert subjects.match_by_name(listed, ["wave"]) == {"1F44B": "wave"}
    assert subjects.match_by_name(listed, ["wave"], "fxemoji") == {"1F30A": "wave"}  # that set draws the sea


def test_a_drawing_with_two_names_goes_to_the_subject_of_its_first_name():
    def subject(hexcode: str, label: str) -> subjects.Subject:
        return subjects.Subject(hexcode=hexcode, label=label, tags=(), group="", names=((subjects.slug(label),),))

    listed = [subject("1F997", "cricket"), subject("1F3CF", "cricket game"), subject("1F43B", "bear")]
    parents = {"cricket": "cricket-game", "bear": "bear-face"}
    found = subjects.match_by_name(listed, ["cricket-game", "bear-face", "cricket", "bear"], parents=parents)
    assert found == {"1F3CF": "cricket-game", "1F43B": "bear"}


def test_hexcodes_are_written_one_way():
    assert subjects.hexcode_of("1f3d6-fe0f") == "1F3D6"
    assert subjects.hexcode_of("0023_FE0F_20E3") == "0023-20E3"


def test_an_alias_of_an_icon_may_be_mirrored():
    right = '<path d="M16 0h16v32H16z"/>'
    package = {
        "icons": {"half": {"body": right}},
        "aliases": {"flah": {"parent": "half", "hFlip": True}},
        "width": 32,
        "height": 32,
    }
    drawn = [icons.Drawing(subject="X", kind="svg", source=icons._iconify_svg(package, name)) for name in ("half", "flah")]
    half, mirrored = (icons.render(drawing, 16) for drawing in drawn)
    assert half[:, 12].max() == 0 and half[:, 3].min() == 255
    assert np.array_equal(mirrored, half[:, ::-1])


def test_transparent_and_oblong_pictures_land_on_white_squares():
    oblong = np.zeros((20, 40, 4), np.uint8)
    oblong[:, 10:30] = (0, 0, 255, 255)  # BGRA: opaque red in the middle
    encoded = cv2.imencode(".webp", oblong, [cv2.IMWRITE_WEBP_QUALITY, 101])[1].tobytes()
    image = icons.render(icons.Drawing(subject="X", kind="webp", source=encoded), 40)
    assert image.shape == (40, 40, 3)
    assert (
        tuple(image[20, 20]) == (255, 0, 0) and tuple(image[20, 2]) == (255, 255, 255) and tuple(image[2, 20]) == (255, 255, 255)
    )


def test_a_glyph_is_drawn_black_and_centred():
    font = ImageFont.load_default(icons.FONT_PX)
    image = icons.render(icons.Drawing(subject="X", kind="glyph", source="H"), 64, font)
    rows, columns = np.nonzero(image[..., 0] < 128)
    assert image.min() < 20
    assert abs((columns.min() + columns.max()) / 2 - 31.5) <= 1 and abs((rows.min() + rows.max()) / 2 - 31.5) <= 1


def test_blanks_and_repeated_pictures_are_screened():
    blank, dot = np.full((32, 32, 3), 255, np.uint8), np.full((32, 32, 3), 255, np.uint8)
    dot[10:20, 10:20] = 0
    known: set[str] = set()
    assert [index for index, _ in icons.screen([blank, dot, dot], known)] == [1]
    assert icons.screen([dot], known) == []  # drawn before by another set


def test_a_folder_of_art_says_what_it_lacks(tmp_path):
    with pytest.raises(DataError, match=r"no subjects\.json"):
        icons.read_art_folder(tmp_path)
    (tmp_path / "subjects.json").write_text("[]")
    with pytest.raises(DataError, match="holds no art"):
        icons.read_art_folder(tmp_path)


# ---------------------------------------------------------------- captions


ROW = {
    "subject": "1F697",
    "label": "automobile",
    "tags": ["car", "driving", "vehicle"],
    "set": "noto",
    "rendition": "neon",
    "palette": "pink and cyan",
}


def test_captions_use_synonyms_and_say_the_style_only_when_asked():
    rng = np.random.default_rng(0)
    plain = [caption(ROW, rng, style_words=False) for _ in range(300)]
    assert any("car" in words and "automobile" not in words for words in plain)
    assert 0.6 < np.mean(["automobile" in words for words in plain]) < 0.95
    assert not any("neon" in words for words in plain)
    styled = [caption(ROW, rng, style_words=True) for _ in range(300)]
    assert all("neon" in words for words in styled)
    assert len(set(styled)) > 40
    assert all(len(words.split()) <= MAX_WORDS and words == words.lower() for words in plain + styled)


def test_the_same_draw_gives_the_same_caption():
    assert caption(ROW, np.random.default_rng(5), True) == caption(ROW, np.random.default_rng(5), True)


def test_about_half_of_the_captions_name_the_style(data_set):
    def styled(row: dict) -> bool:
        return any(words in row["caption"] for words in style_phrases(row["set"], row["rendition"]))

    share = np.mean([styled(row) for row in all_rows(data_set)])
    assert 0.35 < share < 0.65


def test_every_style_can_be_said_in_words():
    for art_set in art.SETS:
        assert 2 <= len(style_phrases(art_set.name)) <= 4
    with pytest.raises(DataError, match="no rendition is called 'sfumato'"):
        style_phrases("noto", "sfumato")


def test_evaluation_prompts_name_one_subject():
    truck = {"subject": "1F69A", "label": "delivery truck", "tags": ["car", "vehicle", "parcel"]}
    phrases = subject_phrases(ROW, tag_counts([ROW, truck]))
    assert phrases[:2] == ["automobile", "an automobile"]
    assert "driving" in phrases and "car" not in phrases and "vehicle" not in phrases


# ---------------------------------------------------------------- the commands


def test_the_command_builds_a_card_and_contact_sheets(tmp_path):
    arguments = ["icons", "--out", str(tmp_path / "set"), "--art", str(ART), "--size", "32", "--renditions", "1", "--limit", "12"]
    arguments += ["--house-renditions", "4"]
    result = CliRunner().invoke(app, [*arguments, "--processes", "1"])
    assert result.exit_code == 0, result.output
    card = (tmp_path / "set" / "card.md").read_text()
    assert f"**{48 + 36 * 2 + 12 * 3} pictures**: 48 as drawn" in card  # the house drawing of each subject has three more
    assert "| twemoji | @iconify-json/twemoji 1.2.5 | CC-BY-4.0 | twemoji | 12 | training |" in card
    sheets = sorted((tmp_path / "set" / "sheets").iterdir())
    assert len(sheets) == 1 + -(-len(RENDITIONS) // 10)
    assert all(cv2.imread(str(sheet)) is not None for sheet in sheets)
    looked = CliRunner().invoke(app, ["look", str(tmp_path / "set"), "--out", str(tmp_path / "sheets"), "--thumb", "24"])
    assert looked.exit_code == 0 and (tmp_path / "sheets" / "sets.jpg").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["icons", "--out", "{tmp}/set", "--size", "4"], "ConfigError: size is 4: expected 16 to 512 pixels"),
        (["icons", "--out", "{tmp}/set", "--art", "{tmp}/nowhere"], "DataError: .* holds no subjects.json"),
        (["icons", "--out", "{tmp}/set", "--offline", "--cache", "{tmp}/empty"], "DataError: .* --offline forbids fetching it"),
        (["look", "{tmp}/nowhere", "--out", "{tmp}/sheets"], "DataError: .* holds no shards"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(tmp_path, arguments, message, capsys):
    assert cli.run(["data", *(argument.replace("{tmp}", str(tmp_path)) for argument in arguments)]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
    assert len(lines) == 1
    assert re.match(f"error: {message}", lines[0])


def test_asking_for_help_loads_nothing_heavy():
    check = (
        "import sys, deadiff.apps.data_commands; print([m for m in ('cv2', 'datasets', 'torch', 'pyarrow') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True).stdout.strip() == "[]"
