"""A user's own pictures -> a list of what each shows and how: from a table, from the folders they lie in, or from tags."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from deadiff.errors import ConfigError, DataError
from deadiff.references import SUFFIXES

FILE_COLUMNS = ("file", "file_name", "image", "path")  # how tables name a picture's file; a parquet table may hold the picture
NEEDED = ("subject", "style")
OPTIONAL = ("label", "tags", "group", "caption", "palette", "licence", "split")
PLACES = {*NEEDED, "group", "any"}  # what a layout may name


@dataclass(frozen=True, kw_only=True)
class Listed:
    """One picture to import. `style` is empty until it is clustered; `reason` tells why it is left out."""

    file: str  # relative to the folder, or "#row" for a picture inside the table
    subject: str = ""
    style: str = ""
    label: str = ""
    tags: tuple[str, ...] = ()
    group: str = ""
    caption: str = ""
    palette: str = ""
    licence: str = ""
    split: str = ""
    reason: str = ""


def from_layout(folder: Path, layout: str = "{style}/{subject}") -> list[Listed]:
    """Pictures whose place says what they are: "{style}/{subject}" reads 'ink/barn owl_02.png' as a barn owl in ink.

    Numbers at the end of a subject are left out. Raises ConfigError for a layout without subject and style.
    """
    pattern = layout_pattern(layout)
    listed = []
    for file in picture_files(folder):
        found = pattern.fullmatch(str(Path(file).with_suffix("")).replace("\\", "/"))
        if not found:
            listed.append(Listed(file=file, reason=f"its place does not read as {layout}"))
            continue
        named: dict[str, Any] = {name: words(value, numbered=name == "subject") for name, value in found.groupdict().items()}
        listed.append(replace(Listed(file=file), **named))
    return listed


def layout_pattern(layout: str) -> re.Pattern[str]:
    names = re.findall(r"{(\w*)}", layout)
    if unknown := sorted(set(names) - PLACES):
        raise ConfigError(f"the layout '{layout}' names {{{unknown[0]}}}: expected {', '.join(sorted(PLACES))}")
    for name in NEEDED:
        if names.count(name) != 1:
            raise ConfigError(
                f"the layout '{layout}' has {names.count(name)} {{{name}}}: expected one, as in {{style}}/{{subject}}"
            )
    parts = re.split(r"({\w+})", layout.strip("/"))
    named = [
        (r"[^/]+?" if part == "{any}" else f"(?P<{part[1:-1]}>[^/]+?)") if part.startswith("{") else re.escape(part)
        for part in parts
    ]
    return re.compile("".join(named))


def from_table(table: Path, folder: Path | None = None) -> list[Listed]:
    """CSV, TSV, JSON lines or parquet with the columns file, subject, style, and perhaps more (OPTIONAL).

    folder: what the file names are relative to; by default the table's own.
    """
    rows = read_table(table)
    if not rows:
        raise DataError(f"'{table}' holds no rows: expected one a picture, with file, subject and style")
    columns = set().union(*rows[:100])
    file_column = next((name for name in FILE_COLUMNS if name in columns), None)
    if missing := [name for name in NEEDED if name not in columns] + ([] if file_column else ["file"]):
        raise DataError(
            f"'{table}' has no column {', '.join(missing)}: expected file, subject and style; "
            f"it has {', '.join(sorted(columns))[:200]}"
        )
    assert file_column
    base = folder or table.parent
    listed = []
    for number, row in enumerate(rows):
        values = {name: text(row.get(name)) for name in (*NEEDED, *OPTIONAL) if name != "tags"}
        file = row.get(file_column)
        inside = isinstance(file, (dict, bytes))
        name = f"#{number}" if inside else text(file)
        reason = "it has no file" if not name else next((f"it has no {what}" for what in NEEDED if not values[what]), "")
        if not reason and not inside and not (base / name).is_file():
            reason = "there is no such file"
        listed.append(Listed(file=name or f"#{number}", tags=tags_of(row.get("tags")), reason=reason, **values))
    return listed


def from_tags(folder: Path, table: Path | None = None) -> list[Listed]:
    """Pictures without styles: tags beside each (FILE.txt, separated by commas, the first one is the subject), or from a table.

    The table has the columns file and tags, perhaps subject and caption. Styles are clustered later.
    """
    given: dict[str, dict[str, Any]] = {}
    if table:
        rows = read_table(table)
        column = next((name for name in FILE_COLUMNS if rows and name in rows[0]), None)
        if column is None or not {"tags", "subject"} & rows[0].keys():
            raise DataError(f"'{table}' has no columns file and tags: expected both, and perhaps subject and caption")
        given = {text(row[column]): row for row in rows}
    listed = []
    for file in picture_files(folder):
        row = given.get(file, {}) if table else {"tags": _beside(folder / file)}
        tags = tags_of(row.get("tags"))
        subject = text(row.get("subject")) or (tags[0] if tags else "")
        reason = (
            "" if subject else f"it has no tags: expected {'a row in the table' if table else Path(file).stem + '.txt beside it'}"
        )
        listed.append(
            Listed(
                file=file,
                subject=subject,
                tags=tuple(tag for tag in tags if tag != subject),
                caption=text(row.get("caption")),
                reason=reason,
            )  # fmt: skip
        )
    return listed


def picture_files(folder: Path) -> list[str]:
    """All pictures below a folder, in alphabetical order, relative to it. Raises DataError if there are none."""
    if not folder.is_dir():
        raise DataError(f"'{folder}' is no folder: expected one with pictures")
    found = [path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file()]
    files = sorted(
        str(path.relative_to(folder)) for path in found if not any(p.startswith(".") for p in path.relative_to(folder).parts)
    )
    if not files:
        raise DataError(f"'{folder}' holds no pictures: expected {', '.join(SUFFIXES[:4])}, ... in it or below it")
    return files


def read_table(path: Path) -> list[dict[str, Any]]:
    """The rows of a .csv, .tsv, .jsonl or .parquet file; pictures inside a parquet table are left there. Raises DataError."""
    import pyarrow
    import pyarrow.parquet

    try:
        if path.suffix == ".parquet":
            file = pyarrow.parquet.ParquetFile(path)
            kinds = pyarrow.types
            is_picture = (kinds.is_struct, kinds.is_binary, kinds.is_large_binary)
            inside = [field.name for field in file.schema_arrow if any(test(field.type) for test in is_picture)]
            rows = file.read(columns=[name for name in file.schema_arrow.names if name not in inside]).to_pylist()
            return [{**row, **{name: {} for name in inside}} for row in rows]
        body = path.read_text("utf-8-sig")
        if path.suffix in (".jsonl", ".json"):
            return [json.loads(line) for line in body.splitlines() if line.strip()]
        if path.suffix in (".csv", ".tsv"):
            return list(csv.DictReader(body.splitlines(), delimiter="\t" if path.suffix == ".tsv" else ","))
    except FileNotFoundError:
        raise DataError(f"'{path}' does not exist: check the path of the table") from None
    except (OSError, ValueError, csv.Error, pyarrow.ArrowException) as error:
        raise DataError(f"'{path}' cannot be read as a table: {' '.join(str(error).split())[:200]}") from error
    raise DataError(f"'{path}' is no table that can be read: expected .csv, .tsv, .jsonl or .parquet")


def words(name: str, numbered: bool = False) -> str:
    """'barn_owl-02' -> 'barn owl': a file's name in words, and without the number at its end."""
    plain = " ".join(re.sub(r"[_\-]+", " ", name).split())
    return re.sub(r"(?: ?\(\d+\)| \d+)$", "", plain) or plain if numbered else plain


def tags_of(value: Any) -> tuple[str, ...]:
    """'owl, night ,bird' or a list -> tags, each once."""
    parts: Iterable[Any] = value.split(",") if isinstance(value, str) else value if isinstance(value, (list, tuple)) else ()
    return tuple(dict.fromkeys(tag for tag in (text(part) for part in parts) if tag))


def text(value: Any) -> str:
    return " ".join(str(value).split()) if isinstance(value, (str, int, float)) and value == value else ""


def _beside(picture: Path) -> str:
    try:
        return picture.with_suffix(".txt").read_text("utf-8", errors="replace").replace("\n", ",")
    except OSError:
        return ""
