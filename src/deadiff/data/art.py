"""The art: which packages, which versions, whose licences; fetched once by npm and apt, checked by sha256, kept in a cache."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from deadiff.errors import DataError

DEFAULT_CACHE = Path("~/.cache/deadiff/art")


@dataclass(frozen=True, kw_only=True)
class Package:
    """One archive: `npm pack NAME@VERSION` or `apt-get download NAME=VERSION` writes `file`; its bytes hash to `sha256`."""

    name: str
    version: str
    sha256: str
    client: str = "npm"  # "npm" or "apt"

    @property
    def file(self) -> str:
        if self.client == "apt":
            return f"{self.name}_{self.version}_all.deb"
        return f"{self.name.lstrip('@').replace('/', '-')}-{self.version}.tgz"

    @property
    def command(self) -> list[str]:
        if self.client == "apt":
            return ["apt-get", "download", f"{self.name}={self.version}"]
        return ["npm", "pack", f"{self.name}@{self.version}", "--silent"]


@dataclass(frozen=True, kw_only=True)
class ArtSet:
    """The same subjects drawn by one hand.

    `family` names the drawing: sets of one family share their outlines (all of Fluent, both EmojiOne 2, and for a good part of
    the subjects both Noto), so a picture of one gives the drawing of the other away: splits.py holds out whole families.
    """

    name: str
    package: Package
    kind: str  # "iconify" | "openmoji" | "webp" | "font"
    member: str = ""  # the folder or font file inside the archive
    family: str
    licence: str  # SPDX identifier, or plain words
    attribution: str
    url: str
    colour: bool = True
    held_out: bool = False  # an unseen style: measured, never trained on


def _iconify(name: str, version: str, sha256: str) -> Package:
    return Package(name=f"@iconify-json/{name}", version=version, sha256=sha256)


EMOJIBASE = Package(
    name="emojibase-data", version="17.0.0", sha256="d01d0e2ca4e22cb402679532155342c71e2e871f25c32223c013b8b166ebdf5a"
)
EMOJILIB = Package(name="emojilib", version="4.0.3", sha256="7f9a6b43cff31d18985b7d65d11faba5bd971cbcc60020cf6d09322fbaaaf303")
_OPENMOJI = Package(name="openmoji", version="17.0.0", sha256="55ee7d13485dec86e9f38c1f3a645a13382d33ff97c0cd845ee824b0aef45e68")
_FLUENT = "Fluent Emoji, (c) Microsoft Corporation"
_FLUENT_URL = "https://github.com/microsoft/fluentui-emoji"
_NOTO_URL = "https://github.com/googlefonts/noto-emoji"
_EMOJIONE = "Emoji One 2 (EmojiTwo), (c) Emoji One and the EmojiTwo contributors"
_EMOJIONE_URL = "https://github.com/EmojiTwo/emojitwo"

SETS: tuple[ArtSet, ...] = (
    ArtSet(
        name="twemoji",
        package=_iconify("twemoji", "1.2.5", "19046dff7d8707ce96212ec86468b36ac5f8e60409629dd13f809265c6d0ebb7"),
        kind="iconify",
        family="twemoji",
        licence="CC-BY-4.0",
        attribution="Twemoji, (c) Twitter, Inc. and other contributors",
        url="https://github.com/jdecked/twemoji",
    ),
    ArtSet(
        name="noto",
        package=_iconify("noto", "1.2.9", "3e918d88fc945c0bb3d468dbace6f88caef67f01c9f0e7bcae0915a042e8f1ad"),
        kind="iconify",
        family="noto",
        licence="Apache-2.0",
        attribution="Noto Emoji, (c) Google LLC",
        url=_NOTO_URL,
    ),
    ArtSet(
        name="noto-v1",
        package=_iconify("noto-v1", "1.2.5", "2bf62c26c2c2884aa99e90aec942cdaee17a5921f05690694f4978ad4b017c37"),
        kind="iconify",
        family="noto",
        licence="Apache-2.0",
        attribution="Noto Emoji v1 (the blobs), (c) Google Inc.",
        url=_NOTO_URL,
    ),
    ArtSet(
        name="emojione",
        package=_iconify("emojione", "1.2.3", "26a14f44284407e8bcde91799388dca2bfd91dbcd55a97f425524a1c5b73610e"),
        kind="iconify",
        family="emojione",
        licence="CC-BY-4.0",
        attribution=_EMOJIONE,
        url=_EMOJIONE_URL,
    ),
    ArtSet(
        name="emojione-monotone",
        package=_iconify("emojione-monotone", "1.2.1", "40b90004bafb406b59266155ef9b7e1dd67bf2947fc8db8d07388776f4d0d04e"),
        kind="iconify",
        family="emojione",
        licence="CC-BY-4.0",
        attribution=_EMOJIONE,
        url=_EMOJIONE_URL,
        colour=False,
    ),
    ArtSet(
        name="fluent-emoji",
        package=_iconify("fluent-emoji", "1.2.7", "8044210dbf11e016d4de85f15d01a243423bd832457e7e2491df1b751c0e272b"),
        kind="iconify",
        url=_FLUENT_URL,
        family="fluent",
        licence="MIT",
        attribution=_FLUENT,
    ),
    ArtSet(
        name="fluent-emoji-flat",
        package=_iconify("fluent-emoji-flat", "1.2.6", "7d064769dee690815f823bc5bcc511d957198caf9f5edd8dd9c1aa48a6aeb175"),
        kind="iconify",
        url=_FLUENT_URL,
        family="fluent",
        licence="MIT",
        attribution=_FLUENT,
    ),
    ArtSet(
        name="fluent-emoji-high-contrast",
        package=_iconify(
            "fluent-emoji-high-contrast", "1.2.6", "0b92d48c90d2200bd499e3cdd09a127ca6a8c8ddefd34c35eb5a1e4994012ae0"
        ),
        kind="iconify",
        url=_FLUENT_URL,
        colour=False,
        family="fluent",
        licence="MIT",
        attribution=_FLUENT,
    ),
    ArtSet(
        name="fluent-3d",
        package=Package(
            name="@lobehub/fluent-emoji-3d",
            version="1.1.0",
            sha256="c1bb7eee7de090205a232518a9ab4adb3df458bfbe8a1f78232991194c8b2e58",
        ),
        kind="webp",
        member="package/assets/",
        url=_FLUENT_URL,
        family="fluent",
        licence="MIT",
        attribution=_FLUENT,
    ),
    ArtSet(
        name="noto-mono",
        package=Package(
            name="@fontsource/noto-emoji",
            version="5.3.2",
            sha256="1fe49bb2cf7c2d78f93c0a69b6a431dcfd0d585b7831eba87fae6888ccf8d373",
        ),
        kind="font",
        member="package/files/noto-emoji-emoji-400-normal.woff2",
        family="noto-mono",
        licence="OFL-1.1",
        attribution="Noto Emoji (monochrome font), (c) Google Inc. and the Noto Project Authors",
        url="https://fonts.google.com/noto/specimen/Noto+Emoji",
        colour=False,
    ),
    ArtSet(
        name="symbola",
        package=Package(
            name="fonts-symbola",
            version="2.60-1.1",
            sha256="408244997437d4103e9cdc9dd75db29d0e5fbee6e6874536173995204033a6df",
            client="apt",
        ),
        kind="font",
        member="usr/share/fonts/truetype/ancient-scripts/Symbola_hint.ttf",
        family="symbola",
        licence="free for any use",
        attribution="Symbola 2.60, George Douros, Unicode Fonts for Ancient Scripts (fonts are free for any use)",
        url="https://packages.debian.org/fonts-symbola",
        colour=False,
    ),
    ArtSet(
        name="fxemoji",
        package=_iconify("fxemoji", "1.2.2", "f3e72b3c59d05e1db03b7e308d55c0d05bd7ba3f625a90da1b79313c12858eef"),
        kind="iconify",
        family="fxemoji",
        licence="Apache-2.0",
        attribution="FxEmojis, (c) Mozilla Foundation",
        url="https://github.com/mozilla/fxemoji",
        held_out=True,
    ),
    ArtSet(
        name="streamline-emojis",
        package=_iconify("streamline-emojis", "1.2.4", "5dac87c876b322500989828c5823143e0100d78881627a2e4081a4b897cbfdbc"),
        kind="iconify",
        family="streamline-emojis",
        licence="CC-BY-4.0",
        attribution="Streamline Emojis, (c) Streamline (streamlinehq.com)",
        url="https://github.com/webalys-hq/streamline-vectors",
        held_out=True,
    ),
    ArtSet(
        name="openmoji",
        package=_OPENMOJI,
        kind="openmoji",
        member="package/color/svg/",
        family="openmoji",
        licence="CC-BY-SA-4.0",
        attribution="OpenMoji, (c) the OpenMoji authors, HfG Schwaebisch Gmuend",
        url="https://openmoji.org",
        held_out=True,
    ),
    ArtSet(
        name="openmoji-black",
        package=_OPENMOJI,
        kind="openmoji",
        member="package/black/svg/",
        family="openmoji",
        licence="CC-BY-SA-4.0",
        attribution="OpenMoji, (c) the OpenMoji authors, HfG Schwaebisch Gmuend",
        url="https://openmoji.org",
        colour=False,
        held_out=True,
    ),
    ArtSet(
        name="emojione-v1",
        package=_iconify("emojione-v1", "1.2.3", "6641d59d48a42823fdc2b84e7427e9f302944eb98d2c7d94d6e67c139e7b37b3"),
        kind="iconify",
        family="emojione-v1",
        licence="CC-BY-SA-4.0",
        attribution="Emoji One 1, (c) Emoji One",
        url="https://github.com/joypixels/emojione-legacy",
        held_out=True,
    ),
)
SETS_BY_NAME: dict[str, ArtSet] = {art_set.name: art_set for art_set in SETS}


def fetch(packages: Iterable[Package], cache: Path, *, offline: bool = False, on_done=lambda package: None) -> dict[str, Path]:
    """Package name -> its archive in `cache`, downloading what is missing. A file is complete and checked, or not there at all.

    Raises DataError: no network client, a failed download, a wrong checksum, or a missing archive when `offline`.
    """
    cache.mkdir(parents=True, exist_ok=True)
    archives: dict[str, Path] = {}
    for package in packages:
        archive = cache / package.file
        if not archive.exists():
            if offline:
                raise DataError(f"'{archive}' is missing and --offline forbids fetching it: run once without --offline")
            _download(package, archive)
        actual = hashlib.sha256(archive.read_bytes()).hexdigest()
        if actual != package.sha256:
            raise DataError(
                f"'{archive}' has sha256 {actual[:16]}..., expected {package.sha256[:16]}...: delete it and run again"
            )
        archives[package.name] = archive
        on_done(package)
    return archives


def _download(package: Package, archive: Path) -> None:
    client = package.command[0]
    if shutil.which(client) is None:
        raise DataError(
            f"'{client}' is needed to fetch {package.name} {package.version} and is not installed: install it, or pass --art DIR"
        )
    # one private folder a process and a package: two builds may share a cache, a killed one leaves no half archive behind
    work = archive.parent / f".{package.file}.{os.getpid()}"
    work.mkdir(exist_ok=True)
    try:
        done = subprocess.run(package.command, cwd=work, capture_output=True, text=True, timeout=600)
        written = sorted(work.iterdir())
        if done.returncode != 0 or len(written) != 1:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise DataError(f"`{' '.join(package.command)}` failed ({last}): check the network, or copy the file to '{archive}'")
        os.replace(written[0], archive)
    except subprocess.TimeoutExpired as error:
        raise DataError(f"`{' '.join(package.command)}` took longer than ten minutes: check the network and run again") from error
    finally:
        shutil.rmtree(work, ignore_errors=True)
