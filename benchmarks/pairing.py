"""How the time and memory of pairing grow: synthetic records (no pictures) of 10 thousand, 100 thousand and a million.

    python benchmarks/pairing.py --records 10000 100000 1000000 --processes 2

Each size runs in a process of its own; memory is the greatest resident size of that process and of its largest child.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from deadiff.data.features import Features
from deadiff.data.pairs import PairConfig, pair
from deadiff.data.records import Records
from deadiff.data.shard_jobs import run_here
from deadiff.data.similarity import LOOKS, THUMB

STYLES = 700
STYLES_A_SUBJECT = 14  # the paper's
MISDRAWN = 0.1  # of the pictures look like another style than their label says


def synthetic(count: int, folder: Path, seed: int = 0) -> tuple[Records, Features]:
    """Records of count / 14 subjects in 14 styles each, with looks around their style's; some misdrawn, some near-duplicates."""
    import pyarrow

    rng = np.random.default_rng(seed)
    subject = np.arange(count, dtype=np.int32) // STYLES_A_SUBJECT
    popularity = 1 / (20 + np.arange(STYLES))  # some styles are drawn far more often than others
    style = rng.choice(STYLES, size=count, p=popularity / popularity.sum()).astype(np.int32)
    drawn_as = np.where(rng.random(count) < MISDRAWN, rng.integers(STYLES, size=count), style)
    centres = rng.normal(0, 25, (STYLES, LOOKS))
    looks = np.lib.format.open_memmap(folder / "looks.npy", "w+", np.int8, (count, LOOKS))
    thumbnails = np.lib.format.open_memmap(folder / "thumbnails.npy", "w+", np.uint8, (count, 3 * THUMB**2))
    for start in range(0, count, 50_000):
        chosen = drawn_as[start : start + 50_000]
        looks[start : start + len(chosen)] = np.clip(centres[chosen] + rng.normal(0, 18, (len(chosen), LOOKS)), -127, 127)
        thumbnails[start : start + len(chosen)] = rng.integers(0, 256, (len(chosen), 3 * THUMB**2), dtype=np.uint8)
    same = rng.integers(count, size=count // 50)
    for start in range(0, len(same), 10_000):  # 2 % of the pictures look like another
        chosen = same[start : start + 10_000]
        thumbnails[chosen] = thumbnails[(chosen + 1) % count]
    looks.flush()
    thumbnails.flush()
    hashes = pyarrow.array([f"{value:016x}" * 4 for value in rng.permutation(count)])
    texts = pyarrow.array([""] * count)
    records = Records(
        folder=folder,
        shards=(folder / "pictures" / "00000.parquet",),
        starts=np.array([0, count]),
        subject=subject,
        subjects=[f"subject {number}" for number in range(int(subject[-1]) + 1)],
        style=style,
        styles=[f"style {number}" for number in range(STYLES)],
        split=np.zeros(count, np.int8),
        splits=["train"],
        hidden=rng.random(count) < 0.05,
        label=texts,
        caption=texts,
        sha256=hashes,
    )
    return records, Features(looks=folder / "looks.npy", thumbnails=folder / "thumbnails.npy")


def measure(count: int, processes: int) -> dict:
    """Seconds, peak memory and pairs of one size, in this process."""
    with tempfile.TemporaryDirectory() as folder:
        records, features = synthetic(count, Path(folder))
        began = time.perf_counter()
        note = pair(records, features, Path(folder) / "pairs", PairConfig(), run=run_here(processes))
        seconds = time.perf_counter() - began
        written = sum(path.stat().st_size for path in (Path(folder) / "pairs").glob("*.parquet"))
    peak = {who: resource.getrusage(getattr(resource, f"RUSAGE_{who}")).ru_maxrss / 2**20 for who in ("SELF", "CHILDREN")}
    return {
        "records": count,
        "seconds": round(seconds, 1),
        "main_gib": round(peak["SELF"], 2),
        "largest_worker_gib": round(peak["CHILDREN"], 2),
        "pairs": sum(note["statistics"][task]["pairs"] for task in note["statistics"]),
        "dropped": sum(sum(note["statistics"][task]["dropped"].values()) for task in note["statistics"]),
        "index_mib": round(written / 2**20, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--records", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.here:
        print(json.dumps(measure(asked.records[0], asked.processes)))
        return
    print("| records | seconds | main GiB | largest worker GiB | pairs | dropped | index MiB |\n" + "|---" * 7 + "|")
    for count in asked.records:
        command = [sys.executable, __file__, "--here", "--records", str(count), "--processes", str(asked.processes)]
        found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1])
        print(
            "| " + " | ".join(f"{value:,}" if isinstance(value, int) else str(value) for value in found.values()) + " |",
            flush=True,
        )


if __name__ == "__main__":
    main()
