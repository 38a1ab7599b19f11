"""Run as a script: forks trainings and kills them with SIGKILL at random moments, or limits the size of their files.

One process pays for the imports and the model; each child is a fork. usage: killed_training.py MODEL RUN KILLS -> JSON on stdout
"""

import json
import os
import random
import resource
import signal
import sys
import time
import traceback
from pathlib import Path

import torch
from safetensors import safe_open

from deadiff.errors import DEADiffError
from deadiff.training.accelerated import Training
from deadiff.training.run_folder import RunFolder
from scale_training import FakePairs, recipe

EVERY = 2  # steps between checkpoints


def fork(work) -> int:
    """A child that runs `work` and leaves without a trace of the parent's clean-up; returns its process id."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        code = work() or 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def started(model: str, run: Path, steps: int) -> Training:
    loop = {"steps": steps, "checkpoint_steps": EVERY, "global_batch": 2, "batch_size": 2, "keep_checkpoints": 2}
    return Training(recipe(model, **loop), FakePairs(), run, cache=run / "cache")


def last_step(run: Path) -> tuple[int, int]:
    """(step of the newest checkpoint, last step of the curve), read as a new process would: an unreadable file raises."""
    folder = RunFolder(run)
    for path in folder.checkpoints():
        with safe_open(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118  (not a dict)
                file.get_tensor(key)
    found, curve = folder.load(), folder.curve()
    json.loads((run / "run.json").read_text()) if (run / "run.json").is_file() else None
    return (found[0] if found else 0), (curve[-1]["step"] if curve else 0)


def killed_often(model: str, run: Path, kills: int) -> dict:
    rng, steps, waits = random.Random(0), [], []
    for _ in range(kills):
        before = last_step(run)[0]
        child = fork(lambda: started(model, run, 100_000).run() and 0)
        wait = rng.uniform(0.05, 1.5)
        deadline = time.monotonic() + 60  # on a busy machine until something was done at all; the moment stays random
        while not (run / "run.json").is_file() and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(wait)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        saved, drawn = last_step(run)
        assert saved >= before, f"a checkpoint was lost: {before} -> {saved}"
        assert drawn - saved <= EVERY, f"{drawn - saved} steps were lost"
        steps.append(saved)
        waits.append(round(wait, 2))
    return {"steps": steps, "waits": waits}


def full_disk(model: str, run: Path) -> dict:
    """A checkpoint that cannot be written stops with one clear line, and the folder stays what it was."""
    before = last_step(run)[0]
    limit = max(run.glob("checkpoint-*.safetensors")).stat().st_size // 2  # bytes: room for a curve, not for a checkpoint

    def limited() -> int:
        training = started(model, run, 100_000)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        try:
            training.run()
        except DEADiffError as error:
            (run / "said.txt").write_text(f"{type(error).__name__}: {error}")
            return 7
        return 0

    _, status = os.waitpid(fork(limited), 0)
    after = last_step(run)[0]
    left = [path.name for path in run.glob(".*.partial")]
    return {
        "code": os.waitstatus_to_exitcode(status),
        "said": (run / "said.txt").read_text(),
        "before": before,
        "after": after,
        "left": left,
    }


if __name__ == "__main__":
    torch.set_num_threads(1)  # no pool of threads that a fork would lose
    model, run = sys.argv[1], Path(sys.argv[2])
    print(json.dumps({"kills": killed_often(model, run, int(sys.argv[3])), "disk": full_disk(model, run)}))  # noqa: T201
