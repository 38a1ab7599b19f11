"""The report: OUT/report.html (one file, nothing else needed) and OUT/report.md, plots as SVG and sheets as JPEG beside it."""

import base64
import os
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from deadiff.evaluation.design import MODEL, PASTED, PLAIN, RANDOM, WORDS, Method
from deadiff.evaluation.intervals import Interval
from deadiff.evaluation.plots import Point, Series, scatter
from deadiff.evaluation.protocol import Evaluation
from deadiff.evaluation.set_scores import SUBSETS, Features, kid_to_true
from deadiff.evaluation.sheets import comparison, save_sheets, worst
from deadiff.evaluation.summary import Averages, Verdict, ours_of, verdicts
from deadiff.writing import write_text_whole

STYLE_SHEET = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; color: #1b1b1f; max-width: 1080px; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2.2rem; }
table { border-collapse: collapse; margin: .8rem 0; font-size: 13px; font-variant-numeric: tabular-nums; }
.wide { overflow-x: auto; }
th, td { padding: .3rem .6rem; border-bottom: 1px solid #e4e4ea; text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; } th { font-weight: 600; vertical-align: bottom; }
table.claims td { white-space: normal; text-align: left; vertical-align: top; } table.claims th { text-align: left; }
tr.ours td { background: #fdf1f2; font-weight: 600; } .note, figcaption { color: #6b6b76; font-size: 13px; }
.holds { color: #2f7d4f; } .fails { color: #b3243b; } .open { color: #8a6d1d; }
img, svg { max-width: 100%; height: auto; } figure { margin: 1rem 0; } code { background: #f4f4f7; padding: .1rem .3rem; }
"""


@dataclass(frozen=True, kw_only=True)
class TextTable:
    """A table for HTML and Markdown alike. `strong` names the row that is ours."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""
    strong: str = ""

    def markdown(self) -> str:
        lines = [f"### {self.title}", ""] if self.title else []
        lines += ["| " + " | ".join(self.header) + " |", "|" + "---|" * len(self.header)]
        for row in self.rows:
            cells = [cell.replace("|", "\\|") for cell in row]
            lines.append("| " + " | ".join(f"**{cell}**" if row[0] == self.strong else cell for cell in cells) + " |")
        return "\n".join([*lines, "", *([self.note, ""] if self.note else [])])

    def html(self) -> str:
        parts = [f"<h3>{escape(self.title)}</h3>" if self.title else "", '<div class="wide"><table><thead><tr>']
        parts += [f"<th>{escape(cell)}</th>" for cell in self.header]
        parts.append("</tr></thead><tbody>")
        for row in self.rows:
            parts.append('<tr class="ours">' if row[0] == self.strong else "<tr>")
            parts += [f"<td>{escape(cell)}</td>" for cell in row]
            parts.append("</tr>")
        parts.append("</tbody></table></div>")
        return "".join(parts) + (f'<p class="note">{escape(self.note)}</p>' if self.note else "")


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A plot or a sheet: its file beside the report, and how it was made."""

    path: Path
    caption: str


def write_report(evaluation: Evaluation, encoder: Features | None = None) -> list[Path]:
    """Write report.html and report.md; returns their paths. encoder: adds KID, where the data holds true pictures."""
    averages = Averages(evaluation)
    tables = [means_table(evaluation, averages), differences_table(evaluation, averages), *kinds_tables(evaluation, averages)]
    if encoder is not None and (distances := kid_to_true(evaluation, encoder)):
        tables.append(kid_table(evaluation, distances, encoder.name))
    claims = verdicts(evaluation, averages)
    plots = _plots(evaluation, averages)
    sheets = _sheets(evaluation)
    markdown, page = evaluation.out / "report.md", evaluation.out / "report.html"
    write_text_whole(markdown, _markdown(evaluation, tables, claims, plots, sheets))
    write_text_whole(page, _html(evaluation, tables, claims, plots, sheets))
    return [page, markdown]


# ---- tables ----


def means_table(evaluation: Evaluation, averages: Averages) -> TextTable:
    """Every method, every score, with its interval."""
    header = ["method", *(f"{c.title} {'↑' if c.better == 'higher' else '↓'}" for c in evaluation.columns)]
    rows = [
        [method.title, *(_shown(averages.mean(method.name, column.name)) for column in evaluation.columns)]
        for method in evaluation.methods
    ]
    shape = (
        f"{len(evaluation.references)} references x {len(evaluation.recipe.prompts)} prompts x {evaluation.recipe.seeds} seeds"
    )
    note = f"{shape}; mean [95 % interval] of a bootstrap over references and prompts. The last rows show what scores reward."
    return TextTable(title="Scores", header=header, rows=rows, note=note, strong=_title(evaluation, ours_of(evaluation)))


def differences_table(evaluation: Evaluation, averages: Averages) -> TextTable:
    """Every method minus ours, on the same references, prompts and seeds."""
    ours = ours_of(evaluation)
    rows = []
    for method in evaluation.methods:
        if method.name == ours:
            continue
        cells = []
        for column in evaluation.columns:
            gap = averages.difference(method.name, ours, column.name)
            cells.append("-" if gap is None else f"{gap.estimate:+.3f} [{gap.low:+.3f}, {gap.high:+.3f}]{_mark(gap)}")
        rows.append([method.title, *cells])
    note = "Paired differences; * the interval leaves out 0."
    header = ["method", *(column.title for column in evaluation.columns)]
    return TextTable(title=f"Difference to {_title(evaluation, ours)}", header=header, rows=rows, note=note)


def kinds_tables(evaluation: Evaluation, averages: Averages) -> list[TextTable]:
    """Style, text and leakage by kind of reference, where there is more than one kind."""
    kinds = list(dict.fromkeys(reference.kind for reference in evaluation.references))
    if len(kinds) < 2:
        return []
    columns = [column for column in evaluation.columns if column.name in ("style", "text", "leak")]
    header = ["method", *(f"{column.name}, {kind}" for column in columns for kind in kinds)]
    groups = {kind: {r.name for r in evaluation.references if r.kind == kind} for kind in kinds}
    rows = [
        [m.title, *(_shown(averages.mean(m.name, column.name, references=groups[kind])) for column in columns for kind in kinds)]
        for m in evaluation.methods
    ]
    note = "; ".join(f"{kind}: {len(names)} references" for kind, names in groups.items())
    strong = _title(evaluation, ours_of(evaluation))
    return [TextTable(title="By kind of reference", header=header, rows=rows, note=note, strong=strong)]


def kid_table(evaluation: Evaluation, distances: dict[str, tuple[float, float]], network: str) -> TextTable:
    rows = [[method.title, "{:.3f} ± {:.3f}".format(*distances[method.name])] for method in evaluation.methods]
    note = (
        f"Each method's pictures as a set against the true pictures, {network}; mean ± deviation over {SUBSETS} halves. The true "
        "pictures against themselves show what is chance."
    )
    strong = _title(evaluation, ours_of(evaluation))
    return TextTable(title="As a set", header=["method", "KID ↓"], rows=rows, note=note, strong=strong)


def claims_table(claims: Sequence[Verdict]) -> TextTable:
    return TextTable(title="", header=["claim", "verdict", "because"], rows=[[c.claim, c.outcome, c.because] for c in claims])


def _shown(interval: Interval | None) -> str:
    return "-" if interval is None else f"{interval.estimate:.3f} [{interval.low:.3f}, {interval.high:.3f}]"


def _mark(gap: Interval) -> str:
    return "" if gap.low <= 0 <= gap.high else " *"


def _title(evaluation: Evaluation, name: str) -> str:
    return evaluation.method(name).title


# ---- plots and sheets ----


def _plots(evaluation: Evaluation, averages: Averages) -> list[Figure]:
    folder = evaluation.out / "plots"
    folder.mkdir(parents=True, exist_ok=True)
    titles = {column.name: column.title for column in evaluation.columns}
    if not {"style", "text"} <= titles.keys():
        return []
    ours = ours_of(evaluation)
    front = scatter(
        [_point(m, averages, ours) for m in evaluation.methods if m.kind not in (PASTED, RANDOM)],
        titles["text"],
        titles["style"],
        "Style against text at strength 1",
    )
    figures = [Figure(path=folder / "style-text.svg", caption="Up and to the right is better. Bars: 95 % intervals.")]
    write_text_whole(figures[0].path, front)
    strengths = sorted({1.0, *evaluation.recipe.strength.values})
    if len(strengths) > 1:
        cells = evaluation.recipe.curve_cells([reference.name for reference in evaluation.references])
        part = Averages(evaluation, cells)
        curves = [_curve(m, part, strengths, ours) for m in evaluation.methods if m.kind == MODEL]
        points = [_point(m, part, ours) for m in evaluation.methods if m.kind in (WORDS, PLAIN)]
        text = scatter([*curves, *points], titles["text"], titles["style"], "Style against text over strength")
        said = ", ".join(f"{s:g}" for s in strengths)
        caption = (
            f"Strengths {said} on {len({c.reference for c in cells})} references and {len({c.prompt for c in cells})} prompts."
        )
        figures.append(Figure(path=folder / "strength.svg", caption=caption))
        write_text_whole(figures[-1].path, text)
    return figures


def _point(method: Method, averages: Averages, ours: str) -> Series:
    text, style = averages.mean(method.name, "text"), averages.mean(method.name, "style")
    if text is None or style is None:
        return Series(title=method.title, points=[])
    point = Point(x=text.estimate, y=style.estimate, x_interval=(text.low, text.high), y_interval=(style.low, style.high))
    return Series(title=method.title, points=[point], emphasis=method.name == ours)


def _curve(method: Method, averages: Averages, strengths: Sequence[float], ours: str) -> Series:
    points = []
    for strength in strengths:
        text = averages.values(method.name, "text", strength)
        style = averages.values(method.name, "style", strength)
        kept = ~((text != text) | (style != style))
        if kept.any():
            points.append(Point(x=float(text[kept].mean()), y=float(style[kept].mean()), label=f"{strength:g}"))
    return Series(title=method.title, points=points, joined=True, emphasis=method.name == ours)


def _sheets(evaluation: Evaluation) -> list[Figure]:
    ours = ours_of(evaluation)
    made = [("comparison", comparison(evaluation)), ("one-prompt", comparison(evaluation, one_prompt=True))]
    for name, highest in (("text", False), ("style", False), ("leak", True)):
        if any(column.name == name for column in evaluation.columns):
            made.append((f"worst-{name}", worst(evaluation, ours, name, highest)))
    paths = save_sheets([(name, sheet) for name, (sheet, _) in made], evaluation.out / "sheets")
    prefix = {"worst": f"Worst cases of {_title(evaluation, ours)}: "}
    return [Figure(path=paths[name], caption=prefix.get(name.split("-")[0], "") + rule) for name, (_, rule) in made]


# ---- the two files ----


def _facts(evaluation: Evaluation) -> list[str]:
    versions = ", ".join(f"{name} {value}" for name, value in evaluation.machine.items())
    facts = [
        f"Recipe {evaluation.recipe.name}; judged by {evaluation.scorer}.",
        f"Ours is {_title(evaluation, ours_of(evaluation))}. {versions}.",
    ]
    return [*facts, *(f"{column.title}: {column.explains}." for column in evaluation.columns)]


def _markdown(
    evaluation: Evaluation, tables: list[TextTable], claims: list[Verdict], plots: list[Figure], sheets: list[Figure]
) -> str:
    lines = [f"# Evaluation: {evaluation.recipe.name}", ""]
    if evaluation.command:
        lines += [f"Made by `{evaluation.command}`.", ""]
    lines += [f"- {fact}" for fact in _facts(evaluation)] + [""]
    if claims:
        lines += ["## Claims", "", claims_table(claims).markdown()]
    lines += [table.markdown() for table in tables]
    for title, figures in (("Plots", plots), ("Pictures", sheets)):
        if figures:
            lines += [f"## {title}", ""]
        for figure in figures:
            lines += [f"![{figure.caption}]({os.path.relpath(figure.path, evaluation.out)})", "", figure.caption, ""]
    return "\n".join(lines)


def _html(
    evaluation: Evaluation, tables: list[TextTable], claims: list[Verdict], plots: list[Figure], sheets: list[Figure]
) -> str:
    title = f"Evaluation: {evaluation.recipe.name}"
    parts = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{escape(title)}</title><style>{STYLE_SHEET}</style></head><body><h1>{escape(title)}</h1>",
    ]
    if evaluation.command:
        parts.append(f"<p>Made by <code>{escape(evaluation.command)}</code>.</p>")
    parts.append("<ul>" + "".join(f"<li>{escape(fact)}</li>" for fact in _facts(evaluation)) + "</ul>")
    if claims:
        words = {"holds": "holds", "fails": "fails"}
        parts.append("<h2>Claims</h2>")
        table = claims_table(claims).html().replace("<table>", '<table class="claims">', 1)
        for outcome in {claim.outcome for claim in claims}:
            shown = f"<td>{escape(outcome)}</td>"
            table = table.replace(shown, f'<td class="{words.get(outcome, "open")}">{escape(outcome)}</td>')
        parts.append(table)
    parts.append("<h2>Tables</h2>")
    parts += [table.html() for table in tables]
    for heading, figures in (("Plots", plots), ("Pictures", sheets)):
        if figures:
            parts.append(f"<h2>{heading}</h2>")
        for figure in figures:
            parts.append(f"<figure>{_inline(figure.path)}<figcaption>{escape(figure.caption)}</figcaption></figure>")
    return "\n".join([*parts, "</body></html>"])


def _inline(path: Path) -> str:
    if path.suffix == ".svg":
        return path.read_text(encoding="utf-8")
    return f'<img alt="" src="data:image/jpeg;base64,{base64.b64encode(path.read_bytes()).decode()}">'
