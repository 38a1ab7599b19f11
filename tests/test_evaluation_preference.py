"""Bradley-Terry against other ways to the same numbers, and a voting page that gives nothing away."""

import base64
import io
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin

from deadiff.errors import ConfigError, DataError
from deadiff.evaluation.bradley_terry import Vote, fit, preferred, standings
from deadiff.evaluation.design import Cell
from deadiff.evaluation.preference import KEY, make_page, outcome_table, plan, read_outcome
from deadiff.evaluation.table import Scores, write_scores


def test_two_methods_have_the_odds_of_their_votes() -> None:
    logs = fit(np.array([[0.0, 30.0], [10.0, 0.0]]), prior=0.0)
    assert logs[0] - logs[1] == pytest.approx(math.log(3))
    assert preferred(logs) == pytest.approx([0.75, 0.25])


def test_strengths_are_those_of_a_logistic_regression() -> None:
    """The same likelihood, maximised by another method: Newton's, in torch, on the log strengths."""
    rng = np.random.default_rng(0)
    wins = rng.integers(1, 20, (5, 5)).astype(float)
    np.fill_diagonal(wins, 0)
    logs = torch.zeros(5, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS(
        [logs], max_iter=500, tolerance_grad=1e-12, tolerance_change=1e-15, line_search_fn="strong_wolfe"
    )

    def loss() -> torch.Tensor:
        optimiser.zero_grad()
        value = -(torch.from_numpy(wins) * torch.nn.functional.logsigmoid(logs[:, None] - logs[None])).sum()
        value.backward()
        return value

    optimiser.step(loss)
    expected = (logs - logs.mean()).detach().numpy()
    assert fit(wins, prior=0.0) == pytest.approx(expected, abs=1e-5)
    assert fit(np.stack([wins, wins.T]), prior=0.0) == pytest.approx(np.stack([expected, -expected]), abs=1e-5)  # batches


def test_a_method_that_always_wins_stays_finite_with_the_prior_and_is_refused_without() -> None:
    wins = np.array([[0.0, 9.0], [0.0, 0.0]])
    assert np.isfinite(fit(wins)).all() and fit(wins)[0] > 1
    with pytest.raises(DataError, match="every vote"):
        fit(wins, prior=0.0)


def votes_of(strengths: dict[str, float], count: int, seed: int = 0) -> list[Vote]:
    rng = np.random.default_rng(seed)
    names = list(strengths)
    found = []
    for i in range(count):
        first, second = (names[int(k)] for k in rng.choice(len(names), 2, replace=False))
        chance = 1 / (1 + math.exp(strengths[second] - strengths[first]))
        found.append(
            Vote(first=first, second=second, share=float(rng.random() < chance), voter=f"v{i % 6}", reference=f"r{i % 10}")
        )
    return found


def test_intervals_hold_the_truth_and_narrow_with_votes() -> None:
    truth = {"a": 1.0, "b": 0.0, "c": -1.0}
    many = {s.method: s for s in standings(votes_of(truth, 1200), resamples=300)}
    few = {s.method: s for s in standings(votes_of(truth, 120), resamples=300)}
    assert [s.method for s in standings(votes_of(truth, 1200), resamples=10)] == ["a", "b", "c"]
    for name, value in truth.items():
        assert many[name].strength.low < value < many[name].strength.high
        assert many[name].strength.high - many[name].strength.low < few[name].strength.high - few[name].strength.low
    assert sum(s.votes for s in many.values()) == 2400


def test_a_vote_says_whom_and_how_much() -> None:
    with pytest.raises(DataError, match="with itself"):
        Vote(first="a", second="a", share=1.0)
    with pytest.raises(DataError, match="expected 0, 0.5 or 1"):
        Vote(first="a", second="b", share=1.5)
    with pytest.raises(DataError, match="no votes"):
        standings([])


# ---- the page ----

METHODS = ("secret-one", "secret-two", "secret-three")


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    """What the page needs of an evaluation: references, pictures that carry their maker's name, scores, the index."""
    rng = np.random.default_rng(0)
    told = PngImagePlugin.PngInfo()
    told.add_text("deadiff", '{"model": "secret-model"}')
    cells = [Cell(reference=f"r{r}", prompt=p, seed=0) for r in range(3) for p in ("a <b>cat</b>", "a dog")]
    for r in range(3):
        path = tmp_path / "references" / f"r{r}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (16, 16, 3), np.uint8)).save(path)
    index: dict = {"methods": [{"name": "reference", "kind": "reference", "title": "pasted"}], "scores": {}, "scorer": "judge"}
    for method in METHODS:
        pictures = []
        for i, _ in enumerate(cells):
            path = tmp_path / "pictures" / method / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 255, (16, 16, 3), np.uint8)).save(path, pnginfo=told)
            pictures.append(str(path.relative_to(tmp_path)))
        scores = Scores(cells=cells, pictures=pictures, columns={"style": np.zeros(len(cells))})
        write_scores(tmp_path / "scores" / f"{method}.parquet", scores, "judge")
        index["methods"].append({"name": method, "kind": "model", "title": method.upper()})
        index["scores"][method] = f"scores/{method}.parquet"
    (tmp_path / "evaluation.json").write_text(json.dumps(index))
    return tmp_path


def test_the_page_is_one_file_that_names_nobody(finished: Path) -> None:
    page = make_page(finished, pairs=30).read_text()
    assert "secret" not in page and "pictures/" not in page and "pasted" not in page
    assert not re.search(r'(?:src|href)="', page) and "http" not in page
    data = json.loads(re.search(r'type="application/json">(.*?)</script>', page, re.S).group(1))  # type: ignore[union-attr]
    assert len(data["questions"]) == 33  # one in ten comes again
    for uri in data["pictures"]:
        with Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))) as picture:
            assert picture.info == {} and picture.size == (16, 16)
    assert {q["prompt"] for q in data["questions"]} == {"a <b>cat</b>", "a dog"}  # as data, not as markup
    assert "<b>cat" not in page


def test_the_key_says_which_picture_is_whose(finished: Path) -> None:
    page = make_page(finished, pairs=12).read_text()
    data = json.loads(re.search(r'type="application/json">(.*?)</script>', page, re.S).group(1))  # type: ignore[union-attr]
    key = {q["number"]: q for q in json.loads((finished / KEY).read_text())["questions"]}
    cells = [(f"r{r}", p) for r in range(3) for p in ("a <b>cat</b>", "a dog")]
    for row in data["questions"]:
        question = key[row["n"]]
        place = cells.index((question["reference"], question["prompt"]))
        paths = [finished / "references" / f"{question['reference']}.png"]
        paths += [finished / "pictures" / question[side] / f"{place}.png" for side in ("left", "right")]
        for path, i in zip(paths, row["pictures"], strict=True):
            with (
                Image.open(io.BytesIO(base64.b64decode(data["pictures"][i].partition(",")[2]))) as shown,
                Image.open(path) as real,
            ):
                assert np.array_equal(np.asarray(shown), np.asarray(real))


def test_questions_are_balanced_and_repeat_with_sides_swapped() -> None:
    cells = [Cell(reference=f"r{i}", prompt="a cat", seed=0) for i in range(20)]
    questions = plan(METHODS, cells, 60, seed=0)
    asked = [q for q in questions if q.repeats is None]
    assert len(asked) == 60 and len(questions) == 66
    pairs = [frozenset((q.left, q.right)) for q in asked]
    assert {pairs.count(p) for p in set(pairs)} == {20}
    assert {sum(q.reference == c.reference for q in asked) for c in cells} == {3}
    assert 15 < sum(q.left == "secret-one" for q in asked) < 25  # sides by lot: about half of its 40
    by_number = {q.number: q for q in questions}
    for q in questions:
        if q.repeats is not None:
            first = by_number[q.repeats]
            assert (q.left, q.right, q.reference) == (first.right, first.left, first.reference)
    assert plan(METHODS, cells, 60, seed=0) == questions != plan(METHODS, cells, 60, seed=1)


def ballot(finished: Path, voter: str, favourite: str) -> Path:
    """A voter who always prefers one method and sees no difference between the others."""
    key = json.loads((finished / KEY).read_text())
    answers = {
        str(q["number"]): "left" if q["left"] == favourite else "right" if q["right"] == favourite else "same"
        for q in key["questions"]
    }
    path = finished / f"{voter}.json"
    path.write_text(json.dumps({"page": key["page"], "voter": voter, "answers": answers}))
    return path


def test_votes_come_back_as_strengths(finished: Path) -> None:
    make_page(finished, pairs=30)
    outcome = read_outcome(finished, [ballot(finished, v, "secret-two") for v in ("ann", "bob")], resamples=50)
    assert outcome.standings[0].method == "secret-two" and outcome.standings[0].preferred.estimate > 0.9
    rest = [s.strength.estimate for s in outcome.standings[1:]]
    assert rest[0] == pytest.approx(rest[1], abs=1e-6)
    assert (outcome.votes, outcome.voters, outcome.agreement) == (60, 2, 1.0)
    text = outcome_table(outcome, {"secret-two": "Two"})
    assert "| Two |" in text and "60 votes of 2 voters" in text


def test_files_that_are_not_votes_are_one_clear_line(finished: Path) -> None:
    make_page(finished, pairs=4)
    good = ballot(finished, "ann", "secret-one")
    with pytest.raises(DataError, match="comes twice"):
        read_outcome(finished, [good, good])
    for text, says in (
        ("{", "holds no votes"),
        ('{"answers": []}', "holds no votes"),
        ('{"page": "other", "answers": {}}', "votes on page 'other'"),
        (json.dumps({**json.loads(good.read_text()), "answers": {"0": "up"}}), "expected left, right or same"),
        (json.dumps({**json.loads(good.read_text()), "answers": {"99": "left"}}), "answers question '99'"),
    ):
        (finished / "bad.json").write_text(text)
        with pytest.raises(DataError, match=says) as caught:
            read_outcome(finished, [finished / "bad.json"])
        assert "\n" not in str(caught.value)
    make_page(finished, pairs=5)
    with pytest.raises(DataError, match="this one is"):  # a new page does not take old votes
        read_outcome(finished, [good])


def test_a_page_needs_two_methods_of_a_finished_evaluation(finished: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'nobody' is not in"):
        make_page(finished, ["nobody", "secret-one"])
    with pytest.raises(ConfigError, match="two methods, not 1"):
        make_page(finished, ["secret-one", "secret-one"])
    with pytest.raises(DataError, match="no finished evaluation"):
        make_page(tmp_path / "elsewhere")
