"""How well the judges see: measured on real pictures that they never learned from, then written beside their weights.

Groups of pictures, each at most `MOST`, by lot:
- plain, renditions: drawings of unseen combinations (splits.py), as their artists drew them and in the renditions of training
- held-out renditions: the same drawings in the five renditions of no training style
- unseen sets: the five sets that no judge has seen a picture of
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from deadiff.data.splits import HELD_OUT_RENDITIONS, HELD_OUT_SETS, PLAIN, TRAIN, split_of
from deadiff.data.store import decode_png, read_rows, row_features, shards
from deadiff.errors import CheckpointError, DataError
from deadiff.evaluation.judge_training import Row
from deadiff.evaluation.judges import Judges, network_config, style_centroids
from deadiff.evaluation.judges.networks import StyleNet, SubjectNet
from deadiff.evaluation.metrics import calibration_error, dino_leakage, gram_distance, kid, leakage, picture_similarity, top
from deadiff.training.icon_art import style_name
from deadiff.training.loop import latest_checkpoint
from deadiff.writing import write_text_whole, write_whole

MOST = 1600  # pictures of a group
CENTROID_PICTURES = 100  # of each style
GROUPS = ("plain", "renditions", "held-out renditions", "unseen sets")


def lot(row: Mapping[str, Any], purpose: str) -> float:
    """A number in [0, 1) that depends on the picture and the purpose alone."""
    digest = hashlib.sha256(f"judges|{purpose}|{row['sha256']}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def test_group(row: Row) -> str | None:
    """The group in which a picture tests the judges, None if one of them learned from it or its centroid holds it."""
    if row["set"] in HELD_OUT_SETS:
        return "unseen sets" if lot(row, "half") >= 0.5 else None
    if split_of(row["subject"], row["set"]) == TRAIN:
        return None
    if row["rendition"] == PLAIN:
        return "plain"
    return "held-out renditions" if row["rendition"] in HELD_OUT_RENDITIONS else "renditions"


def centroid_style(row: Row) -> str | None:
    """The style whose centroid a picture may shape: any that tests nothing."""
    return style_name(row) if test_group(row) is None else None


def choose(rows: Sequence[Row]) -> tuple[dict[int, str], dict[int, str]]:
    """Which pictures test (number -> group) and which shape centroids (number -> style), by lot."""
    by_group: dict[str, list[int]] = {}
    by_style: dict[str, list[int]] = {}
    for i, row in enumerate(rows):
        if group := test_group(row):
            by_group.setdefault(group, []).append(i)
        elif style := centroid_style(row):
            by_style.setdefault(style, []).append(i)

    def drawn(members: list[int], most: int) -> list[int]:
        return sorted(members, key=lambda i: lot(rows[i], "order"))[:most]

    tests = {i: group for group, members in by_group.items() for i in drawn(members, MOST)}
    return tests, {i: style for style, members in by_style.items() for i in drawn(members, CENTROID_PICTURES)}


def read_chosen(folder: Path, wanted: Iterable[int]) -> tuple[np.ndarray, list[Row]]:
    """Pictures by their number in the data set, in the order of `shards`: (N, S, S, 3) uint8, and their rows."""
    numbers, pictures, rows, start = set(wanted), [], [], 0
    for shard in shards(folder):
        found = read_rows(shard, list(row_features()))
        for i, row in enumerate(found, start):
            image = row.pop("image")
            if i in numbers:
                pictures.append(decode_png(image["bytes"]))
                rows.append(row)
        start += len(found)
    return np.stack(pictures), rows


def all_rows(folder: Path) -> list[Row]:
    """Every row of a data set without its picture, in the order of `shards`."""
    columns = [name for name in row_features() if name != "image"]
    return [row for shard in shards(folder) for row in read_rows(shard, columns)]


def measure(judges: Judges, pictures: np.ndarray, rows: Sequence[Row], groups: Sequence[str]) -> dict[str, Any]:
    """Accuracy by group, for judges that are calibrated: top-1, top-5 and calibration error (ECE) of both questions."""
    known = {name: i for i, name in enumerate(judges.subjects)}
    subject = np.array([known.get(row["subject"], -1) for row in rows])
    style = np.array([judges.style_number(style_name(row)) for row in rows])
    seen, drawn = judges.subject(pictures), judges.style(pictures)
    table: dict[str, Any] = {}
    for group in GROUPS:
        here = np.array([g == group for g in groups])
        named = here & (subject >= 0)
        if named.any():
            table[group] = {
                "pictures": int(here.sum()),
                "subject": _accuracy(seen[named], subject[named]),
                "style": _accuracy(drawn[here], style[here]),
            }
    return table


def _accuracy(probabilities: np.ndarray, target: np.ndarray) -> dict[str, float]:
    return {
        "top1": round(float(top(probabilities, target).mean()), 4),
        "top5": round(float(top(probabilities, target, 5).mean()), 4),
        "ece": round(calibration_error(probabilities, target), 4),
    }


def baselines(judges: Judges, data: Path, pairs: int = 300, features: Any = None) -> dict[str, dict[str, float]]:
    """Trivial answers scored by every metric, so that each is seen to reward what it should; all of them real pictures.

    A pair is a reference by lot and, as what a perfect model would draw, a picture of the same style and another subject, which
    is the prompt's. Answers: the true picture, the reference pasted back, any other picture. features: a MobileNetEncoder, for
    the metrics of CLIP-I's, DINO's and KID's make and for Gram; without one these are left out.
    """
    rows = all_rows(data)
    tests, _ = choose(rows)
    known, named = set(judges.subjects), set(judges.styles)
    answerable = [i for i in tests if rows[i]["subject"] in known and style_name(rows[i]) in named]
    pool = sorted(answerable, key=lambda i: lot(rows[i], "pair"))
    by_style: dict[str, list[int]] = {}
    for i in pool:
        by_style.setdefault(style_name(rows[i]), []).append(i)
    chosen = []
    for place, i in enumerate(pool):
        alike = [j for j in by_style[style_name(rows[i])] if rows[j]["subject"] != rows[i]["subject"]]
        if alike and len(chosen) < pairs:
            chosen.append((i, alike[place % len(alike)], pool[(place + len(pool) // 2) % len(pool)]))
    if not chosen:
        raise DataError(f"'{data}' holds no two test pictures of one style: build the whole set with `deadiff data icons`")
    numbers = sorted({i for triple in chosen for i in triple})
    pictures, _ = read_chosen(data, numbers)
    place_of = {number: place for place, number in enumerate(numbers)}
    references, true, others = (np.array([place_of[triple[k]] for triple in chosen]) for k in range(3))
    subject = np.array([judges.subject_number(rows[i]["subject"]) for i in numbers])
    style = np.array([judges.style_number(style_name(rows[i])) for i in numbers])
    seen, drawn, styles = judges.subject(pictures), judges.style(pictures), judges.style_features(pictures)
    deep = features.pictures(pictures) if features is not None else None
    maps = features.maps(pictures) if features is not None else []

    table = {}
    for name, answers in {"the true picture": true, "the reference pasted back": references, "a random picture": others}.items():
        leaks = leakage(seen[answers], subject[true], subject[references])
        table[name] = {
            "style like the reference's (SS)": picture_similarity(styles[answers], styles[references]).mean(),
            "style named": top(drawn[answers], style[references]).mean(),
            "probability of the prompt's subject (TA)": seen[answers, subject[true]].mean(),
            "prompt's subject named": leaks.prompt.mean(),
            "reference's subject named": leaks.reference.mean(),
            "reference's subject preferred": leaks.preferred.mean(),
        }
        if deep is not None:
            table[name] |= {
                "cosine with the reference (as CLIP-I)": picture_similarity(deep[answers], deep[references]).mean(),
                "excess over other references (as DINO leakage)": dino_leakage(deep[answers], deep[references]).mean(),
                "Gram distance to the reference": gram_distance([m[answers] for m in maps], [m[references] for m in maps]).mean(),
                "KID to the true pictures": kid(deep[answers], deep[true], 20, len(chosen) // 2)[0],
            }
        table[name] = {column: round(float(value), 4) for column, value in table[name].items()}
    return table


def best_scale(logits: np.ndarray, target: np.ndarray, scales: Iterable[float]) -> float:
    """The factor on logits (N, K) with the smallest cross-entropy (Guo et al. 2017's temperature, by search)."""

    def loss(scale: float) -> float:
        x = logits * scale
        x = x - x.max(1, keepdims=True)
        return float((np.log(np.exp(x).sum(1)) - x[np.arange(len(x)), target]).mean())

    return min(scales, key=loss)


def pack(run: Path, data: Path, out: Path) -> dict[str, Any]:
    """Finished judges of a run folder -> OUT/{subject,style,centroids}.safetensors and judges.json, with what was measured."""
    tables = {name: _judge_table(run, name) for name in ("subject", "style")}
    configs = {name: network_config(table["config"]) for name, table in tables.items()}
    nets: dict[str, nn.Module] = {
        "subject": SubjectNet(configs["subject"], len(tables["subject"]["names"])),
        "style": StyleNet(configs["style"]),
    }
    for name, net in nets.items():
        weights = load_file(run / name / "weights.safetensors")
        net.load_state_dict({key: x.float() if x.is_floating_point() else x for key, x in weights.items()})

    tests, shaping = choose(all_rows(data))
    pictures, rows = read_chosen(data, [*tests, *shaping])
    numbers = sorted([*tests, *shaping])
    testing = np.array([number in tests for number in numbers])
    judges = Judges(
        nets["subject"],  # pyright: ignore[reportArgumentType]
        nets["style"],  # pyright: ignore[reportArgumentType]
        subjects=tables["subject"]["names"],
        labels=tables["subject"]["labels"],
        styles=["?"],
        centroids=np.zeros((1, configs["style"].embedding), np.float32),
        sizes=(configs["subject"].size, configs["style"].size),
    )
    features = judges.style_features(pictures[~testing])
    judges.styles, judges.centroids = style_centroids(features, [shaping[n] for n in numbers if n in shaping])
    judges = _renewed(judges)

    # every other picture calibrates, the rest is measured; a style without a centroid cannot be told
    known = set(judges.styles)
    testing &= np.array([style_name(row) in known for row in rows])
    pictures, rows = pictures[testing], [row for row, test in zip(rows, testing, strict=True) if test]
    groups = [tests[n] for n, test in zip(numbers, testing, strict=True) if test]
    half = np.array([lot(row, "calibration") < 0.5 for row in rows])
    _calibrate(judges, pictures[half], [row for row, h in zip(rows, half, strict=True) if h])
    kept = np.flatnonzero(~half)
    accuracy = measure(judges, pictures[kept], [rows[i] for i in kept], [groups[i] for i in kept])

    out.mkdir(parents=True, exist_ok=True)
    for name, net in nets.items():
        weights = {key: x.half() if x.is_floating_point() else x for key, x in net.state_dict().items()}
        write_whole(out / f"{name}.safetensors", lambda path, weights=weights: save_file(weights, path))
    centroids = {"centroids": torch.from_numpy(judges.centroids).half().contiguous()}
    write_whole(out / "centroids.safetensors", lambda path: save_file(centroids, path))
    table = {
        **{name: asdict(config) for name, config in configs.items()},
        "temperature": judges.temperature,
        "style_scale": judges.style_scale,
        "trained": {name: _trained(run / name) for name in nets},
        "accuracy": accuracy,
        "styles": judges.styles,
        "subjects": judges.subjects,
        "labels": judges.labels,
    }
    write_text_whole(out / "judges.json", json.dumps(table, ensure_ascii=False, indent=None, separators=(",", ":")) + "\n")
    return accuracy


def _calibrate(judges: Judges, pictures: np.ndarray, rows: Sequence[Row]) -> None:
    known = {name: i for i, name in enumerate(judges.subjects)}
    named = [i for i, row in enumerate(rows) if row["subject"] in known]
    probabilities = judges.subject(pictures[named])
    target = np.array([known[rows[i]["subject"]] for i in named])
    judges.temperature = 1 / best_scale(np.log(probabilities + 1e-12), target, np.geomspace(0.3, 3, 60))
    cosines = judges.style_features(pictures) @ judges.centroids.T
    judges.style_scale = best_scale(
        cosines, np.array([judges.style_number(style_name(row)) for row in rows]), np.geomspace(4, 80, 60)
    )


def _renewed(judges: Judges) -> Judges:
    return Judges(
        judges.subject_net,
        judges.style_net,
        subjects=judges.subjects,
        labels=judges.labels,
        styles=judges.styles,
        centroids=judges.centroids,
        sizes=judges.sizes,
    )


def _judge_table(run: Path, name: str) -> dict[str, Any]:
    path = run / name / "judge.json"
    if not path.is_file():
        raise CheckpointError(f"'{path}' is missing: train with recipes/judges/{name}.toml to its end first")
    return json.loads(path.read_text())


def _trained(folder: Path) -> dict[str, Any]:
    """Samples seen, by the newest checkpoint, and the last loss of the curve."""
    loop, lines = json.loads((folder / "loop.json").read_text()), (folder / "curve.jsonl").read_text().splitlines()
    newest = latest_checkpoint(folder)
    steps = int(newest.stem.rpartition("-")[2]) if newest else 0
    return {"samples": steps * loop["batch_size"], "steps": steps, "loss": json.loads(lines[-1])["loss"] if lines else None}
