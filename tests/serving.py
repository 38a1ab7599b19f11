"""Services for tests: in this process over a tiny model, or as the real command in a process of its own."""

import base64
import contextlib
import io
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from starlette.testclient import TestClient

from deadiff.service.app import create_app
from deadiff.service.settings import Settings
from deadiff.service.state import Service, open_service
from deadiff.stylizer import Stylizer
from tiny import picture


def png(seed: int = 1, size: tuple[int, int] = (40, 30)) -> bytes:
    buffer = io.BytesIO()
    picture(seed, size).save(buffer, "PNG")
    return buffer.getvalue()


def reference(seed: int = 1, **more: Any) -> dict[str, Any]:
    return {"data": base64.b64encode(png(seed)).decode(), **more}


@contextlib.contextmanager
def serving(stylizer: Stylizer, folder: Path, **settings: Any) -> Iterator[tuple[TestClient, Service]]:
    """A client of a service in this process, as if from this machine."""
    with (
        open_service(Settings(folder=folder, **{"grace": 0.0, "batch_wait": 0.01, **settings}), stylizer) as service,
        TestClient(create_app(service), base_url="http://127.0.0.1", raise_server_exceptions=False) as client,
    ):
        yield client, service


def wait_for(client: TestClient, job: dict[str, Any], seconds: float = 120) -> dict[str, Any]:
    """The job when it is over."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        found = client.get(f"/v1/jobs/{job['id']}", params={"wait": 5}).json()
        if found["status"] not in ("queued", "running"):
            return found
    raise AssertionError(f"job {job['id']} was not over after {seconds} s: {found}")


class Gate:
    """Stands in the way of a Stylizer: the worker waits at `held` until `open()`."""

    def __init__(self, stylizer: Stylizer) -> None:
        self._stylizer, self._go, self.held = stylizer, threading.Event(), threading.Event()
        self.calls: list[int] = []  # jobs of each call

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stylizer, name)

    def __call__(self, jobs: Any, **options: Any) -> Any:
        self.held.set()
        if not self._go.wait(30):
            raise AssertionError("nobody opened the gate")
        self.calls.append(len(jobs))
        return self._stylizer(jobs, **options)

    def open(self) -> None:
        self._go.set()


class Command:
    """`deadiff serve` in a process of its own; `url` is where it listens."""

    def __init__(self, data: Path, *options: str, wrapper: str = "", **environment: str) -> None:
        code = f"{wrapper}\nfrom deadiff.apps.cli import main; main()"
        arguments = [sys.executable, "-c", code, "serve", "--port", "0", "--data", str(data), *options]
        self.process = subprocess.Popen(
            arguments, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1", **environment}
        )
        assert self.process.stderr is not None
        self.said = []
        for line in self.process.stderr:
            self.said.append(line)
            if found := re.search(r"serving .* on (http://\S+?),", line):
                self.url = found[1]
                self._reader = threading.Thread(target=lambda: self.said.extend(self.process.stderr or ()), daemon=True)
                self._reader.start()
                return
        self.process.stderr.close()
        raise AssertionError(f"deadiff serve ended with {self.process.wait()}: {self.said}")

    def __enter__(self) -> "Command":
        return self

    def __exit__(self, *_: object) -> None:
        self.end("kill")

    def end(self, how: str = "terminate") -> int:
        """Its exit code."""
        if self.process.poll() is None:
            getattr(self.process, how)()
        code = self.process.wait(60)
        self._reader.join(10)
        if self.process.stderr is not None:
            self.process.stderr.close()
        return code
