"""SP, subjective preference: a blind pairwise voting page, and what its votes say.

The page is one HTML file: a reference, a prompt, two pictures, three answers. It does not know who drew what: the names
are in preference-key.json, which stays with whoever asked. One question in ten comes again with its sides swapped, to show
how far a voter agrees with himself.
"""

import base64
import hashlib
import html
import io
import itertools
import json
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from PIL import Image

from deadiff.errors import ConfigError, DataError
from deadiff.evaluation.bradley_terry import Standing, Vote, standings
from deadiff.evaluation.design import PASTED, RANDOM, TRUE, Cell
from deadiff.evaluation.protocol import open_results
from deadiff.evaluation.table import read_scores
from deadiff.writing import write_text_whole

KEY, PAGE = "preference-key.json", "preference.html"
QUESTION = "Which picture shows what the words say, in the style of the reference?"
REPEATED = 0.1  # of the questions
ANSWERS = {"left": 1.0, "right": 0.0, "same": 0.5}


@dataclass(frozen=True, kw_only=True)
class Question:
    """One question as the key keeps it: the page knows its number and the pictures alone."""

    number: int
    reference: str
    prompt: str
    seed: int
    left: str  # method
    right: str
    repeats: int | None = None  # the number of the question that it repeats with sides swapped


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What the votes say."""

    standings: list[Standing]
    votes: int
    voters: int
    agreement: float | None  # share of repeated questions that a voter answered alike; None without any


def make_page(out: Path, methods: Sequence[str] = (), *, pairs: int = 60, seed: int = 0, question: str = QUESTION) -> Path:
    """OUT/preference.html and its key, from the pictures of a finished evaluation. Raises ConfigError or DataError.

    methods: names; all that drew pictures, unless given. Every pair of methods is asked about equally often.
    """
    index = open_results(out)
    kinds = {method["name"]: method["kind"] for method in index["methods"]}
    chosen = list(methods) or [name for name, kind in kinds.items() if kind not in (PASTED, RANDOM, TRUE)]
    if unknown := [name for name in chosen if name not in kinds]:
        raise ConfigError(f"method {unknown[0]!r} is not in '{out}': expected some of {', '.join(kinds)}")
    if len(set(chosen)) < 2:
        raise ConfigError(f"a preference needs two methods, not {len(set(chosen))}: name them with --method")
    if pairs < 1:
        raise ConfigError(f"pairs is {pairs}: expected at least 1 question")
    pictures = {name: _pictures(out, index, name) for name in chosen}
    shared = sorted(set.intersection(*(set(found) for found in pictures.values())), key=lambda c: (c.reference, c.prompt, c.seed))
    if not shared:
        raise DataError(f"the methods have no picture of the same reference, prompt and seed in '{out}': evaluate them together")
    questions = plan(chosen, shared, pairs, seed)
    name = hashlib.sha256(json.dumps([asdict(q) for q in questions]).encode()).hexdigest()[:12]
    shown, number_of = _encode(out, questions, pictures)
    page = _page(name, question, [(q, number_of[q.number]) for q in questions], shown)
    key = {"page": name, "question": question, "methods": chosen, "questions": [asdict(q) for q in questions]}
    write_text_whole(out / KEY, json.dumps(key, indent=1, ensure_ascii=False) + "\n")
    write_text_whole(out / PAGE, page)
    return out / PAGE


def plan(methods: Sequence[str], cells: Sequence[Cell], pairs: int, seed: int) -> list[Question]:
    """`pairs` questions and repetitions: pairs of methods in turn, cells by lot (each once before any twice), sides by lot."""
    rng = random.Random(seed)
    couples = list(itertools.combinations(methods, 2))
    rng.shuffle(couples)
    lots: list[Cell] = []
    questions: list[Question] = []
    for number in range(pairs):
        if not lots:
            lots = list(cells)
            rng.shuffle(lots)
        cell, couple = lots.pop(), list(couples[number % len(couples)])
        rng.shuffle(couple)
        questions.append(
            Question(number=number, reference=cell.reference, prompt=cell.prompt, seed=cell.seed, left=couple[0], right=couple[1])
        )
    again = rng.sample(questions, round(REPEATED * pairs))
    for first in again:
        values = {**asdict(first), "number": len(questions), "left": first.right, "right": first.left, "repeats": first.number}
        questions.append(Question(**values))
    order = list(questions)
    rng.shuffle(order)
    return order


def read_outcome(out: Path, votes: Sequence[Path], *, resamples: int = 2000, seed: int = 0) -> Outcome:
    """The votes that the page saved, against OUT's key. Raises DataError for files that are not votes on this page."""
    try:
        key = json.loads((out / KEY).read_text(encoding="utf-8"))
        questions = {q["number"]: Question(**q) for q in key["questions"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"'{out / KEY}' cannot be read ({error}): make the page first with `deadiff eval preference {out}`"
        ) from error
    found: list[Vote] = []
    alike: list[bool] = []
    voters = set()
    for path in votes:
        ballot = _read_ballot(path, key["page"])
        voter = str(ballot.get("voter") or path.stem)
        if voter in voters:
            raise DataError(f"voter {voter!r} comes twice, the second time in '{path}': give each file once")
        voters.add(voter)
        shares: dict[int, float] = {}
        for number, answer in ballot["answers"].items():
            if not number.isdigit() or int(number) not in questions or answer not in ANSWERS:
                raise DataError(
                    f"'{path}' answers question {number!r} with {answer!r}: expected left, right or same to its questions"
                )
            shares[int(number)] = ANSWERS[answer]
        for number, share in shares.items():
            question = questions[number]
            if question.repeats is not None:  # counted for agreement alone: no question weighs twice
                if question.repeats in shares:
                    alike.append(shares[question.repeats] == 1 - share)
                continue
            found.append(Vote(first=question.left, second=question.right, share=share, voter=voter, reference=question.reference))
    return Outcome(
        standings=standings(found, resamples=resamples, seed=seed),
        votes=len(found),
        voters=len(voters),
        agreement=sum(alike) / len(alike) if alike else None,
    )


def outcome_table(outcome: Outcome, titles: dict[str, str]) -> str:
    """Markdown: strengths and chances with intervals."""
    lines = ["| method | preferred to another (95 %) | log strength (95 %) | votes |", "|---|---|---|---|"]
    for s in outcome.standings:
        chance = f"{s.preferred.estimate:.1%} [{s.preferred.low:.1%}, {s.preferred.high:.1%}]"
        strength = f"{s.strength.estimate:+.2f} [{s.strength.low:+.2f}, {s.strength.high:+.2f}]"
        lines.append(f"| {titles.get(s.method, s.method)} | {chance} | {strength} | {s.votes} |")
    said = f"{outcome.votes} votes of {outcome.voters} voter{'s' if outcome.voters != 1 else ''}"
    if outcome.agreement is not None:
        said += f"; repeated questions answered alike: {outcome.agreement:.0%}"
    return "\n".join([*lines, "", f"{said}. Bradley-Terry; intervals resample voters and references.", ""])


def _read_ballot(path: Path, page: str) -> dict[str, Any]:
    try:
        ballot = json.loads(path.read_text(encoding="utf-8"))
        answers = ballot["answers"]
        if not isinstance(answers, dict):
            raise TypeError("answers is no table")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"'{path}' holds no votes ({error}): expected the file that the page's Save button writes") from error
    if ballot.get("page") != page:
        raise DataError(f"'{path}' votes on page {ballot.get('page')!r}, this one is {page!r}: give the votes of this page")
    return ballot


def _pictures(out: Path, index: dict[str, Any], method: str) -> dict[Cell, Path]:
    scores = read_scores(out / index["scores"][method], index["scorer"])
    if scores is None:
        raise DataError(f"'{out}' has lost the scores of {method}: run the evaluation again, it draws nothing twice")
    pairs = zip(scores.cells, scores.pictures, strict=True)
    return {cell: out / picture for cell, picture in pairs if cell.strength == 1}


def _encode(
    out: Path, questions: Sequence[Question], pictures: dict[str, dict[Cell, Path]]
) -> tuple[list[str], dict[int, tuple[int, int, int]]]:
    """Every picture once, without its metadata, and per question the places of (reference, left, right)."""
    place: dict[Path, int] = {}
    numbers = {}
    for q in questions:
        cell = Cell(reference=q.reference, prompt=q.prompt, seed=q.seed)
        paths = out / "references" / f"{q.reference}.png", pictures[q.left][cell], pictures[q.right][cell]
        numbers[q.number] = tuple(place.setdefault(path, len(place)) for path in paths)
    order = list(range(len(place)))
    random.Random(len(place)).shuffle(order)  # pictures of one method do not stand together
    shuffled = {old: new for new, old in enumerate(order)}
    paths_in_order = sorted(place, key=lambda path: shuffled[place[path]])
    return [_data_uri(path) for path in paths_in_order], {n: tuple(shuffled[i] for i in p) for n, p in numbers.items()}  # type: ignore[misc]


def _data_uri(path: Path) -> str:
    """Pixels alone: a drawn PNG carries its recipe, which would tell the voter who drew it."""
    buffer = io.BytesIO()
    with Image.open(path) as picture:
        bare = Image.frombytes("RGB", picture.size, picture.convert("RGB").tobytes())
    bare.save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _page(name: str, question: str, asked: Sequence[tuple[Question, tuple[int, int, int]]], shown: Sequence[str]) -> str:
    rows = [{"n": q.number, "prompt": q.prompt, "pictures": places} for q, places in asked]
    data = json.dumps({"page": name, "questions": rows, "pictures": shown}, ensure_ascii=False).replace("<", "\\u003c")
    template = resources.files("deadiff.evaluation").joinpath("preference_page.html").read_text(encoding="utf-8")
    return template.replace("{{QUESTION}}", html.escape(question)).replace("{{DATA}}", data)
