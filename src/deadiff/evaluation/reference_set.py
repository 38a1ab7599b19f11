"""The references of an evaluation: chosen by rule, copied beside the results, so that a run folder is complete in itself."""

import hashlib
import json
import re
import shutil
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from deadiff.errors import ConfigError, DataError
from deadiff.evaluation.design import EvalRecipe, ReferenceRecipe
from deadiff.references import Reference
from deadiff.training.icon_art import style_name
from deadiff.writing import write_text_whole

SEEN, UNSEEN, GIVEN = "seen style", "unseen style", "given"
INDEX = "references.json"
# Groups of things with a shape of their own. A button says little of how a hand draws; people come in near-copies.
GROUPS = frozenset({"animals & nature", "food & drink", "travel & places", "activities", "objects"})


@dataclass(frozen=True, kw_only=True)
class StyleReference:
    """One reference and what is known of it; what is not known is empty."""

    name: str  # also its file's, without .png
    kind: str = GIVEN
    style: str = ""  # the style's class: the rendition, or for plain art the set
    words: str = ""  # the style in words, for the method that has no reference
    subject: str = ""  # the subject's class (hexcode)
    label: str = ""  # the subject in words


def reference_set(recipe: EvalRecipe, out: Path, data: Path | None = None) -> list[StyleReference]:
    """OUT/references/: those chosen before, or chosen now from files or from the data set. Raises ConfigError or DataError."""
    folder = out / "references"
    wanted = json.loads(json.dumps(asdict(recipe.references)))
    if (folder / INDEX).is_file():
        kept = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        if kept["recipe"] != wanted or kept["avoided"] != sorted(set(recipe.prompts.values())):
            raise ConfigError(f"'{out}' holds an evaluation with other references or prompts: choose another folder with --out")
        return [StyleReference(**item) for item in kept["references"]]
    folder.mkdir(parents=True, exist_ok=True)
    chosen = list(_from_files(recipe, folder)) if recipe.references.files else _from_data(recipe, folder, data)
    index = {"recipe": wanted, "avoided": sorted(set(recipe.prompts.values())), "references": [asdict(r) for r in chosen]}
    write_text_whole(folder / INDEX, json.dumps(index, indent=1, ensure_ascii=False) + "\n")
    return chosen


def picture_path(out: Path, reference: StyleReference) -> Path:
    return out / "references" / f"{reference.name}.png"


def true_path(out: Path, reference: StyleReference, prompt: str) -> Path:
    """The prompt's subject in the reference's style, where the data holds it: what a perfect model would draw."""
    return out / "references" / "true" / reference.name / f"{slug(prompt)}.png"


def slug(prompt: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:60] or "no-prompt"


def _from_files(recipe: EvalRecipe, folder: Path) -> Iterator[StyleReference]:
    """Files in the order of the patterns, read as carefully as any stranger's picture."""
    paths = [path for pattern in recipe.references.files for path in sorted(recipe.folder.glob(pattern))]
    if not paths:
        raise ConfigError(f"no file fits {', '.join(recipe.references.files)} in '{recipe.folder}': expected reference pictures")
    for number, path in enumerate(dict.fromkeys(paths), 1):
        name = f"{number:02d}-{path.stem}"
        Reference(path).picture.save(folder / f"{name}.png")
        yield StyleReference(name=name, label=path.stem)


def _from_data(recipe: EvalRecipe, folder: Path, data: Path | None) -> list[StyleReference]:
    """Held-out pictures of the icons data: as many styles as possible, subjects that no prompt names, none twice."""
    if data is None or not data.is_dir():
        raise DataError(
            f"the references are chosen from the icons data, and '{data}' is no folder: build it with `deadiff data icons` "
            f"and name it with --data"
        )
    from deadiff.data.captions import plain_label, style_phrases
    from deadiff.data.store import PARTS, decode_png, encode_png, read_rows, shards

    columns = ["subject", "label", "group", "set", "rendition", "palette", "split", "reference_holdout", "sha256"]
    places = [(shard, i, row) for shard in shards(data, PARTS) for i, row in enumerate(read_rows(shard, columns))]
    everything = places
    places = [place for place in places if place[2]["group"] in GROUPS]
    avoided = {subject for subject in recipe.prompts.values() if subject}
    taken: set[str] = set()
    found, rows = [], []
    for kind, count in ((SEEN, recipe.references.seen), (UNSEEN, recipe.references.unseen)):
        pool = [place for place in places if _kind(place[2]) == kind and place[2]["subject"] not in avoided]
        for shard, index, row in _one_of_each_style(pool, count, recipe.references, taken):
            style = style_name(row)
            label = plain_label(row["label"])
            name = f"{len(found) + 1:02d}-{style}-{re.sub('[^a-z0-9]+', '-', label)[:24].strip('-')}"
            (folder / f"{name}.png").write_bytes(encode_png(decode_png(read_rows(shard, ["image"])[index]["image"]["bytes"])))
            words = style_phrases(row["set"], row["rendition"])[0]
            found.append(StyleReference(name=name, kind=kind, style=style, words=words, subject=row["subject"], label=label))
            rows.append(row)
    if len(found) < recipe.references.seen + recipe.references.unseen:
        shutil.rmtree(folder)
        raise DataError(
            f"'{data}' holds only {len(found)} fitting references of {recipe.references.seen + recipe.references.unseen}: "
            f"build more subjects or renditions, or ask for fewer"
        )
    _copy_true_pictures(recipe, list(zip(found, rows, strict=True)), everything, folder.parent)
    return found


def _copy_true_pictures(
    recipe: EvalRecipe, references: list[tuple[StyleReference, dict[str, Any]]], places: list[Any], out: Path
) -> None:
    """OUT/references/true/: of each reference and prompt, a picture of the same style and palette, else of the same style."""
    from deadiff.data.store import decode_png, encode_png, read_rows

    by_style: dict[tuple[str, str], list[Any]] = defaultdict(list)
    for place in places:
        by_style[style_name(place[2]), place[2]["subject"]].append(place)
    wanted: dict[Path, dict[int, list[Path]]] = defaultdict(lambda: defaultdict(list))  # shard -> row -> where it goes
    for reference, row in references:
        for prompt, subject in recipe.prompts.items():
            if found := by_style.get((reference.style, subject)):
                other_palette = [(place[2]["palette"] != row["palette"], place[2]["sha256"]) for place in found]
                shard, index, _ = found[min(range(len(found)), key=lambda i: other_palette[i])]
                wanted[shard][index].append(true_path(out, reference, prompt))
    for shard, rows in wanted.items():
        images = read_rows(shard, ["image"])
        for index, paths in rows.items():
            png = encode_png(decode_png(images[index]["image"]["bytes"]))
            for path in paths:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(png)


def _kind(row: dict[str, Any]) -> str | None:
    """Seen: a style that training knows, in a picture that it never showed as a reference."""
    if row["split"] == "unseen_style":
        return UNSEEN
    return SEEN if row["reference_holdout"] else None


def _one_of_each_style(pool: list[Any], count: int, recipe: ReferenceRecipe, taken: set[str]) -> Iterator[Any]:
    """Styles in turn, in the order of a lot; in each style the pictures in the order of another lot; no subject twice."""

    def lot(*names: str) -> str:
        return hashlib.sha256("|".join((str(recipe.lot), *names)).encode()).hexdigest()

    by_style: dict[str, list[Any]] = defaultdict(list)
    for place in pool:
        by_style[style_name(place[2])].append(place)
    for style, places in by_style.items():
        places.sort(key=lambda place: lot(style, place[2]["set"], place[2]["subject"], place[2]["sha256"]))
    order = sorted(by_style, key=lot)
    while count > 0 and any(by_style.values()):
        for style in order:
            places = by_style[style]
            while places and places[0][2]["subject"] in taken:
                places.pop(0)
            if places and count > 0:
                place = places.pop(0)
                taken.add(place[2]["subject"])
                count -= 1
                yield place
