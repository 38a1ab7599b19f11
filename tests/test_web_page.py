"""The page in a real headless Chromium, over a tiny random model: what an artist does, from the first look to a saved style."""

import io
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("gradio", reason="gradio is not installed: pip install 'deadiff[web]'")

from browser import chromium
from deadiff.recipe import read_recipe
from deadiff.web.server import start
from tiny import picture, tiny_adapter, tiny_pipeline

SOON = 120_000  # ms: a step of the page, also on a machine that trains at the same time
pytestmark = [
    pytest.mark.filterwarnings("default"),  # Gradio's and its server's own warnings are not ours to mend
    pytest.mark.timeout(300),
]


def tiny_stylizer(name: str):
    from deadiff.defaults import Defaults
    from deadiff.stylizer import Origin, Stylizer

    pipe = tiny_pipeline("icons")
    defaults = Defaults(num_inference_steps=3, guidance_scale=4.0, batch_size=4)
    return Stylizer(pipe, tiny_adapter(pipe.unet, "icons"), defaults=defaults, origin=Origin(model=name))


@pytest.fixture(scope="module")
def browser():
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def app(browser, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    running = start(folder, ["icons"], port=0, loader=tiny_stylizer)
    yield running, folder
    running.close()


@pytest.fixture(scope="module")
def reference(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("uploads") / "blue sea.png"
    picture(1).save(path)
    return path


class Tab:
    """A browser's tab with the page open, in the words of its user."""

    def __init__(self, browser, app, width: int = 1280, height: int = 900) -> None:
        self.running, self.folder = app
        self.context = browser.new_context(viewport={"width": width, "height": height}, accept_downloads=True)
        self.page = self.context.new_page()
        self.page.set_default_timeout(SOON)
        self.asked: list[str] = []
        self.errors: list[str] = []
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("dialog", lambda dialog: dialog.accept())
        self.page.goto(self.running.url)
        self.page.wait_for_selector("#draw")
        self.settled()

    def settled(self) -> None:
        self.page.wait_for_load_state("networkidle") if not self.asked else self.page.wait_for_timeout(300)

    def upload(self, *paths: Path, role: str = "style") -> None:
        self.page.set_input_files(f"#{role}-references input[type=file]", [str(path) for path in paths])

    def give(self, *paths: Path, role: str = "style") -> None:
        before = self.page.locator(f"#{role}-references img").count()
        self.upload(*paths, role=role)
        self.page.wait_for_function(f"document.querySelectorAll('#{role}-references img').length >= {before + len(paths)}")

    def enter(self, part: str, value: str) -> None:
        """Type into a field and see that it is there: one that the page is still putting up takes its first value again."""
        field = self.page.locator(f"#{part} input[type=number], #{part} input[type=text], #{part} textarea").first
        for _ in range(20):
            field.fill(value)
            field.blur()
            self.page.wait_for_timeout(150)
            if field.input_value() == value:
                return
        raise AssertionError(f"#{part} shows {field.input_value()!r}, not the {value!r} that was typed")

    def open(self, part: str) -> None:
        self.page.get_by_role("tab", name=part).click()

    def draw(self, prompt: str, steps: int = 3, number: int = 1, seed: str = "7") -> list[Path]:
        """Press Draw and wait until it is done: the files that are new."""
        before = self.files()
        self.page.fill("#prompt textarea", prompt)
        self.enter("number", str(number))
        self.enter("seed", seed)
        self.page.click("#draw")
        return self.done(before)

    def said(self, pattern: str, part: str = "now") -> str:
        self.page.wait_for_function(
            "([part, pattern]) => new RegExp(pattern).test(document.querySelector('#' + part)?.innerText ?? '')",
            arg=[part, pattern],
        )
        return self.page.inner_text(f"#{part}")

    def done(self, before: set[Path]) -> list[Path]:
        """Wait until a drawing that was asked for has ended: the files that are new."""
        for _ in range(SOON // 50):  # until the first is there the page may still tell of the drawing before
            if self.files() - before:
                break
            self.page.wait_for_timeout(50)
        self.said(r"pictures? in")
        return sorted(self.files() - before)

    def files(self) -> set[Path]:
        return set(self.folder.glob("*.png"))

    def choose_newest(self) -> None:
        self.open("Pictures")
        self.page.locator("#gallery button.thumbnail-item, #gallery .thumbnail-item").first.click()
        self.said(r"Prompt", "details")


@pytest.fixture
def tab(browser, app):
    opened = Tab(browser, app)
    yield opened
    assert opened.errors == []
    opened.context.close()


def pixels_of(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def test_an_empty_page_teaches_and_asks_nobody_but_this_app(browser, tmp_path):
    running = start(tmp_path / "new", ["icons"], port=0, loader=tiny_stylizer)
    try:
        tab = Tab(browser, (running, tmp_path / "new"))
        assert "Nothing drawn yet" in tab.page.inner_text("#lesson")
        tab.page.get_by_role("button", name="a heart, ink pizza").click()
        tab.page.wait_for_selector("#style-references img")
        assert tab.page.input_value("#prompt textarea") == "a heart"
        policy = tab.page.request.get(running.url).headers["content-security-policy"]
        assert "connect-src 'self'" in policy and "http" not in policy
        elsewhere = [url for url in tab.asked if not url.startswith((running.url, "data:", "blob:"))]
        assert elsewhere == [] and len(tab.asked) > 5
        tab.context.close()
    finally:
        running.close()


def test_upload_a_reference_draw_and_see_the_picture_appear(tab, reference):
    tab.give(reference)
    made = tab.draw("a robot", number=2)
    assert len(made) == 2
    tab.page.wait_for_selector("#now .looks.made img")
    assert tab.page.locator("#now .looks.made img").count() == 2
    recipe = read_recipe(made[0])
    assert recipe.prompt == "a robot" and recipe.seed == 7 and not recipe.unrecorded
    kept = Path(recipe.style[0].path)
    assert kept.parent == tab.folder / "references" and kept.read_bytes() == reference.read_bytes()
    tab.choose_newest()
    assert "blue sea" in tab.page.inner_text("#details").replace("-", " ")
    with tab.page.expect_download() as download:
        tab.page.click("#download")
    assert read_recipe(download.value.path()).prompt == "a robot"  # the very file, with its recipe


def test_the_picture_is_seen_step_by_step_and_cancel_stops_it(tab, reference):
    tab.give(reference)
    tab.page.get_by_role("button", name="Settings").click()
    tab.enter("steps", "200")
    tab.page.fill("#prompt textarea", "a long one")
    tab.enter("number", "16")
    before = tab.files()
    tab.page.click("#draw")
    tab.page.wait_for_selector("#now .looks img")
    first = tab.page.get_attribute("#now .looks img", "src")
    tab.page.wait_for_function("(old) => document.querySelector('#now .looks img')?.src !== old", arg=first)
    assert re.search(r"\d+ of 3200 steps", tab.page.inner_text("#now"))
    assert tab.page.get_attribute("#now progress", "max") == "3200" and tab.page.is_disabled("#draw")
    tab.page.click("#cancel")
    tab.said("Cancelled")
    assert tab.page.is_enabled("#draw") and tab.page.is_disabled("#cancel")
    assert len(tab.files() - before) < 16
    tab.enter("steps", "3")
    assert len(tab.draw("after it")) == 1


def test_a_broken_file_is_refused_politely_in_one_line(tab, tmp_path, reference):
    broken = tmp_path / "holiday.png"
    broken.write_bytes(b"this is no picture at all")
    tab.upload(broken)
    text = tab.said("holiday.png")
    assert "not a picture" in text and "\n" not in text.strip() and "Traceback" not in text
    assert tab.page.get_attribute("#now .wrong", "role") == "alert"
    tab.page.wait_for_function("document.querySelectorAll('#style-references img').length === 0")
    tab.give(reference)
    assert len(tab.draw("still works")) == 1
    tab.enter("seed", "seven")
    tab.page.click("#draw")
    assert "whole number" in tab.said("seed is 'seven'")
    assert tab.page.is_enabled("#draw")


def test_a_style_is_saved_used_renamed_shared_deleted_and_brought_back(tab, reference, tmp_path):
    tab.give(reference)
    by_picture = tab.draw("a boat")[0]
    tab.open("Styles")
    tab.page.fill("#style-name input, #style-name textarea", "deep sea")
    tab.page.click("#style-save")
    tab.said("Saved the style 'deep sea'", "style-said")
    tab.page.fill("#style-new-name input, #style-new-name textarea", "ocean <b>")
    tab.page.click("#style-rename")
    tab.said("is called 'ocean <b>' now", "style-said")
    tab.page.wait_for_selector("#style-share:not([disabled])")
    with tab.page.expect_download() as download:
        tab.page.click("#style-share")
    assert "ocean" in download.value.suggested_filename  # the new name's file, not the one that lay ready before
    shared = tmp_path / download.value.suggested_filename
    download.value.save_as(shared)
    tab.page.click("#style-delete")
    tab.said("Deleted the style", "style-said")
    assert list((tab.folder / "styles").iterdir()) == []
    with tab.page.expect_file_chooser() as chooser:
        tab.page.click("#style-bring")
    chooser.value.set_files(str(shared))
    tab.said("Brought in the style 'ocean <b>'", "style-said")

    fresh = again_in_a_new_browser(tab)
    fresh.open("Styles")
    fresh.page.locator("#style-gallery .thumbnail-item").first.click()
    fresh.page.wait_for_selector("#style-share:not([disabled])")
    fresh.page.click("#style-use")
    fresh.said("among the style references", "style-said")
    by_style = fresh.draw("a boat")[0]
    assert np.abs(pixels_of(by_style).astype(int) - pixels_of(by_picture)).max() <= 2
    assert read_recipe(by_style).style[0].path == "style:ocean <b>"
    fresh.choose_newest()
    before = fresh.files()
    fresh.page.click("#again")
    again = fresh.done(before)
    assert len(again) == 1 and (pixels_of(again[0]) == pixels_of(by_style)).all()
    assert fresh.errors == []
    fresh.context.close()


def again_in_a_new_browser(tab: Tab) -> Tab:
    """The same app in a new browser, which knows nothing of the first."""
    return Tab(tab.context.browser, (tab.running, tab.folder))


def test_again_gives_the_same_picture_and_vary_others_with_the_same_settings(tab, reference, tmp_path):
    second = tmp_path / "red.png"
    picture(2).save(second)
    tab.give(reference, second)
    tab.page.wait_for_selector("#style-weight-2", state="visible")
    tab.enter("style-weight-2", "0.5")
    first = tab.draw("a kite", seed="41")[0]
    assert [source.weight for source in read_recipe(first).style] == [1.0, 0.5]

    fresh = again_in_a_new_browser(tab)
    fresh.choose_newest()
    before = fresh.files()
    fresh.page.click("#again")
    again = fresh.done(before)
    assert len(again) == 1 and (pixels_of(again[0]) == pixels_of(first)).all()
    assert (
        fresh.page.input_value("#prompt textarea") == "a kite" and fresh.page.input_value("#seed input, #seed textarea") == "41"
    )
    before = fresh.files()
    fresh.page.click("#vary")
    fresh.page.wait_for_function("document.querySelector('#seed input, #seed textarea').value === ''")
    fresh.said(r"4 pictures in")
    varied = sorted(fresh.files() - before)
    assert len(varied) == 4
    assert {read_recipe(path).seed for path in varied}.isdisjoint({41}) and {read_recipe(p).prompt for p in varied} == {"a kite"}
    assert all([s.weight for s in read_recipe(path).style] == [1.0, 0.5] for path in varied)
    fresh.choose_newest()
    count = fresh.page.locator("#style-references img").count()
    fresh.page.click("#as-style")
    fresh.page.wait_for_function(f"document.querySelectorAll('#style-references img').length > {count}")
    fresh.context.close()


def test_a_comparison_is_a_grid_of_references_and_strengths_under_one_seed(tab, reference, tmp_path):
    second = tmp_path / "green.png"
    picture(3).save(second)
    tab.give(reference, second)
    tab.page.fill("#prompt textarea", "a house")
    tab.enter("seed", "5")
    tab.open("Compare")
    tab.page.fill("#strengths textarea, #strengths input", "0.5, 1, 1.5")
    before = tab.files()
    tab.page.click("#compare")
    made = tab.done(before)
    assert len(made) == 7
    sheet = next(path for path in made if path.name.startswith("comparison"))
    recipes = [read_recipe(path) for path in made if path != sheet]
    assert {recipe.seed for recipe in recipes} == {5} and sorted({r.strength for r in recipes}) == [0.5, 1.0, 1.5]
    tab.page.wait_for_selector("#sheet img")
    data = tab.page.request.get(tab.page.get_attribute("#sheet img", "src")).body()
    with Image.open(io.BytesIO(data)) as shown, Image.open(sheet) as kept:
        assert shown.size == kept.size and shown.width > 250
    tab.page.fill("#strengths textarea, #strengths input", "lots")
    tab.page.click("#compare")
    assert "expected numbers" in tab.said("strengths are 'lots'")


def test_the_keyboard_alone_is_enough_to_draw_and_to_choose(tab):
    page = tab.page
    page.wait_for_timeout(500)
    page.focus("#prompt textarea")
    before = tab.files()
    page.keyboard.type("a tree")
    page.keyboard.press("Enter")
    made = tab.done(before)
    assert len(made) == 4 and read_recipe(made[0]).prompt == "a tree"
    seen = []
    for _ in range(80):
        page.keyboard.press("Tab")
        seen.append(page.evaluate("document.activeElement.closest('[id]')?.id ?? ''"))
        if page.evaluate("!!document.activeElement.closest('#gallery')"):
            break
    assert "draw" in seen and seen[-1] != ""
    page.keyboard.press("Enter")
    tab.said("Prompt", "details")


def test_a_phone_shows_everything_without_sideways_scrolling_and_draws(browser, app, reference):
    tab = Tab(browser, app, 390, 844)
    page = tab.page
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    tab.give(reference)
    assert page.is_visible("#draw")
    box = page.locator("#draw").bounding_box()
    assert box is not None and 0 <= box["y"] < 844 - box["height"] and box["height"] >= 36
    tab.draw("a fish")
    for part in ("Compare", "Styles", "Pictures"):
        tab.open(part)
        page.wait_for_timeout(200)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert tab.errors == []
    tab.context.close()


def test_a_password_keeps_strangers_out(browser, tmp_path):
    running = start(tmp_path / "kept", ["icons"], port=0, password="open sesame", loader=tiny_stylizer)
    try:
        context = browser.new_context()
        page = context.new_page()
        page.set_default_timeout(SOON)
        kept = tmp_path / "kept" / "secret.png"
        picture(1).save(kept)
        for address in ("config", f"gradio_api/file={kept}"):
            assert page.request.get(running.url + address).status == 401
        page.goto(running.url)
        page.wait_for_selector("input[type=password]")
        assert page.locator("#draw").count() == 0
        page.locator("input:not([type=password])").first.fill("deadiff")
        page.fill("input[type=password]", "open sesame")
        page.keyboard.press("Enter")
        page.wait_for_selector("#draw")
        assert page.request.get(running.url + f"gradio_api/file={kept}").status == 200
        context.close()
    finally:
        running.close()
