"""Named styles: saved whole, found again, shared as one file, refused for another model; strangers' files are not trusted."""

import json
from dataclasses import replace

import pytest
import torch
from PIL import Image
from safetensors.torch import load as read
from safetensors.torch import save

from deadiff.errors import ConfigError, ReferenceError
from deadiff.jobs import Job
from deadiff.loading import load
from deadiff.style_library import SUFFIX, SavedStyle, StyleLibrary, clean_name, file_name, make_style
from deadiff.stylizer import Stylizer
from tiny import picture, tiny_adapter, tiny_model_folder, tiny_pipeline


@pytest.fixture(scope="module")
def stylizer(tmp_path_factory):
    return load(tiny_model_folder(tmp_path_factory.mktemp("model")), device="cpu")


@pytest.fixture(scope="module")
def style(stylizer) -> SavedStyle:
    return make_style(stylizer, "neon", [(picture(1), 0.7), (picture(2), 0.3)])


@pytest.fixture
def library(tmp_path) -> StyleLibrary:
    return StyleLibrary(tmp_path / "styles")


def test_a_saved_style_draws_the_same_picture_as_its_references(stylizer, style, library):
    library.save(style)
    kept = library.get("neon")
    options = {"seed": 3, "num_inference_steps": 2}
    drawn = stylizer(Job(prompt="a robot", style=kept.tokens_for(stylizer)), **options).images[0]
    again = stylizer(Job(prompt="a robot", style=[(picture(1), 0.7), (picture(2), 0.3)]), **options).images[0]
    assert drawn.tobytes() == again.tobytes()
    assert [s.weight for s in kept.sources] == [0.7, 0.3] and kept.created and kept.thumbnail.size == (128, 128)


def test_a_file_goes_round_without_a_change(style):
    data = style.to_bytes()
    again = SavedStyle.from_bytes(data)
    assert again.to_bytes() == data and torch.equal(again.tokens, style.tokens)
    assert again.thumbnail.tobytes() == style.thumbnail.tobytes()


def test_save_rename_and_delete(library, style):
    library.save(style)
    with pytest.raises(ConfigError, match="a style 'neon' already"):
        library.save(style)
    library.save(style, replace=True)
    assert library.rename("neon", "night  lights").name == "night lights" and library.names() == ["night lights"]
    library.save(style)
    with pytest.raises(ConfigError, match="already"):
        library.rename("neon", "night lights")
    assert library.names() == ["neon", "night lights"]
    library.delete("neon")
    with pytest.raises(ConfigError, match="no style 'neon': expected one of those saved .night lights"):
        library.get("neon")


def test_a_shared_file_is_imported_and_numbered_on_where_its_name_is_taken(library, style, tmp_path):
    library.save(style)
    name, data = library.export("neon")
    assert name.startswith("neon-") and name.endswith(SUFFIX)
    (tmp_path / name).write_bytes(data)
    assert library.import_style(tmp_path / name).name == "neon (2)"
    assert library.import_style(data).name == "neon (3)" and library.import_style(data, "other").name == "other"
    (library.folder / f"dropped in{SUFFIX}").write_bytes(SavedStyle.from_bytes(data).to_bytes())
    assert library.names() == ["neon", "neon (2)", "neon (3)", "other"]  # the same name twice is one style


def test_a_file_dropped_into_the_folder_is_found_renamed_and_replaced(library, style):
    (library.folder / f"from a friend{SUFFIX}").write_bytes(style.to_bytes())
    (library.folder / f"broken{SUFFIX}").write_bytes(b"no style")
    assert library.names() == ["neon"]
    library.save(style, replace=True)
    assert sorted(p.name for p in library.folder.iterdir()) == [f"broken{SUFFIX}", file_name("neon")]


def test_a_style_of_another_model_is_refused_in_one_line(style):
    pipe = tiny_pipeline()
    other = Stylizer(pipe, tiny_adapter(pipe.unet, seed=5))
    with pytest.raises(ReferenceError, match="'neon' was made for another model: .*make it again") as caught:
        style.tokens_for(other)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["../../etc/passwd", "a/b\\c", "..", "CON", ".hidden", "né 🎨", "x" * 80, "neon\x00\n‮red"])
def test_no_name_leads_out_of_the_folder(library, style, name):
    path = library.save(replace(style, name=name))
    assert path.parent == library.folder and path.is_file() and library.names() == [clean_name(name)]
    assert set(path.name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-.") and not path.name.startswith(".")


def test_a_name_is_one_line_of_visible_text():
    assert clean_name(" neon\x00\n \u202e\u00a0red ") == "neon red"
    for name in ("", " \n", "\u200b", "x" * 81, None, 7):
        with pytest.raises(ConfigError, match="style's name"):
            clean_name(name)


def changed(saved: SavedStyle, header=None, **tensors) -> bytes:
    data = saved.to_bytes()
    size = int.from_bytes(data[:8], "little")
    text = json.loads(json.loads(data[8 : 8 + size])["__metadata__"]["deadiff"]) | (header or {})
    return save({**read(data), **tensors}, metadata={"deadiff": json.dumps(text)})


def test_strangers_files_are_refused_in_one_line(style, library):
    good = style.to_bytes()
    nan = torch.full((1, 4, 4), float("nan"))
    bad = {
        "nothing": b"",
        "text": b"hello",
        "cut short": good[:-10],
        "a giant header": (2**62).to_bytes(8, "little") + good[8:],
        "deep json": (200_000).to_bytes(8, "little") + b"[" * 200_000,
        "not numbers": changed(style, style=nan),
        "a wrong shape": changed(style, style=torch.zeros(4)),
        "half a thumbnail": changed(style, thumbnail=torch.zeros(5, 5, dtype=torch.uint8)),
        "a giant thumbnail": changed(style, thumbnail=torch.zeros(2000, 1, 3, dtype=torch.uint8)),
        "an empty name": changed(style, {"name": "\n"}),
        "a long name": changed(style, {"name": "x" * 1000}),
        "no fingerprint": changed(style, {"model": "../.."}),
        "odd sources": changed(style, {"sources": [[1]]}),
        "another format": changed(style, {"format": "deadiff style 9"}),
        "too much": b"\0" * (16 * 2**20 + 1),
    }
    for kind, data in bad.items():
        with pytest.raises(ReferenceError) as caught:
            library.import_style(data)
        assert "\n" not in str(caught.value), kind
    assert library.names() == [] and not list(library.folder.iterdir())


def test_a_style_needs_pictures(stylizer, style):
    with pytest.raises(ReferenceError, match="no reference"):
        make_style(stylizer, "x", [])
    with pytest.raises(ReferenceError, match="made of pictures"):
        make_style(stylizer, "x", style.tokens_for(stylizer))


def test_a_thumbnail_shows_up_to_four_references(stylizer):
    red, blue = Image.new("RGB", (40, 20), "red"), Image.new("RGB", (20, 20), "blue")
    sheet = make_style(stylizer, "two", [red, blue]).thumbnail
    assert sheet.getpixel((32, 32)) == (255, 0, 0) and sheet.getpixel((96, 32)) == (0, 0, 255)
    assert sheet.getpixel((96, 96)) == (255, 255, 255)
