"""A painter of noise, and a process that draws with it and may be killed: what is light enough to start again and again.

As a program: for each line on stdin, a child begins to draw the plan in the folder given; its number is printed, and when it
has ended, how.
"""

import os
import sys
import time
from pathlib import Path

import numpy as np

from deadiff.data import generate
from deadiff.data.painter import PainterSpec

SPEC = PainterSpec(model="test/painter")
CONFIG = generate.GenerateConfig(shard_size=20, batch_size=4)


def noise(prompts, seeds) -> list:
    """The picture of a seed, at once."""
    return [np.random.default_rng(seed).integers(0, 255, (16, 16, 3), np.uint8) for seed in seeds]


def slow_noise(prompts, seeds) -> list:
    time.sleep(0.02)
    return noise(prompts, seeds)


def draw_all(out: Path, paint=noise, **options) -> dict[str, int]:
    """Every shard of the plan in `out` that is not done."""
    _, shards = generate.plan_size(out)
    for shard in range(shards):
        job = generate.GenerateJob(out=out, shard=shard, painter=SPEC, config=CONFIG, **options)
        if not job.done():
            job.draw(paint)
    return generate.counts(out)


if __name__ == "__main__":
    for _ in sys.stdin:
        child = os.fork()
        if child == 0:
            draw_all(Path(sys.argv[1]), slow_noise)
            os._exit(0)
        sys.stdout.write(f"{child}\n")
        sys.stdout.flush()
        _, status = os.waitpid(child, 0)
        sys.stdout.write(f"{os.waitstatus_to_exitcode(status)}\n")
        sys.stdout.flush()
