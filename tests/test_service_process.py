"""`deadiff serve` as a process: killed and started again, told to stop, under load, refused; the documentation's own lines."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sqlalchemy import create_engine, text
from typer.testing import CliRunner

from deadiff.apps.cli import run
from deadiff.apps.serve_commands import app
from deadiff.jobs import Job
from deadiff.loading import load
from postgres import postgres, why_not
from serving import Command, png, reference
from tiny import tiny_model_folder

ROOT = Path(__file__).parent.parent
TOKEN = "a-token-for-the-tests"


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return tiny_model_folder(tmp_path_factory.mktemp("model"))


def ask(url: str, body: dict | None = None) -> dict:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


def wait(url: str, identity: str) -> dict:
    until = time.monotonic() + 120
    while time.monotonic() < until:
        job = ask(f"{url}/v1/jobs/{identity}?wait=20")
        if job["status"] not in ("queued", "running"):
            return job
    raise AssertionError(f"job {identity} was not over in time")


on_postgres = pytest.param("postgresql", marks=pytest.mark.skipif(why_not() is not None, reason=str(why_not())))


@pytest.mark.parametrize("kind", ["sqlite", on_postgres])
def test_killed_in_the_middle_and_started_again_every_accepted_job_finishes_once(kind, model, tmp_path):
    with nullcontext(None) if kind == "sqlite" else postgres() as database:
        options = ["--model", str(model), "--max-batch", "4", "--grace", "1"]
        options += ["--database", database, "--lease", "1"] if database else []
        data = tmp_path / "data"
        with Command(data, *options) as first:
            asked = [{"prompt": f"a robot {i}", "style": [reference(i)], "seed": i, "num_inference_steps": 12} for i in range(20)]
            accepted = [ask(f"{first.url}/v1/jobs", body)["id"] for body in asked]
            wait(first.url, accepted[0])
            while not any(job["status"] == "running" for job in ask(f"{first.url}/v1/jobs?limit=100")["jobs"]):
                time.sleep(0.01)
            before = {job["id"]: job["status"] for job in ask(f"{first.url}/v1/jobs?limit=100")["jobs"]}
            assert first.end("kill") == -9
        assert "done" in before.values() and "queued" in before.values()

        with Command(data, *options) as second:
            jobs = [wait(second.url, identity) for identity in accepted]
            assert {job["id"] for job in ask(f"{second.url}/v1/jobs?limit=100")["jobs"]} == set(accepted)
            assert [job["status"] for job in jobs] == ["done"] * 20
            stylizer = load(model, device="cpu")
            for i, job in enumerate(jobs):
                assert [p["seed"] for p in job["pictures"]] == [i]
                with urllib.request.urlopen(second.url + job["pictures"][0]["url"]) as answer, Image.open(answer) as picture:
                    alone = stylizer(Job(prompt=f"a robot {i}", style=png(i), seed=i), num_inference_steps=12).images[0]
                    assert np.abs(np.asarray(picture).astype(int) - np.asarray(alone)).max() <= 2
            waiting = ask(f"{second.url}/v1/jobs", {"prompt": "later", "num_inference_steps": 100, "num_images": 16})["id"]
            assert second.end("terminate") == 0  # told to stop, it ends well
            assert "what was accepted and not drawn waits in the queue" in "".join(second.said)

        if kind == "sqlite":
            engine = create_engine(f"sqlite:///{data / 'deadiff.sqlite'}")
            with engine.connect() as connection:
                once = connection.execute(
                    text("SELECT count(*), count(DISTINCT job_id) FROM pictures WHERE job_id != :w"), {"w": waiting}
                )
                assert tuple(once.one()) == (20, 20)
                left = connection.execute(text("SELECT status, attempts FROM jobs WHERE id = :w"), {"w": waiting}).one()
                assert left[0] in ("queued", "done") and left[1] <= 1
            engine.dispose()


def test_beyond_this_machine_a_token_is_needed_to_even_start(tmp_path, capfd, monkeypatch):
    monkeypatch.delenv("DEADIFF_TOKEN", raising=False)
    assert run(["serve", "--host", "0.0.0.0", "--data", str(tmp_path / "data")]) == 2
    said = capfd.readouterr().err
    assert said.count("\n") == 1 and "refused to listen on '0.0.0.0' without a token" in said
    assert not (tmp_path / "data").exists()


def test_mistakes_of_the_command_are_one_line(tmp_path, capfd, monkeypatch):
    monkeypatch.setenv("DEADIFF_TOKEN", "short")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        (tmp_path / "token").write_text(TOKEN + "\n")
        token = ["--token-file", str(tmp_path / "token")]
        for arguments, said in (
            ([], "the token has 5 characters"),
            ([*token, "--port", port], f"cannot listen on 127.0.0.1:{port}"),
            ([*token, "--port", "0", "--model", "no/such/model"], "no model 'no/such/model'"),
            ([*token, "--host", "no.such.host.invalid"], "cannot listen on"),
            (["--token-file", str(tmp_path / "none")], "cannot be read"),
            ([*token, "--database", "mysql://x:secret@y/z"], "expected sqlite:///FILE or postgresql"),
            (["--max-batch", "0"], "max-batch"),
        ):
            assert run(["serve", "--data", str(tmp_path / "data"), *arguments]) == 2
            printed = capfd.readouterr().err.splitlines()
            assert said in printed[-1] and all(line.startswith(("error: ", "loading ")) for line in printed), printed
            assert "secret" not in printed[-1]


def test_a_small_load_loses_and_mixes_nothing(model, tmp_path):
    script = [
        sys.executable,
        str(ROOT / "benchmarks" / "service.py"),
        "--model",
        str(model),
        "--requests",
        "60",
        "--clients",
        "8",
    ]
    figures = tmp_path / "figures.json"
    run_ = subprocess.run([*script, "--alone", "8", "--json", str(figures)], capture_output=True, text=True, timeout=300)
    assert run_.returncode == 0, run_.stdout + run_.stderr
    found = json.loads(figures.read_text())
    assert found["batched"]["done"] == 60 and found["batched"]["lost"] == 0 and found["batched"]["mixed_up"] == 0
    assert found["batched"]["greatest_difference"] <= 2 and found["batched"]["mean_batch"] > 1
    assert found["alone"]["mean_batch"] == 1


@pytest.mark.skipif(shutil.which("curl") is None or shutil.which("bash") is None, reason="there is no curl or bash here")
def test_the_lines_in_the_documentation_work(model, tmp_path):
    page = (ROOT / "docs" / "service.md").read_text(encoding="utf-8")
    lines = re.findall(r"```sh\n(.*?)```", page, re.DOTALL)
    shell = [block for block in lines if "curl" in block]
    assert len(shell) >= 4
    shutil.copy(ROOT / "examples" / "references" / "neon-camera.png", tmp_path / "ref.png")
    with Command(tmp_path / "data", "--model", str(model), DEADIFF_TOKEN=TOKEN) as served:
        script = "set -euo pipefail\n" + "\n".join(shell).replace("http://127.0.0.1:8000", served.url)
        done = subprocess.run(
            ["bash", "-c", script],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=120,
            env={"PATH": os.environ["PATH"], "TOKEN": TOKEN},
        )
        assert done.returncode == 0, done.stdout + done.stderr
        with Image.open(tmp_path / "robot.png") as picture:
            assert picture.size == (128, 128)

        client = [sys.executable, str(ROOT / "examples" / "client.py"), served.url, "a robot", "ref.png", "client.png"]
        done = subprocess.run(client, cwd=tmp_path, capture_output=True, text=True, timeout=120, env={"DEADIFF_TOKEN": TOKEN})
        assert done.returncode == 0, done.stdout + done.stderr
        with Image.open(tmp_path / "client.png") as picture:
            assert picture.size == (128, 128)
        assert served.end("terminate") == 0


def test_the_client_is_twenty_lines():
    code = (ROOT / "examples" / "client.py").read_text(encoding="utf-8").splitlines()
    assert sum(bool(line.strip()) for line in code) <= 20
    page = (ROOT / "docs" / "service.md").read_text(encoding="utf-8")
    assert (ROOT / "examples" / "client.py").read_text(encoding="utf-8") in page


def test_every_option_in_the_documentation_exists():
    page = (ROOT / "docs" / "service.md").read_text(encoding="utf-8")
    shown = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "200"}).output
    for block in re.findall(r"deadiff serve[^\n`]*", page):
        for option in re.findall(r"--[a-z-]+", block):
            assert option in shown, option
