"""Plots as SVG text: points with intervals, curves over strength, nothing but the file itself needed to show them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 800, 520  # pixels
LEFT, RIGHT, TOP, BOTTOM = 64, 210, 30, 52
COLOURS = ("#d1495b", "#00798c", "#edae49", "#30638e", "#6a4c93", "#3c8c5a", "#b5651d", "#7a7a7a", "#c71f8e", "#1b998b")
INK, FAINT, RULE = "#1b1b1f", "#6b6b76", "#e4e4ea"


@dataclass(frozen=True, kw_only=True)
class Point:
    """A place with intervals in both directions, (low, high), and a label."""

    x: float
    y: float
    x_interval: tuple[float, float] | None = None
    y_interval: tuple[float, float] | None = None
    label: str = ""


@dataclass(frozen=True, kw_only=True)
class Series:
    """Points of one colour, joined where `joined`. The title stands beside the last of them."""

    title: str
    points: Sequence[Point]
    joined: bool = False
    emphasis: bool = False


def scatter(series: Sequence[Series], x_title: str, y_title: str, title: str = "") -> str:
    """Series -> one <svg>. Points that are not finite are left out."""
    series = [_finite(one) for one in series]
    series = [one for one in series if one.points]
    if not series:
        return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} 40"><text x="8" y="24">no points</text></svg>'
    xs = [v for one in series for p in one.points for v in (p.x, *(p.x_interval or ()))]
    ys = [v for one in series for p in one.points for v in (p.y, *(p.y_interval or ()))]
    x_ticks, y_ticks = ticks(min(xs), max(xs)), ticks(min(ys), max(ys))
    plot_width, plot_height = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

    def px(x: float) -> float:
        return LEFT + (x - x_ticks[0]) / (x_ticks[-1] - x_ticks[0]) * plot_width

    def py(y: float) -> float:
        return TOP + plot_height - (y - y_ticks[0]) / (y_ticks[-1] - y_ticks[0]) * plot_height

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        f'font-family="system-ui, sans-serif" font-size="12" role="img" aria-label="{escape(title or y_title)}">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
        f'<text x="{LEFT}" y="18" fill="{INK}" font-weight="600">{escape(title)}</text>',
    ]
    for x in x_ticks:
        parts.append(f'<line x1="{px(x):.1f}" y1="{TOP}" x2="{px(x):.1f}" y2="{TOP + plot_height}" stroke="{RULE}"/>')
        parts.append(f'<text x="{px(x):.1f}" y="{TOP + plot_height + 16}" fill="{FAINT}" text-anchor="middle">{x:.4g}</text>')
    for y in y_ticks:
        parts.append(f'<line x1="{LEFT}" y1="{py(y):.1f}" x2="{LEFT + plot_width}" y2="{py(y):.1f}" stroke="{RULE}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{py(y) + 4:.1f}" fill="{FAINT}" text-anchor="end">{y:.4g}</text>')
    middle = TOP + plot_height / 2
    parts.append(
        f'<text x="{LEFT + plot_width / 2}" y="{HEIGHT - 12}" fill="{INK}" text-anchor="middle">{escape(x_title)}</text>'
    )
    parts.append(
        f'<text x="16" y="{middle}" fill="{INK}" text-anchor="middle" transform="rotate(-90 16 {middle})">'
        f"{escape(y_title)}</text>"
    )
    labels = []
    for number, one in enumerate(series):
        colour = COLOURS[number % len(COLOURS)]
        parts.extend(_draw(one, colour, px, py))
        last = one.points[-1]
        labels.append((py(last.y), px(last.x), one.title, colour, one.emphasis))
    parts.extend(_names(labels))
    return "\n".join([*parts, "</svg>"])


def _draw(one: Series, colour: str, px, py) -> list[str]:
    parts = []
    width = 2.4 if one.emphasis else 1.4
    if one.joined and len(one.points) > 1:
        path = " ".join(f"{px(p.x):.1f},{py(p.y):.1f}" for p in one.points)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="{width}"/>')
    for p in one.points:
        line = f'stroke="{colour}" stroke-opacity="0.45" stroke-width="{width}"'
        if p.x_interval:
            low, high = p.x_interval
            parts.append(f'<line x1="{px(low):.1f}" y1="{py(p.y):.1f}" x2="{px(high):.1f}" y2="{py(p.y):.1f}" {line}/>')
        if p.y_interval:
            low, high = p.y_interval
            parts.append(f'<line x1="{px(p.x):.1f}" y1="{py(low):.1f}" x2="{px(p.x):.1f}" y2="{py(high):.1f}" {line}/>')
        hint = escape(f"{one.title} {p.label}: {p.x:.4g}, {p.y:.4g}")
        radius = 5 if one.emphasis else 3.5
        parts.append(f'<circle cx="{px(p.x):.1f}" cy="{py(p.y):.1f}" r="{radius}" fill="{colour}"><title>{hint}</title></circle>')
        if p.label:
            parts.append(
                f'<text x="{px(p.x) + 6:.1f}" y="{py(p.y) - 6:.1f}" fill="{FAINT}" font-size="10">{escape(p.label)}</text>'
            )
    return parts


def _names(labels: list[tuple[float, float, str, str, bool]]) -> list[str]:
    """Titles in the right margin, in the order of height, no two on one another, each with a thread to its point."""
    parts, below = [], TOP - 6.0
    room = HEIGHT - BOTTOM - TOP
    step = min(15.0, room / max(1, len(labels)))
    floor = HEIGHT - BOTTOM - step * len(labels)
    for i, (y, x, title, colour, emphasis) in enumerate(sorted(labels)):
        at = max(below + step, min(y, floor + step * (i + 1)))
        below = at
        left = WIDTH - RIGHT + 14
        weight = ' font-weight="700"' if emphasis else ""
        parts.append(
            f'<line x1="{x:.1f}" y1="{y:.1f}" x2="{left - 3}" y2="{at - 4:.1f}" stroke="{colour}" stroke-opacity="0.25"/>'
        )
        parts.append(f'<text x="{left}" y="{at:.1f}" fill="{colour}" font-size="11"{weight}>{escape(title[:34])}</text>')
    return parts


def ticks(low: float, high: float, about: int = 6) -> list[float]:
    """Round numbers that enclose [low, high], at least two."""
    span = high - low or abs(high) * 0.1 or 1.0
    raw = span / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * 0.999)
    first = math.floor(low / step)
    last = max(math.ceil(high / step), first + 1)
    return [round(i * step, 12) for i in range(first, last + 1)]


def _finite(one: Series) -> Series:
    points = [p for p in one.points if math.isfinite(p.x) and math.isfinite(p.y)]
    return Series(title=one.title, points=points, joined=one.joined, emphasis=one.emphasis)
