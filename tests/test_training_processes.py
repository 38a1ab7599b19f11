"""Adapter training on two processes (gloo, CPU): the same as one process that accumulates, and as one that holds everything."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import scale_training as scale
import tiny
from deadiff.apps.cli import run as run_command
from deadiff.data.build import BuildConfig, build
from deadiff.training.run_folder import RunFolder

ART = Path(__file__).parent / "fixtures" / "art"
ENVIRONMENT = {
    **os.environ,
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "ACCELERATE_USE_CPU": "true",
    "PYTHONPATH": str(Path(__file__).parent),
}
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
ACCELERATE = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"]
ACCELERATE += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]  # gloo, as there is no GPU
TOLERANCE = 5e-5  # absolute, of losses near 1: sums in another order, by another number of threads
RECIPE = """
stage = "deadiff"
[base]
layout = "icons"
resolution = 64
[adapter]
qformer = { vocab_size = 8, hidden_size = 32, num_hidden_layers = 2, num_attention_heads = 2, intermediate_size = 32 }
projection_dim = 32
[loop]
steps = 4
seed = 1  # with 0 the fourth gradient is so steep that rounding decides a tenth of it
global_batch = 8
batch_size = 2
learning_rate = 1e-4
warmup_steps = 2
precision = "fp32"
gradient_checkpointing = false
log_steps = 1
validate_steps = 4
validation_draws = 1
trackers = []
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.tiny_model_folder(tmp_path_factory.mktemp("models") / "icons", "icons")


def test_two_processes_train_as_one_that_accumulates(model: Path, tmp_path: Path) -> None:
    """`accelerate launch` with two processes on the CPU: the same curve and weights; each process fills half of the caches."""
    build(tmp_path / "data", BuildConfig(size=64, renditions=0), art=ART)
    (tmp_path / "two.toml").write_text(RECIPE)
    given = ["train", str(tmp_path / "two.toml"), "--data", str(tmp_path / "data"), "--base", str(model), "--vision", str(model)]
    own = ["--run", str(tmp_path / "two"), "--cache", str(tmp_path / "cache-two")]
    done = subprocess.run(
        [*ACCELERATE, "-m", "deadiff.apps.cli", *given, *own], env=ENVIRONMENT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("validation_stre") == 1  # one process speaks
    assert run_command([*given, "--run", str(tmp_path / "one"), "--cache", str(tmp_path / "cache-one")]) == 0

    one, two = RunFolder(tmp_path / "one"), RunFolder(tmp_path / "two")
    assert len(one.curve()) == len(two.curve()) == 5
    for a, b in zip(one.curve(), two.curve(), strict=True):
        assert a.keys() == b.keys()
        for name in a.keys() - {"samples_per_second", "grad_norm"}:
            assert abs(a[name] - b[name]) <= TOLERANCE, name
    (_, mine), (_, theirs) = one.load(), two.load()
    assert mine.keys() == theirs.keys()
    moved = []
    for name, value in mine.items():
        apart = (value - theirs[name]).abs()
        if name.startswith("optimizer/exp_avg/"):  # as linear as the gradients, some of which are zero but for rounding
            assert apart.norm() <= 1e-2 * value.norm() + 1e-9, name
        elif name.startswith(("weights/", "average/")):
            moved.append(apart.flatten())
            assert apart.flatten().sort().values[:-1].mean() <= 1e-6, name  # of all but the one that is furthest off
    # AdamW makes a whole step of the sign of a gradient that only rounding gives: a few elements of 100,000 on some processors
    assert (torch.cat(moved) > 1e-6).float().mean() <= 1e-3
    shards = [len(list((tmp_path / name / "vision").glob("*.safetensors"))) for name in ("cache-one", "cache-two")]
    assert shards == [1, 2]


def test_sharded_weights_train_and_are_saved_as_whole_ones(tmp_path: Path) -> None:
    """FSDP's `fully_shard`, which accelerate calls with fsdp_version 2; accelerate itself refuses FSDP on a CPU."""
    model = tiny.tiny_model_folder(tmp_path / "model", "sd15")
    script = Path(scale.__file__).with_name("sharded_training.py")
    done = subprocess.run([*TORCHRUN, str(script), str(model)], env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    told = json.loads(done.stdout.splitlines()[-1])
    assert torch.allclose(torch.tensor(told["whole"]), torch.tensor(told["sharded"]), atol=TOLERANCE)
    assert told["difference"] <= 1e-4
