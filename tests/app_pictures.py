"""The pictures of docs/app.md, taken of the real page with the embedded model in a headless Chromium: `make app-pictures`."""

import tempfile
from pathlib import Path

from browser import chromium
from deadiff.web.server import start
from test_web_page import Tab

ROOT = Path(__file__).parent.parent
PHONE = 390, 844  # pixels


def reference(name: str) -> Path:
    return ROOT / "examples" / "references" / f"{name}.png"


def take(tab: Tab, name: str) -> None:
    tab.page.mouse.move(0, 0)
    tab.page.wait_for_timeout(1500)  # thumbnails and transitions
    tab.page.screenshot(path=ROOT / "docs" / f"app-{name}.png")


def main() -> None:
    with tempfile.TemporaryDirectory() as name, chromium() as browser:
        folder = Path(name)
        app = start(folder, ["icons"], port=0)
        tab = Tab(browser, (app, folder))
        take(tab, "empty")
        tab.give(reference("neon-camera"))
        tab.draw("a cat", number=4)
        tab.choose_newest()
        take(tab, "drawn")

        tab.open("Styles")
        tab.page.fill("#style-name input, #style-name textarea", "neon sign")
        tab.page.click("#style-save")
        tab.said("Saved the style", "style-said")
        take(tab, "styles")

        tab = Tab(browser, (app, folder))
        tab.give(*map(reference, ("neon-camera", "vaporwave-dolphin", "paper-cut-rose")))
        tab.page.fill("#prompt textarea", "a cat")
        tab.enter("seed", "7")
        tab.open("Compare")
        tab.page.fill("#strengths textarea, #strengths input", "0.5, 1, 1.5")
        before = tab.files()
        tab.page.click("#compare")
        tab.done(before)
        tab.page.wait_for_selector("#sheet img")
        take(tab, "compare")

        tab = Tab(browser, (app, folder), *PHONE)
        tab.give(reference("paper-cut-rose"))
        tab.draw("a robot", number=4)
        take(tab, "phone")
        app.close()


if __name__ == "__main__":
    main()
