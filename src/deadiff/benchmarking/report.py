"""The report as tables for a terminal; says what was measured and what was computed."""

from collections.abc import Iterator
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

NAMES = {"plain": "plain", "deadiff": "ours", "ip_adapter": "IP-Adapter"}
_PEAKS = (("libraries", "libraries alone"), ("peak", "peak"), ("peak_cuda", "peak on the card"))


def seconds(value: float | None) -> str:
    """1.234 s, 56.7 ms, or 12 min 3 s."""
    if value is None:
        return "-"
    if value >= 120:
        return f"{int(value // 60)} min {value % 60:.0f} s"
    return f"{value:.3g} s" if value >= 1 else f"{value * 1e3:.3g} ms"


def heading(report: dict[str, Any]) -> str:
    """The machine in a line or two."""
    m = report["machine"]
    packages = ", ".join(f"{name} {version}" for name, version in m["versions"].items())
    line = f"{m['cpu']}, {m['cores']} cores, {m['threads']} threads, {m['memory_gib']} GiB, device {m['device']}; {packages}"
    if not m["busy"]:
        return line
    return f"{line}\nThe machine was busy (load {m['load']:.1f}): times are too high, ratios noisy; CPU time suffers less."


def tables(report: dict[str, Any]) -> Iterator[Table | str]:
    """A table for each part that was measured, and what else it says."""
    if "steps" in report:
        yield from _steps(report["steps"])
    if "picture" in report:
        yield _picture(report["picture"])
    if "memory" in report:
        yield _memory(report["memory"])
    if "start" in report:
        yield _start(report["start"])


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, padding=(0, 1))
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i == 0 else "right", no_wrap=i == 0)
    return table


def _steps(rows: list[dict[str, Any]]) -> Iterator[Table | str]:
    title = "One U-Net step at batch 2, measured: median ± half the interquartile range, (95 % interval)"
    table = _table(title, "variant", "time", "x plain", "x plain, CPU time", "x plain, operations")
    notes = []
    for row in rows:
        table.add_section()
        label = f"{row['size']} {row['dtype']}"
        work = row["operations"]
        for name, spread in row["seconds"].items():
            wall, cpu = (row[kind].get(f"{name}/plain") for kind in ("ratios", "cpu_ratios"))
            time = f"{seconds(spread['median'])} ± {seconds((spread['q3'] - spread['q1']) / 2)}"
            table.add_row(f"{label} {NAMES[name]}", time, _ratio(wall), _ratio(cpu), f"{work[name] / work['plain']:.4f}")
        against = [_ratio(row[kind]["deadiff/ip_adapter"]) for kind in ("ratios", "cpu_ratios")]
        table.add_row("ours / IP-Adapter", "", *against, f"{work['deadiff'] / work['ip_adapter']:.4f}")
        promises = ", ".join(f"{promise}: {'yes' if kept else 'NO'}" for promise, kept in row["kept"].items())
        reading = ", ".join(f"{NAMES[name]} {seconds(x)}" for name, x in row["reading"].items())
        resampler = seconds(row["resampler"])
        notes.append(f"{label}: ours costs {promises}. Reading a reference: {reading}; resampler {resampler} a step.")
    yield table
    yield "\n".join(notes) + "\n"


def _ratio(ratio: dict[str, Any] | None) -> str:
    return "1" if ratio is None else f"{ratio['median']:.3f} ({ratio['low']:.3f}-{ratio['high']:.3f})"


def _picture(rows: dict[str, Any]) -> Table:
    table = _table(
        "One picture: parts measured, sum computed", "recipe", "a step", "text, reference, decoding", "computed", "drawn"
    )
    for name, row in rows.items():
        recipe = row["recipe"]
        label = f"{name}: {recipe['scheduler']} {recipe['steps']}, {recipe['dtype']}"
        if row["computed"] is None:
            table.add_row(label, row["why"])
            continue
        parts = ", ".join(seconds(x) for x in row["parts"].values())
        table.add_row(label, seconds(row["step"]), parts, seconds(row["computed"]), seconds(row["drawn"]))
    before, after = (rows[name]["computed"] for name in ("released", "proposed"))
    if before is not None and after is not None:
        table.add_row("released / proposed", "", "", f"{before / after:.2f} x")
    return table


def _memory(rows: list[dict[str, Any]]) -> Table:
    shown = [(key, label) for key, label in _PEAKS if any(row[key] is not None for row in rows)]
    table = _table("Memory of weights, reading a reference, one step: a process each", "variant", *(x for _, x in shown))
    for row in rows:
        values = ["-" if row[key] is None else f"{row[key] / 1024:.2f} GiB" for key, _ in shown]
        table.add_row(f"{row['size']} {row['dtype']} {NAMES[row['variant']]}", *values)
    return table


def _start(row: dict[str, Any]) -> Table:
    model = row["model"] or "no embedded model in this installation: only the import"
    table = _table(f"Cold start ({model}), files in the system's cache", "what", "seconds", "range")
    labels = {
        "import": "import deadiff",
        "load": "load the model",
        "first_picture": "first picture",
        "next_picture": "next picture",
        "process": "whole process, Python's start included",
    }
    for key, label in labels.items():
        if spread := row["seconds"].get(key):
            table.add_row(label, seconds(spread["median"]), f"{seconds(spread['least'])} - {seconds(spread['greatest'])}")
    return table
