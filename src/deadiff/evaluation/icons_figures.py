"""The six figures of the icons model: what it must show on held-out data, with 95 % intervals.

Prompts and references are drawn by lot from the held-out splits, never picked: a reference of a seen style is a picture that
training never saw, and the prompt's subject is one that training never saw in that style; unseen styles are the held-out sets and
renditions. Each figure stands beside the accuracy of the judge that made it, on real pictures.
"""

import hashlib
import json
import os
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from deadiff.contact_sheet import Row as SheetRow
from deadiff.contact_sheet import contact_sheet
from deadiff.data.captions import plain_label, style_phrases, with_article
from deadiff.data.splits import PLAIN, UNSEEN_COMBINATION, UNSEEN_STYLE, split_of
from deadiff.errors import ConfigError, DataError
from deadiff.evaluation import intervals
from deadiff.evaluation.judge_report import all_rows, read_chosen
from deadiff.evaluation.judges import Judges, load_judges
from deadiff.evaluation.metrics import leakage, top
from deadiff.jobs import Job
from deadiff.training.icon_art import style_name
from deadiff.writing import write_text_whole, write_whole

Progress = Callable[[str, int, int], None]  # what is being done, how many are done, of how many
DRAWS = 300  # a figure, at most
PROMPTS_PER_REFERENCE = 5
AT_ONCE = 48  # draws between two reports of progress
SHEET_ROWS = 6  # of each kind on the contact sheet


@dataclass(frozen=True, kw_only=True)
class Draw:
    """One picture to draw and what is known of it. References are numbers of rows in the data set."""

    prompt: str
    subject: str  # that the judge should name, a hexcode
    seed: int
    style: int | None = None
    content: int | None = None
    label: str = ""


def measure(
    model: str,
    out: Path,
    draws: int = DRAWS,
    seed: int = 0,
    *,
    data: Path = Path("data/icons"),
    num_inference_steps: int | None = None,
    progress: Progress | None = None,
    stylizer: Any = None,
    judges: Judges | None = None,
) -> dict[str, Any]:
    """Draw and measure all six; writes OUT/figures.json and OUT/figures.png and returns what the first holds.

    draws: at most so many for each figure, rounded down to whole references. data: the folder of `deadiff data icons`, for the
    references. stylizer: a loaded model instead of `model`'s. Raises ConfigError, DataError or CheckpointError.
    """
    if draws < PROMPTS_PER_REFERENCE:
        raise ConfigError(
            f"draws = {draws} is too few: expected at least {PROMPTS_PER_REFERENCE}, {DRAWS} for an interval worth having"
        )
    judges = judges or load_judges()
    if stylizer is None:
        from deadiff.evaluation.drawing import open_model

        stylizer = open_model(model)
    art = HeldOut(data, judges, seed)
    report = progress or (lambda *_: None)

    def drawn(title: str, wanted: Sequence[Draw]) -> np.ndarray:
        return draw(stylizer, wanted, art, num_inference_steps, lambda done: report(title, done, len(wanted)))

    prompts = art.prompts(draws)
    base = drawn("plain prompts", prompts)
    figures = {"1 prompt fidelity of the base": prompt_fidelity(judges, base, prompts)}

    sheet: list[SheetRow] = []
    leaks = []
    for number, title, split, target, groups in (
        ("2", "seen styles, unseen combinations", UNSEEN_COMBINATION, 0.80, ("plain", "renditions")),
        ("3", "unseen styles", UNSEEN_STYLE, 0.50, ("held-out renditions", "unseen sets")),
    ):
        wanted = art.styled(split, draws)
        unstyled = {d.prompt: Draw(prompt=d.prompt, subject=d.subject, seed=d.seed) for d in wanted}
        plain = dict(zip(unstyled, drawn(f"{title}: the plain base", list(unstyled.values())), strict=True))
        pictures = drawn(title, wanted)
        without = np.stack([plain[d.prompt] for d in wanted])
        figures[f"{number} {title}"] = stylised(judges, art, wanted, pictures, without, target, groups)
        leaks.append((wanted, pictures, without))
        sheet += sheet_rows(judges, art, wanted, pictures, title)
    figures["4 leakage"] = leaked(judges, art, leaks)

    wanted = art.redrawn(draws)
    pictures = drawn("content", wanted)
    figures["5 content role"] = content_role(judges, art, pictures, wanted)
    sheet += sheet_rows(judges, art, wanted, pictures, "content, style in words")
    both = art.both(2 * SHEET_ROWS)
    sheet += sheet_rows(judges, art, both, drawn("style and content", both), "style and content")
    figures["6 speed"] = speed(stylizer, art, model, num_inference_steps)

    found = {
        "model": model,
        "fingerprint": getattr(stylizer, "fingerprint", ""),
        "draws": draws,
        "seed": seed,
        "num_inference_steps": num_inference_steps or stylizer.defaults.num_inference_steps,
        "guidance_scale": stylizer.defaults.guidance_scale,
        "figures": figures,
        "judges on real pictures": judges.accuracy,
    }
    out.mkdir(parents=True, exist_ok=True)
    write_text_whole(out / "figures.json", json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    write_whole(out / "figures.png", lambda path: contact_sheet(sheet, columns=PROMPTS_PER_REFERENCE).save(path, format="PNG"))
    return found


class HeldOut:
    """The held-out pictures of a data set, and lots from them: functions of names and a seed alone."""

    def __init__(self, data: Path, judges: Judges, seed: int) -> None:
        self.data, self.seed = data, seed
        self.rows = all_rows(data)
        self.styles = set(judges.styles)
        known = set(judges.subjects)
        self.labels = {row["subject"]: plain_label(row["label"]) for row in self.rows if row["subject"] in known}
        self._pictures: dict[int, np.ndarray] = {}
        self._by_style: dict[tuple[str, str], list[int]] = {}  # (style, subject) -> numbers of pictures

    def order(self, names: Iterable[Any], purpose: str) -> list[Any]:
        """All of `names`, in the order of a lot."""
        return sorted(names, key=lambda name: hashlib.sha256(f"figures|{self.seed}|{purpose}|{name}".encode()).digest())

    def prompts(self, count: int) -> list[Draw]:
        """Different subjects, from all that the judge knows, held back in no way: what a user might ask for."""
        chosen = self.order(self.labels, "plain")[:count]
        return [Draw(prompt=with_article(self.labels[s]), subject=s, seed=self._seed(s), label=self.labels[s]) for s in chosen]

    def references(self, split: str, count: int, plain_only: bool = False) -> list[int]:
        """Numbers of pictures of a held-out split, style by style in turn."""
        by_style: dict[str, list[int]] = {}
        for i, row in enumerate(self.rows):
            if row["split"] == split and row["subject"] in self.labels and style_name(row) in self.styles:
                if plain_only and row["rendition"] != PLAIN:
                    continue
                by_style.setdefault(style_name(row), []).append(i)
        if not by_style:
            raise DataError(
                f"'{self.data}' holds no {split} picture: build the whole set with `deadiff data icons --out {self.data}`"
            )
        lines = [self.order(by_style[style], split) for style in self.order(by_style, split)]
        turns = [line[turn] for turn in range(max(map(len, lines))) for line in lines if turn < len(line)]
        return turns[:count]

    def styled(self, split: str, count: int) -> list[Draw]:
        """References x prompts; with seen styles only prompts whose subject training never saw in the reference's style."""
        found = []
        pools: dict[str, list[str]] = {}
        for number, i in enumerate(self.references(split, count // PROMPTS_PER_REFERENCE)):
            row = self.rows[i]
            key = row["family"] if split == UNSEEN_COMBINATION else ""
            if key not in pools:
                subjects = self.order(self.labels, f"prompts {split}")
                allowed = [s for s in subjects if split == UNSEEN_STYLE or split_of(s, row["set"]) == UNSEEN_COMBINATION]
                pools[key] = allowed[: 12 * PROMPTS_PER_REFERENCE]
            pool = [s for s in pools[key] if s != row["subject"]]
            for k in range(min(PROMPTS_PER_REFERENCE, len(pool))):
                s = pool[(number * PROMPTS_PER_REFERENCE + k) % len(pool)]
                found.append(
                    Draw(prompt=with_article(self.labels[s]), subject=s, seed=self._seed(s), style=i, label=self.labels[s])
                )
        return found

    def redrawn(self, count: int) -> list[Draw]:
        """A plain reference for the content, a seen style in words, other than the reference's own."""
        found = []
        seen = sorted({(row["set"] if row["rendition"] == PLAIN else "", row["rendition"]) for row in self.rows
                       if row["split"] == UNSEEN_COMBINATION})  # fmt: skip
        for i in self.references(UNSEEN_COMBINATION, count, plain_only=True):
            row = self.rows[i]
            others = [style for style in seen if style[0] != row["set"]]
            words = style_phrases(*self.order(others, f"words {i}")[0])
            said = self.order(words, f"phrase {i}")[0]
            subject = row["subject"]
            found.append(Draw(prompt=said, subject=subject, seed=self._seed(f"{i}"), content=i, label=said))
        return found

    def both(self, count: int) -> list[Draw]:
        """A style from one held-out picture, the content from another: for the contact sheet."""
        styles = self.references(UNSEEN_COMBINATION, count // 2) + self.references(UNSEEN_STYLE, count - count // 2)
        contents = self.references(UNSEEN_COMBINATION, 2 * len(styles), plain_only=True)[::-1]
        pairs = zip(styles, contents, strict=False)
        return [Draw(prompt="", subject=self.rows[c]["subject"], seed=self._seed(f"{s} {c}"), style=s, content=c,
                     label=self.labels[self.rows[c]["subject"]]) for s, c in pairs]  # fmt: skip

    def true_picture(self, d: Draw) -> int | None:
        """The prompt's subject in the reference's style (and palette, if there is one), where the data holds it."""
        if not self._by_style:
            for i, row in enumerate(self.rows):
                self._by_style.setdefault((style_name(row), row["subject"]), []).append(i)
        reference = self.rows[d.style] if d.style is not None else {}
        found = self._by_style.get((style_name(reference), d.subject), []) if reference else []
        return min(found, key=lambda i: (self.rows[i]["palette"] != reference["palette"], i), default=None)

    def picture(self, number: int) -> Image.Image:
        return Image.fromarray(self._pictures[number])

    def load(self, numbers: Iterable[int]) -> None:
        """Read these pictures, if they are not there yet."""
        wanted = sorted(set(numbers) - self._pictures.keys())
        if wanted:
            pictures, _ = read_chosen(self.data, wanted)
            self._pictures.update(zip(wanted, pictures, strict=True))

    def _seed(self, name: str) -> int:
        return int.from_bytes(hashlib.sha256(f"figures|{self.seed}|{name}".encode()).digest()[:4], "big")


def draw(
    stylizer: Any, wanted: Sequence[Draw], art: HeldOut, num_inference_steps: int | None, report: Callable[[int], None]
) -> np.ndarray:
    """(N, S, S, 3) uint8, in order."""
    art.load(number for d in wanted for number in (d.style, d.content) if number is not None)
    jobs = [
        Job(
            prompt=d.prompt,
            seed=d.seed,
            style=() if d.style is None else art.picture(d.style),
            content=() if d.content is None else art.picture(d.content),
        )
        for d in wanted
    ]
    return draw_jobs(stylizer, jobs, num_inference_steps, report)


def draw_jobs(stylizer: Any, jobs: Sequence[Job], num_inference_steps: int | None, report: Callable[[int], None]) -> np.ndarray:
    """(N, S, S, 3) uint8, in order, reporting how many are done."""
    found = []
    for start in range(0, len(jobs), AT_ONCE):
        images = stylizer(jobs[start : start + AT_ONCE], num_inference_steps=num_inference_steps).images
        found += [np.asarray(image.convert("RGB")) for image in images]
        report(len(found))
    return np.stack(found)


# ---- the figures ----


def _figure(target: float | None, at_least: bool, interval: intervals.Interval, **more: Any) -> dict[str, Any]:
    reached = None if target is None else bool(interval.estimate >= target if at_least else interval.estimate <= target)
    numbers = {name: round(value, 4) if isinstance(value, float) else value for name, value in interval.to_dict().items()}
    return {**numbers, **({} if target is None else {"target": target, "reached": reached}), **more}


def _on_real(judges: Judges, question: str, *groups: str) -> dict[str, float]:
    """top-1 of the judge on real held-out pictures, to be read beside what it says of drawings."""
    return {group: judges.accuracy[group][question]["top1"] for group in groups if group in judges.accuracy}


def _numbers(judges: Judges, subjects: Iterable[str]) -> np.ndarray:
    return np.array([judges.subject_number(subject) for subject in subjects])


def prompt_fidelity(judges: Judges, pictures: np.ndarray, wanted: Sequence[Draw]) -> dict[str, Any]:
    """Figure 1: the judge's first name, and one of its first five, is the prompt's subject."""
    seen, asked = judges.subject(pictures), _numbers(judges, (d.subject for d in wanted))
    prompts = [d.prompt for d in wanted]
    return {
        "top1": _figure(0.60, True, intervals.mean(top(seen, asked).astype(float), prompts)),
        "top5": _figure(0.80, True, intervals.mean(top(seen, asked, 5).astype(float), prompts)),
        "chance": round(1 / len(judges.subjects), 5),
        "judge on real pictures": {"subject": _on_real(judges, "subject", "plain", "renditions")},
    }


def stylised(
    judges: Judges,
    art: HeldOut,
    wanted: Sequence[Draw],
    pictures: np.ndarray,
    plain: np.ndarray,
    target: float,
    groups_of_judge: tuple[str, ...],
) -> dict[str, Any]:
    """Figures 2 and 3: the style judge names the reference's style; prompt fidelity beside that of the plain base."""
    rows = [art.rows[d.style] for d in wanted if d.style is not None]
    styles = np.array([judges.style_number(style_name(row)) for row in rows])
    groups = [f"{d.style}" for d in wanted], [d.prompt for d in wanted]
    drawn, asked = judges.style(pictures), _numbers(judges, (d.subject for d in wanted))
    right, before = (top(judges.subject(x), asked).astype(float) for x in (pictures, plain))
    falls = None if not before.any() else _figure(0.90, True, intervals.ratio(right, before, *groups))
    return {
        "style named": _figure(target, True, intervals.mean(top(drawn, styles).astype(float), *groups)),
        "style among first 5": _figure(None, True, intervals.mean(top(drawn, styles, 5).astype(float), *groups)),
        "style named without the reference": _figure(
            None, True, intervals.mean(top(judges.style(plain), styles).astype(float), *groups)
        ),
        "chance": round(1 / len(judges.styles), 4),
        "prompt fidelity": _figure(None, True, intervals.mean(right, *groups)),
        "of the plain base": _figure(None, True, intervals.mean(before, *groups)),
        "share that is kept": falls,
        "judge on real pictures": {name: _on_real(judges, name, *groups_of_judge) for name in ("style", "subject")},
        "true pictures": _true_pictures(judges, art, wanted, styles, asked, right),
        "by style": _by_style(rows, top(drawn, styles)),
    }


def _true_pictures(
    judges: Judges, art: HeldOut, wanted: Sequence[Draw], styles: np.ndarray, asked: np.ndarray, right: np.ndarray
) -> dict[str, Any]:
    """What a perfect model would reach: the same subjects in the same styles, as the data has them, before the same judges."""
    numbers = [art.true_picture(d) for d in wanted]
    there = [i for i, number in enumerate(numbers) if number is not None]
    if not there:
        return {"count": 0}
    art.load(number for number in numbers if number is not None)
    pictures = np.stack([np.asarray(art.picture(numbers[i])) for i in there])  # pyright: ignore[reportArgumentType]
    groups = [f"{wanted[i].style}" for i in there], [wanted[i].prompt for i in there]
    named = {
        "style named": top(judges.style(pictures), styles[there]),
        "prompt fidelity": top(judges.subject(pictures), asked[there]),
        "prompt fidelity of the drawings, same subjects and styles": right[there],
    }
    return {name: _figure(None, True, intervals.mean(hits.astype(float), *groups)) for name, hits in named.items()}


def _by_style(rows: Sequence[dict[str, Any]], hits: np.ndarray) -> dict[str, float]:
    names = [style_name(row) for row in rows]
    return {
        name: round(float(np.mean([h for n, h in zip(names, hits, strict=True) if n == name])), 2) for name in sorted(set(names))
    }


def leaked(judges: Judges, art: HeldOut, parts: Sequence[tuple[Sequence[Draw], np.ndarray, np.ndarray]]) -> dict[str, Any]:
    """Figure 4: the judge names the reference's subject instead of the prompt's; beside it the same of drawings without it."""
    wanted = [d for part, _, _ in parts for d in part]
    shown = _numbers(judges, (art.rows[d.style]["subject"] for d in wanted if d.style is not None))
    asked = _numbers(judges, (d.subject for d in wanted))
    groups = [f"{d.style}" for d in wanted], [d.prompt for d in wanted]
    found, floor = (
        leakage(judges.subject(np.concatenate(pictures)), asked, shown)
        for pictures in ([drawn for _, drawn, _ in parts], [plain for _, _, plain in parts])
    )
    return {
        "reference's subject named": _figure(0.03, False, intervals.mean(found.reference.astype(float), *groups)),
        "without the reference": _figure(None, False, intervals.mean(floor.reference.astype(float), *groups)),
        "likelier than the prompt's": _figure(None, False, intervals.mean(found.preferred.astype(float), *groups)),
        "likelier, without the reference": _figure(None, False, intervals.mean(floor.preferred.astype(float), *groups)),
        "judge on real pictures": {"subject": _on_real(judges, "subject", *judges.accuracy)},
    }


def content_role(judges: Judges, art: HeldOut, pictures: np.ndarray, wanted: Sequence[Draw]) -> dict[str, Any]:
    """Figure 5: the judge names the content reference's subject, with nothing but a style said in words."""
    seen, asked = judges.subject(pictures), _numbers(judges, (d.subject for d in wanted))
    shown = judges.subject(np.stack([np.asarray(art.picture(d.content)) for d in wanted if d.content is not None]))
    groups = [d.subject for d in wanted], [d.prompt for d in wanted]
    return {
        "reference's subject named": _figure(0.60, True, intervals.mean(top(seen, asked).astype(float), *groups)),
        "among first 5": _figure(None, True, intervals.mean(top(seen, asked, 5).astype(float), *groups)),
        "of the references themselves": _figure(None, True, intervals.mean(top(shown, asked).astype(float), *groups)),
        "judge on real pictures": {"subject": _on_real(judges, "subject", "plain", "renditions")},
    }


def speed(stylizer: Any, art: HeldOut, model: str, num_inference_steps: int | None) -> dict[str, Any]:
    """Figure 6: seconds for a batch of 4 with a reference, cold start excluded, and the size of the weights on disk."""
    import torch

    from deadiff.embedded import ICONS

    number = art.references(UNSEEN_STYLE, 1)[0]
    art.load([number])
    times = []
    for _ in range(4):
        start = time.perf_counter()
        stylizer("a robot", style=art.picture(number), num_images=4, seed=1, num_inference_steps=num_inference_steps)
        times.append(time.perf_counter() - start)
    seconds = statistics.median(times[1:])
    folder = ICONS if model == "icons" else Path(model)
    bytes_ = sum(p.stat().st_size for p in folder.rglob("*.safetensors")) if folder.is_dir() else 0
    return {
        "seconds for a batch of 4": {"estimate": round(seconds, 2), "target": 3.0, "reached": seconds <= 3.0},
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "load": [round(x, 1) for x in os.getloadavg()],
        "megabytes": {"estimate": round(bytes_ / 1e6, 1), "target": 60.0, "reached": 0 < bytes_ <= 60e6},
    }


def sheet_rows(judges: Judges, art: HeldOut, wanted: Sequence[Draw], pictures: np.ndarray, title: str) -> list[SheetRow]:
    """The first references by lot with all their pictures; below each picture what was asked for and what the judge sees."""
    seen = judges.subject(pictures).argmax(1)
    groups: dict[tuple[int | None, int | None], list[int]] = {}
    for i, d in enumerate(wanted):
        groups.setdefault((d.style, d.content), []).append(i)
    rows = []
    for (style, content), members in list(groups.items())[:SHEET_ROWS]:
        roles = [(n, role) for n, role in ((style, "style"), (content, "content")) if n is not None]
        references = [(art.picture(n), f"{role}: {style_name(art.rows[n])}") for n, role in roles]
        shown = [(Image.fromarray(pictures[i]), _said(judges, wanted[i], int(seen[i]))) for i in members]
        asked = ", ".join(wanted[i].label for i in members)
        rows.append(SheetRow(prompt=f"{title}: {asked}", references=references, pictures=shown))
    return rows


def _said(judges: Judges, d: Draw, seen: int) -> str:
    return f"{d.label or '-'}: right" if judges.subjects[seen] == d.subject else f"seen: {plain_label(judges.labels[seen])}"
