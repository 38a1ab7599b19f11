"""The subjects: Unicode's emoji without skin tones, components and country flags, each with its label, tags and other names."""

from __future__ import annotations

import json
import re
import tarfile
import unicodedata
from dataclasses import dataclass
from pathlib import Path

from deadiff.data.art import EMOJIBASE, EMOJILIB

# names that mean another thing in that set than their spelling says: the right hexcode, or None for no subject at all
MISNAMED: dict[str, dict[str, str | None]] = {
    "fxemoji": {"wave": "1F30A", "up": None, "down": None},
    "streamline-emojis": {"japan": None},  # the flag
    "noto-v1": {"up-exclamation-button": "1F199"},
    "emojione": {"up-text-button": "1F199"},
    "emojione-monotone": {"up-text-button": "1F199"},
    "emojione-v1": {"up-text-button": "1F199"},
}
_KEPT_FLAGS = {"flag"}  # subgroup: chequered, black, white, pirate...; countries and subdivisions are colours without a drawing


@dataclass(frozen=True, kw_only=True)
class Subject:
    """One thing to draw. `names` are slugs by trust: the CLDR label first, then short codes and Unicode's character name."""

    hexcode: str  # "1F697", sequences joined by "-", without FE0F
    label: str  # "automobile"
    tags: tuple[str, ...]  # "car", ...
    group: str  # "travel & places"
    names: tuple[tuple[str, ...], ...]  # tiers of slugs


def hexcode_of(text: str) -> str:
    """'1f3d6-fe0f', '1F3D6_FE0F' -> '1F3D6': upper case, joined by '-', the variation selector left out."""
    return "-".join(part for part in re.split(r"[-_ ]", text.upper()) if part and part != "FE0F")


def slug(text: str) -> str:
    """'Woman’s Sandal' -> 'womanssandal': what names written by different hands have in common."""
    plain = unicodedata.normalize("NFKD", text.lower().replace("&", "and")).encode("ascii", "ignore").decode()
    return re.sub(r"[^a-z0-9*#]", "", plain)


def read_subjects(archives: dict[str, Path]) -> list[Subject]:
    """Emojibase's records in Unicode's own order, with emojilib's keywords added to their tags."""
    records = _read_json(archives[EMOJIBASE.name], "package/en/data.json")
    messages = _read_json(archives[EMOJIBASE.name], "package/en/messages.json")
    keywords = {
        "-".join(f"{ord(char):04X}" for char in emoji if char != "\ufe0f"): words
        for emoji, words in _read_json(archives[EMOJILIB.name], "package/dist/emoji-en-US.json").items()
    }
    groups = {entry["order"]: entry["message"] for entry in messages["groups"]}
    subgroups = {entry["order"]: entry["key"] for entry in messages["subgroups"]}
    shortcodes = [
        _read_json(archives[EMOJIBASE.name], f"package/en/shortcodes/{name}.json")
        for name in ("cldr", "emojibase", "github", "iamcal", "emojibase-legacy")
    ]
    subjects = []
    for record in sorted(records, key=lambda record: record.get("order", 0)):
        group = groups.get(record.get("group"))
        if group in (None, "components") or (group == "flags" and subgroups[record["subgroup"]] not in _KEPT_FLAGS):
            continue
        hexcode = hexcode_of(record["hexcode"])
        words = keywords.get(hexcode, [])
        tiers = [(slug(record["label"]),)]
        tiers += [tuple(slug(code) for code in _as_list(table.get(record["hexcode"]))) for table in shortcodes[:1]]
        tiers.append((slug(words[0]),) if words else ())
        tiers.append((slug(unicodedata.name(chr(int(hexcode, 16)), "")),) if "-" not in hexcode else ())
        tiers.append(tuple(slug(code) for table in shortcodes[1:] for code in _as_list(table.get(record["hexcode"]))))
        tags = _tidy_tags([*record.get("tags", []), *words], record["label"])
        subjects.append(Subject(hexcode=hexcode, label=record["label"], tags=tags, group=group, names=tuple(tiers)))
    return subjects


def match_by_name(
    subjects: list[Subject], names: list[str], set_name: str = "", parents: dict[str, str] | None = None
) -> dict[str, str]:
    """Hexcode -> name, for sets that are keyed by words. A more trusted tier of a subject's names wins over a less trusted one.

    A drawing is used once: `parents` maps second names to the first name of the same drawing, which is preferred: "cricket" was a
    second name of the cricket game before there was an insect. A trailing '-1', '-2' (variants of one subject) is tried after the
    bare name.
    """
    parents = parents or {}
    misnamed = MISNAMED.get(set_name, {})
    matched = {hexcode: name for name, hexcode in misnamed.items() if hexcode and name in names}
    used = {parents.get(name, name) for name in matched.values()}
    names = [name for name in names if name not in misnamed]
    for tier in range(max(len(subject.names) for subject in subjects)):
        for is_second in (False, True):
            by_slug = _by_slug([name for name in names if (name in parents) == is_second])
            for subject in subjects:
                if subject.hexcode in matched:
                    continue
                for candidate in subject.names[tier]:
                    name = by_slug.get(candidate) if candidate else None
                    if name is not None and parents.get(name, name) not in used:
                        matched[subject.hexcode] = name
                        used.add(parents.get(name, name))
                        break
    return matched


def _by_slug(names: list[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for name in sorted(names, key=lambda name: (bool(re.search(r"-\d$", name)), name)):
        found.setdefault(slug(name), name)
    for name in sorted(names):
        found.setdefault(slug(re.sub(r"-\d$", "", name)), name)
    return found


def _as_list(value: str | list[str] | None) -> list[str]:
    return [] if value is None else [value] if isinstance(value, str) else value


def _tidy_tags(words: list[str], label: str) -> tuple[str, ...]:
    """Lower-case words and short phrases, each once, without emoticons such as ':D' and without the label itself."""
    tidy: dict[str, None] = {}
    for word in words:
        word = word.lower().replace("_", " ").strip()
        if re.fullmatch(r"[a-z0-9][a-z0-9' -]{1,30}", word) and word != label.lower():
            tidy.setdefault(word)
    return tuple(tidy)


def _read_json(archive: Path, member: str):
    with tarfile.open(archive) as tar:
        file = tar.extractfile(member)
        assert file is not None
        return json.load(file)
