"""The contact sheets of the icons model: what it can do and where it fails, chosen by lot or by score, never by taste.

table       prompts x references, half of them seen styles in pictures held out, half unseen styles
strength    one reference a row, from the plain base to twice the style
content     a plain picture's subject, drawn in a style that words name
both        style from one picture, content from another
mix         two styles, from the one to the other
failures    of the table, the pictures in which the judge finds least of the prompt's subject
"""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from deadiff.contact_sheet import Row, contact_sheet
from deadiff.data.splits import UNSEEN_COMBINATION, UNSEEN_STYLE
from deadiff.evaluation.icons_figures import HeldOut, Progress, draw_jobs
from deadiff.evaluation.judges import Judges, load_judges
from deadiff.jobs import Job
from deadiff.training.icon_art import style_name
from deadiff.writing import write_whole

PROMPTS = (
    "a grinning face", "a cat", "a red apple", "a house", "a fish", "a tree",
    "a car", "a guitar", "a rocket", "an umbrella", "a cup of coffee", "a crown",
)  # fmt: skip
SEED = 7
STRENGTHS = (0.0, 0.5, 1.0, 1.5, 2.0)
SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
ROWS = 6  # of every sheet but the table
FAILURES = 24


def draw_sheets(
    stylizer: Any,
    out: Path,
    *,
    data: Path = Path("data/icons"),
    seed: int = 0,
    prompts: Sequence[str] = PROMPTS,
    references: int = 12,
    judges: Judges | None = None,
    progress: Progress | None = None,
) -> list[Path]:
    """Draw and write OUT/{table,strength,content,both,mix,failures}.png. seed: of the lot. Raises DataError or ConfigError."""
    judges = judges or load_judges()
    art, report = HeldOut(data, judges, seed), progress or (lambda *_: None)
    out.mkdir(parents=True, exist_ok=True)
    seen = art.references(UNSEEN_COMBINATION, max(1, references // 2))
    chosen = seen + art.references(UNSEEN_STYLE, references - len(seen))
    contents = art.references(UNSEEN_COMBINATION, 2 * ROWS, plain_only=True)[::-1]
    art.load([*chosen, *contents])

    def drawn(name: str, jobs: Sequence[Job]) -> list[Image.Image]:
        pictures = draw_jobs(stylizer, jobs, None, lambda done: report(name, done, len(jobs)))
        return [Image.fromarray(picture) for picture in pictures]

    def shown(number: int, role: str = "style") -> tuple[Image.Image, str]:
        row = art.rows[number]
        return art.picture(number), f"{role}: {style_name(row)}" + (", unseen" if row["split"] == UNSEEN_STYLE else "")

    def write(name: str, rows: Sequence[Row], columns: int = len(STRENGTHS)) -> Path:
        path = out / f"{name}.png"
        write_whole(path, lambda partial: contact_sheet(rows, columns).save(partial, format="PNG", optimize=True))
        return path

    cells = [(prompt, number) for prompt in prompts for number in chosen]
    pictures = drawn("table", [Job(prompt=prompt, style=art.picture(number), seed=SEED) for prompt, number in cells])
    labels = {number: f"{place}: {shown(number)[1][7:]}" for place, number in enumerate(chosen, 1)}  # no two alike: a table
    table = [Row(prompt=prompt, references=[(art.picture(number), labels[number])], pictures=[(picture, "")])
             for (prompt, number), picture in zip(cells, pictures, strict=True)]  # fmt: skip
    written = [write("table", table), _failures(judges, art, cells, pictures, shown, write)]

    def swept(name: str, lines: Sequence[tuple[str, list[tuple[Image.Image, str]], list[Job], list[str]]]) -> Path:
        """One row of pictures a line: (its title, its references, its jobs, a label for each)."""
        pictures = iter(drawn(name, [job for _, _, jobs, _ in lines for job in jobs]))
        return write(name, [Row(prompt=title, references=given, pictures=[(next(pictures), label) for label in said])
                            for title, given, _, said in lines])  # fmt: skip

    some = [prompts[i % len(prompts)] for i in range(0, 2 * ROWS, 2)]
    spread = [chosen[i * len(chosen) // ROWS] for i in range(ROWS)]
    written.append(swept("strength", [
        (prompt, [shown(number)], [Job(prompt=prompt, style=art.picture(number), strength=s, seed=SEED) for s in STRENGTHS],
         [f"strength {s:g}" for s in STRENGTHS])
        for prompt, number in zip(some, spread, strict=True)
    ]))  # fmt: skip
    pairs = [(spread[i], spread[(i + ROWS // 2) % ROWS]) for i in range(ROWS)]
    written.append(swept("mix", [
        (prompt, [shown(a), shown(b)],
         [Job(prompt=prompt, style=_mixed(art.picture(a), art.picture(b), share), seed=SEED) for share in SHARES],
         [f"{1 - share:.0%} and {share:.0%}" for share in SHARES])
        for prompt, (a, b) in zip(some, pairs, strict=True)
    ]))  # fmt: skip
    words = ("a flat colour icon", "a blueprint", "an oil painting", "a thin black line drawing", "a neon sign")
    written.append(swept("content", [
        ("", [shown(number, "content")], [Job(prompt=w, content=art.picture(number), seed=SEED) for w in words], list(words))
        for number in contents[:ROWS]
    ]))  # fmt: skip
    written.append(swept("both", [
        ("", [shown(style), shown(content, "content")],
         [Job(style=art.picture(style), content=art.picture(content), seed=SEED + i) for i in range(5)],
         [f"seed {SEED + i}" for i in range(5)])
        for style, content in zip(spread, contents[-ROWS:], strict=True)
    ]))  # fmt: skip
    return written


def _mixed(first: Image.Image, second: Image.Image, share: float) -> list[tuple[Image.Image, float]]:
    """`share` of the second picture's style; a picture that has none is left out."""
    return [(picture, weight) for picture, weight in ((first, 1 - share), (second, share)) if weight]


def _failures(
    judges: Judges,
    art: HeldOut,
    cells: Sequence[tuple[str, int]],
    pictures: Sequence[Image.Image],
    shown: Callable[[int], tuple[Image.Image, str]],
    write: Callable[..., Path],
) -> Path:
    """Those of the table in which the prompt's subject is least likely, of the prompts that are a label which the judge knows."""
    subjects = {label: subject for subject, label in art.labels.items()}
    named = [re.sub("^an? ", "", prompt) for prompt, _ in cells]
    asked = [(i, subjects[name]) for i, name in enumerate(named) if name in subjects]
    seen = judges.subject(np.stack([np.asarray(pictures[i]) for i, _ in asked])) if asked else np.zeros((0, 1))
    values = [float(p[judges.subject_number(subject)]) for p, (_, subject) in zip(seen, asked, strict=True)]
    least = [asked[k][0] for k in np.argsort(values, kind="stable")[:FAILURES]]
    rows: dict[int, list[tuple[Image.Image, str]]] = {}
    for i in least:
        rows.setdefault(cells[i][1], []).append((pictures[i], cells[i][0]))
    title = "the prompt's subject is least visible" if rows else "the judge knows none of the prompts"
    found = [Row(prompt=title, references=[shown(number)], pictures=worst) for number, worst in rows.items()]
    return write("failures", found or [Row(prompt=title, references=[], pictures=[(pictures[0], cells[0][0])])])
