"""From scores to statements: means with intervals, differences to our method, and a verdict on each claim of the paper.

Pictures of one cell (reference, prompt) are averaged over their seeds first; references and prompts are then resampled together.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from deadiff.evaluation.design import MODEL, PLAIN, WORDS, Cell
from deadiff.evaluation.intervals import Interval, difference, mean, ratio
from deadiff.evaluation.protocol import Evaluation
from deadiff.evaluation.scores import Column

HOLDS, FAILS, OPEN = "holds", "fails", "not decided"
TEXT_KEPT, STYLE_KEPT = 0.95, 0.90  # the targets: of the plain base's text fidelity, of the best reconstructive rival's style


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """A claim, whether it holds beyond the intervals, and the numbers it rests on."""

    claim: str
    outcome: str
    because: str


class Averages:
    """One score of every method on the same cells, (reference, prompt) by (reference, prompt)."""

    def __init__(self, evaluation: Evaluation, cells: Sequence[Cell] | None = None) -> None:
        self.evaluation = evaluation
        self.cells = list(cells) if cells is not None else evaluation.main_cells
        names: dict[tuple[str, str], int] = {}
        self.group = np.array([names.setdefault((c.reference, c.prompt), len(names)) for c in self.cells])
        self.references, self.prompts = [r for r, _ in names], [p for _, p in names]
        self.count = len(names)

    def values(self, method: str, column: str, strength: float = 1.0) -> np.ndarray:
        """(cells,) means over seeds; NaN where the score does not apply."""
        cells = [Cell(reference=c.reference, prompt=c.prompt, seed=c.seed, strength=strength) for c in self.cells]
        scores = self.evaluation.scores[method].chosen(cells).columns[column]
        sums = np.bincount(self.group, np.nan_to_num(scores), self.count)
        seen = np.bincount(self.group, ~np.isnan(scores), self.count)
        return np.divide(sums, seen, out=np.full(self.count, np.nan), where=seen > 0)

    def mean(self, method: str, column: str, strength: float = 1.0, references: set[str] | None = None) -> Interval | None:
        """None where the score applies to none of the pictures."""
        values = self.values(method, column, strength)
        kept = ~np.isnan(values)
        if references is not None:
            kept &= np.array([r in references for r in self.references])
        return mean(values[kept], *self._clusters(kept)) if kept.any() else None

    def difference(self, method: str, other: str, column: str) -> Interval | None:
        """mean(method) - mean(other), paired."""
        a, b, kept = self._pair(method, other, column)
        return difference(a, b, *self._clusters(kept)) if kept.any() else None

    def ratio(self, method: str, other: str, column: str) -> Interval | None:
        """mean(method) / mean(other), paired; None where the other's mean is not above 0."""
        a, b, kept = self._pair(method, other, column)
        return ratio(a, b, *self._clusters(kept)) if kept.any() and b.mean() > 0 else None

    def _pair(self, method: str, other: str, column: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        a, b = self.values(method, column), self.values(other, column)
        kept = ~np.isnan(a + b)
        return a[kept], b[kept], kept

    def _clusters(self, kept: np.ndarray) -> tuple[list[str], list[str]]:
        rows = np.flatnonzero(kept)
        return [self.references[i] for i in rows], [self.prompts[i] for i in rows]


def ours_of(evaluation: Evaluation) -> str:
    return evaluation.recipe.claims.ours or evaluation.methods[0].name


def rivals_of(evaluation: Evaluation) -> list[str]:
    """The methods named as rivals, or every other model but the ablations, and text only."""
    known = [method.name for method in evaluation.methods]
    claims = evaluation.recipe.claims
    if claims.rivals:
        return [name for name in claims.rivals if name in known]
    kinds = {method.name: method.kind for method in evaluation.methods}
    return [n for n in known if kinds[n] in (MODEL, WORDS) and n != ours_of(evaluation) and n not in claims.ablations]


def verdicts(evaluation: Evaluation, averages: Averages) -> list[Verdict]:
    """The claims that can be judged with the methods at hand."""
    columns = {column.name: column for column in evaluation.columns}
    if not {"style", "text"} <= columns.keys():
        return []
    ours, rivals = ours_of(evaluation), rivals_of(evaluation)
    title = {method.name: method.title for method in evaluation.methods}
    found = []
    if front := _not_dominated(averages, ours, rivals, title):
        found.append(front)
    if PLAIN in title and (kept := averages.ratio(ours, PLAIN, "text")):
        found.append(
            Verdict(
                claim=f"text fidelity is at least {TEXT_KEPT:.0%} of the plain base's",
                outcome=_at_least(kept, TEXT_KEPT),
                because=f"{kept} of it",
            )
        )
    reconstructive = [name for name in evaluation.recipe.claims.reconstructive if name in title]
    if reconstructive:
        found.extend(_style_kept(averages, ours, reconstructive, title))
    if "leak" in columns and (least := _least_leakage(averages, ours, [n for n in rivals if n != WORDS], title)):
        found.append(least)
    for name in evaluation.recipe.claims.ablations:
        if name in title:
            found.append(_ablation(averages, ours, name, title[name], columns))
    return found


def _not_dominated(averages: Averages, ours: str, rivals: Sequence[str], title: dict[str, str]) -> Verdict | None:
    """Fails where a rival is better in both beyond its interval; holds where each is worse in one beyond it."""
    better, undecided, compared = [], [], 0
    for name in rivals:
        style, text = (averages.difference(name, ours, column) for column in ("style", "text"))
        if style is None or text is None:
            continue
        compared += 1
        if style.low > 0 and text.low > 0:
            better.append(f"{title[name]} (style {style}, text {text})")
        elif style.high >= 0 and text.high >= 0:
            undecided.append(title[name])
    claim = "no rival is better in both style and text"
    if not compared:
        return None
    if better:
        return Verdict(claim=claim, outcome=FAILS, because="better in both: " + "; ".join(better))
    if undecided:
        return Verdict(
            claim=claim, outcome=HOLDS, because=f"none beyond its interval; as good in both within it: {', '.join(undecided)}"
        )
    return Verdict(claim=claim, outcome=HOLDS, because="each is worse in style or in text beyond its interval")


def _style_kept(averages: Averages, ours: str, reconstructive: Sequence[str], title: dict[str, str]) -> list[Verdict]:
    """Of the best reconstructive rival's score; and, stricter, of its gain over the plain base, which scores above 0 too."""
    best = max(reconstructive, key=lambda name: float(np.nanmean(averages.values(name, "style"))))
    found = []
    if kept := averages.ratio(ours, best, "style"):
        found.append(
            Verdict(
                claim=f"style is at least {STYLE_KEPT:.0%} of the best reconstructive rival's",
                outcome=_at_least(kept, STYLE_KEPT),
                because=f"{kept} of {title[best]}",
            )
        )
    if PLAIN in title:
        base = averages.values(PLAIN, "style")
        gain, gain_of_best = (averages.values(name, "style") - base for name in (ours, best))
        kept_cells = ~np.isnan(gain + gain_of_best)
        if kept_cells.any() and gain_of_best[kept_cells].mean() > 0:
            share = ratio(gain[kept_cells], gain_of_best[kept_cells], *averages._clusters(kept_cells))
            found.append(
                Verdict(
                    claim=f"the gain in style over the plain base is at least {STYLE_KEPT:.0%} of that rival's (stricter)",
                    outcome=_at_least(share, STYLE_KEPT),
                    because=f"{share} of {title[best]}",
                )
            )
    return found


def _least_leakage(averages: Averages, ours: str, others: Sequence[str], title: dict[str, str]) -> Verdict | None:
    more, less, equal = [], [], []
    for name in others:
        gap = averages.difference(name, ours, "leak")
        if gap is not None:
            (more if gap.low > 0 else less if gap.high < 0 else equal).append(f"{title[name]} {gap}")
    claim = "the reference's subject leaks least of all methods that read a reference"
    if less:
        return Verdict(claim=claim, outcome=FAILS, because="less than ours: " + "; ".join(less))
    if equal:
        return Verdict(claim=claim, outcome=OPEN, because="no different within the interval: " + "; ".join(equal))
    return Verdict(claim=claim, outcome=HOLDS, because="more than ours: " + "; ".join(more)) if more else None


def _ablation(averages: Averages, ours: str, name: str, title: str, columns: dict[str, Column]) -> Verdict:
    """Does taking the part away cost anything? Holds where style, text or leakage gets worse and none gets better."""
    said, worse, better = [], False, False
    for column in ("style", "text", "leak"):
        if column not in columns:
            continue
        gap = averages.difference(name, ours, column)
        if gap is None:
            continue
        up = gap.low > 0, gap.high < 0
        gained, lost = up if columns[column].better == "higher" else up[::-1]
        worse, better = worse or lost, better or gained
        said.append(f"{column} {gap}{' (worse)' if lost else ' (better)' if gained else ''}")
    outcome = OPEN if worse == better else HOLDS if worse else FAILS
    return Verdict(claim=f"what it takes away matters: {title}", outcome=outcome, because="; ".join(said))


def _at_least(interval: Interval, wanted: float) -> str:
    return HOLDS if interval.low >= wanted else FAILS if interval.high < wanted else OPEN
