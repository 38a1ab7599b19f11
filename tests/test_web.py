"""The app without its page: what it keeps, what it reads out of a form and back, how a drawing is told, cancelled and refused."""

import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import deadiff
from deadiff.defaults import Defaults
from deadiff.recipe import read_recipe
from deadiff.stylizer import Origin, Stylizer
from deadiff.web import markup
from deadiff.web.drawing import Event, told
from deadiff.web.folder import Folder
from deadiff.web.models import Models
from deadiff.web.request import Given, Request, request_of
from deadiff.web.server import claim, is_loopback, start
from deadiff.web.studio import Studio, read_strengths
from deadiff.web.words import EXAMPLES, PRESETS, preset
from tiny import picture, tiny_adapter, tiny_pipeline


@pytest.fixture(scope="module")
def stylizer() -> Stylizer:
    pipe = tiny_pipeline("icons")
    defaults = Defaults(num_inference_steps=3, guidance_scale=4.0, batch_size=4)
    return Stylizer(pipe, tiny_adapter(pipe.unet, "icons"), defaults=defaults, origin=Origin(model="icons"))


@pytest.fixture
def studio(stylizer, tmp_path) -> Studio:
    return Studio(Folder(tmp_path / "kept"), Models(["icons", "other"], lambda _: stylizer))


@pytest.fixture
def reference(tmp_path) -> Path:
    path = tmp_path / "uploads" / "blue sea!.PNG"
    path.parent.mkdir()
    picture(1).save(path)
    return path


def last(events) -> Event:
    return list(events)[-1]


def drawn(studio: Studio, request: Request) -> list[Path]:
    event = last(studio.draw(request, threading.Event()))
    assert event.error is None, event.error
    return list(event.result.paths)


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def test_a_reference_is_kept_once_under_its_hash_and_outlives_the_upload(studio, reference):
    first = studio.folder.keep_reference(reference)
    assert first.path is not None and Path(first.path).read_bytes() == reference.read_bytes()
    again = studio.folder.keep_reference(reference, 0.5)
    assert again.path == first.path and again.weight == 0.5
    assert studio.folder.keep_reference(first.path).path == first.path
    assert len(list(studio.folder.references.iterdir())) == 1


def test_a_file_that_is_no_picture_is_refused_by_its_own_name_and_leaves_nothing(studio, tmp_path):
    bad = tmp_path / "notes.png"
    bad.write_text("hello")
    with pytest.raises(deadiff.ReferenceError, match=r"^'notes\.png' is not a picture"):
        studio.folder.keep_reference(bad)
    assert list(studio.folder.references.iterdir()) == []


def test_the_gallery_holds_drawn_pictures_newest_first_and_nothing_from_elsewhere(studio, tmp_path):
    first = drawn(studio, Request(prompt="one", seed=1))[0]
    second = drawn(studio, Request(prompt="two", seed=1))[0]
    picture(1).save(studio.folder.path / "no-recipe.png")
    assert studio.folder.pictures() == [second, first]
    outside = tmp_path / "outside.png"
    outside.write_bytes(first.read_bytes())
    with pytest.raises(deadiff.ConfigError, match="not among the drawn pictures"):
        studio.folder.recipe(outside)


def test_a_request_comes_back_out_of_the_picture_it_drew(studio, reference, tmp_path):
    content = tmp_path / "subject.png"
    picture(2).save(content)
    studio.folder.styles.save(make_saved(studio, reference, "deep sea"))
    request = Request(
        prompt="a robot",
        style=(Given(path=str(reference), weight=0.7), Given(style="deep sea", weight=0.3)),
        content=(Given(path=str(content)),),
        strength=1.2,
        num_inference_steps=2,
        guidance_scale=3.0,
        scheduler="ddim",
        negative_prompt="blurry",
        style_window=(0.0, 0.5),
        seed=5,
    )
    path = drawn(studio, request)[0]
    found = request_of(read_recipe(path), studio.folder)
    kept = tuple(replace(one, path=None) for one in found.style)
    assert kept == (Given(weight=0.7), Given(style="deep sea", weight=0.3))
    assert replace(found, style=(), content=()) == replace(request, style=(), content=())

    reference.unlink()  # the upload is gone, our copy is not
    studio.folder.styles.rename("deep sea", "ocean")
    again = last(studio.again(path, threading.Event()))
    assert again.error is None and (pixels(again.result.paths[0]) == pixels(path)).all()
    studio.folder.styles.delete("ocean")
    gone = last(studio.again(path, threading.Event()))
    assert gone.error is not None and "saved style 'deep sea' is gone" in gone.error


def make_saved(studio: Studio, reference: Path, name: str):
    from deadiff.style_library import make_style

    return make_style(studio.models.get("icons"), name, studio.folder.keep_reference(reference))


def test_a_saved_style_draws_what_its_reference_draws(studio, reference):
    by_picture = drawn(studio, Request(prompt="a boat", style=(Given(path=str(reference)),), seed=3))[0]
    style = studio.save_style("sea", [Given(path=str(reference))], "icons")
    by_style = drawn(studio, Request(prompt="a boat", style=(Given(style=style.name),), seed=3))[0]
    assert np.abs(pixels(by_picture).astype(int) - pixels(by_style)).max() <= 2
    with pytest.raises(deadiff.ConfigError, match="already"):
        studio.save_style("sea", [Given(path=str(reference))], "icons")
    with pytest.raises(deadiff.ConfigError, match="no style reference"):
        studio.save_style("other", [], "icons")


def test_a_drawing_tells_its_steps_and_shows_pictures_in_the_making(studio):
    events = list(studio.draw(Request(prompt="a robot", seed=1, num_inference_steps=6, num_images=2), threading.Event()))
    assert events[-1].ended and len(events[-1].looks) == 2
    steps = [event.done for event in events if event.total]
    assert steps == sorted(steps) and {event.total for event in events if event.total} == {12}
    page = markup.drawing_now(Event(done=5, total=12, looks=events[-1].looks), "5 of 12 steps")
    assert 'max="12"' in page and 'value="5"' in page and page.count("data:image/") == 2


def test_cancel_ends_the_drawing_at_the_next_step_and_keeps_what_is_finished(studio):
    cancel = threading.Event()
    seen = []
    for event in studio.draw(Request(prompt="a robot", seed=1, num_inference_steps=20, num_images=12), cancel):
        seen.append(event)
        if event.looks and studio.folder.pictures():  # the first batch of four is finished
            cancel.set()
    assert seen[-1].cancelled and seen[-1].ended and not seen[-1].error
    assert len(studio.folder.pictures()) in (4, 8)


def test_a_page_that_is_closed_loses_no_picture_and_the_next_waits_its_turn(studio):
    events = studio.draw(Request(prompt="left alone", seed=1, num_images=2), threading.Event())
    next(events)
    events.close()  # as when the browser's tab goes
    assert len(drawn(studio, Request(prompt="after", seed=1))) == 1
    assert {read_recipe(path).prompt for path in studio.folder.pictures()} == {"left alone", "after"}


def test_what_is_waited_for_can_be_cancelled_before_it_begins(studio):
    turn, cancel = threading.Lock(), threading.Event()
    with turn:
        events = told(lambda watcher: 1, cancel, turn)
        assert "Waiting" in next(events).note
        cancel.set()
        assert last(events).cancelled


def test_mistakes_are_one_line_and_bugs_do_not_end_the_app(studio, caplog):
    assert "nothing to draw" in pytest.raises(deadiff.ConfigError, Request, prompt=" ").value.args[0]
    with pytest.raises(deadiff.ConfigError, match="1 to 64"):
        Request(prompt="x", num_images=65)
    with pytest.raises(deadiff.ConfigError, match="at most 6"):
        Request(prompt="x", style=tuple(Given(path=str(i)) for i in range(7)))
    wrong = last(studio.draw(Request(prompt="x", model="elsewhere/model"), threading.Event()))
    assert wrong.error is not None and "not among those of this page" in wrong.error

    def bug(watcher):
        raise ZeroDivisionError("one\nby zero")

    event = last(told(bug, threading.Event(), threading.Lock()))
    assert event.error == "this went wrong inside: one by zero (the terminal says more)"
    assert "Traceback" in caplog.text


def test_a_comparison_draws_each_reference_alone_at_each_strength(studio, reference, tmp_path):
    second = tmp_path / "red.png"
    picture(2).save(second)
    request = Request(prompt="a kite", style=(Given(path=str(reference)), Given(path=str(second), weight=0.2)), num_images=4)
    event = last(studio.compare(request, [0.5, 1.5], threading.Event()))
    assert event.error is None and len(event.result.paths) == 4
    recipes = [read_recipe(path) for path in event.result.paths]
    assert [r.strength for r in recipes] == [0.5, 0.5, 1.5, 1.5] and len({r.seed for r in recipes}) == 1
    assert all(len(r.style) == 1 and r.style[0].weight == 1 for r in recipes)
    with Image.open(event.result.sheet) as sheet:
        assert sheet.width > 250 and sheet.height > 300
    assert event.result.sheet not in studio.folder.pictures()
    alone = last(studio.compare(Request(prompt="a kite"), [1.0], threading.Event()))
    assert alone.error is not None and "needs style references" in alone.error


def test_strengths_are_read_from_what_people_type():
    assert read_strengths("0.5, 1;1.5 1") == [0.5, 1.0, 1.5]
    for text in ("", "much", "-1", "nan", "1e9"):
        with pytest.raises(deadiff.ConfigError, match="expected numbers"):
            read_strengths(text)


def test_one_model_is_in_memory_and_only_offered_ones_are_loaded():
    loads = []

    def loader(name: str) -> object:
        loads.append(name)
        return object()

    models = Models(["icons", "sd15"], loader)
    first = models.get("icons")
    assert models.get("icons") is first and loads == ["icons"]
    models.get("sd15")
    assert models.loaded("sd15") and not models.loaded("icons")
    with pytest.raises(deadiff.ConfigError, match="--model"):
        models.get("/etc")
    assert loads == ["icons", "sd15"]


def test_every_preset_and_example_can_be_used():
    defaults = Defaults(num_inference_steps=20, guidance_scale=4.0)
    assert preset("", defaults) == preset("The model's own", defaults)
    settings = {name: preset(name, defaults) for name in PRESETS}
    assert len(set(settings.values())) == len(PRESETS)
    assert settings["Quick sketch"].steps == 10 and settings["Fine"].steps == 40
    for example in EXAMPLES:
        assert deadiff.Reference(str(example.path)).picture.size[0] >= 64


def test_text_of_others_is_escaped():
    assert "<script>" not in markup.wrong("<script>") + markup.said("<script>")
    assert "\n" not in markup.wrong("a\nb")


def test_the_app_opens_to_others_only_with_a_password(tmp_path):
    assert all(map(is_loopback, ("127.0.0.1", "localhost", "::1"))) and not any(map(is_loopback, ("0.0.0.0", "192.168.1.2", "x")))
    with pytest.raises(deadiff.ConfigError, match="DEADIFF_WEB_PASSWORD"):
        start(tmp_path, ["icons"], host="0.0.0.0", port=0)
    taken = __import__("socket").socket()
    with taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(deadiff.ConfigError, match="choose another --port"):
            claim("127.0.0.1", taken.getsockname()[1])
