"""The service under load: many clients at once, each picture compared with the same seed drawn alone; and the same one at a time.

python benchmarks/service.py --requests 1000 --clients 32 --alone 300
"""

import argparse
import base64
import http.client
import io
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

TOLERANCE = 2  # of 255: matrix products round differently in batches of other sizes
REFERENCES = Path(__file__).parent.parent / "examples" / "references"
TURNS = [None, *Image.Transpose]  # each reference upright, mirrored, turned: 8 pictures are 64


class Server:
    """`deadiff serve` in a process of its own, and its memory over time."""

    def __init__(self, model: str, folder: str, max_batch: int) -> None:
        command = [sys.executable, __file__, "serve", "--port", "0", "--data", folder]  # this file again, see the end
        command += ["--model", model, "--max-batch", str(max_batch), "--max-queue", "100000"]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert self.process.stderr is not None
        self.said: list[str] = []
        for line in self.process.stderr:
            self.said.append(line)
            if found := re.search(r"on http://([^:]+):(\d+),", line):
                self.host, self.port = found[1], int(found[2])
                break
        else:
            raise SystemExit(f"the service did not start: {self.said}")
        threading.Thread(target=lambda: self.said.extend(self.process.stderr or ()), daemon=True).start()
        self.memory: list[float] = []  # MiB, four times a second
        self._over = threading.Event()
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while not self._over.wait(0.25):
            try:
                pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
            except (OSError, ValueError, IndexError):
                return
            self.memory.append(pages * os.sysconf("SC_PAGE_SIZE") / 2**20)

    def stop(self) -> None:
        self._over.set()
        code = self.process.poll()
        self.process.terminate()
        self.process.wait(60)
        if code is not None or sys.exc_info()[0] is not None:
            print(f"the service ({'running' if code is None else f'ended with {code}'}) said:", *self.said[-40:], file=sys.stderr)


class Client:
    """One kept connection."""

    def __init__(self, server: Server) -> None:
        self.connection = http.client.HTTPConnection(server.host, server.port, timeout=600)

    def ask(self, method: str, path: str, body: bytes | None = None) -> bytes:
        self.connection.request(method, path, body, {"Content-Type": "application/json"} if body else {})
        answer = self.connection.getresponse()
        data = answer.read()
        if answer.status not in (200, 202):
            raise RuntimeError(f"{method} {path} -> {answer.status}: {data[:200]!r}")
        return data

    def draw(self, job: dict[str, Any]) -> tuple[bytes, dict[str, Any]]:
        found = json.loads(self.ask("POST", "/v1/jobs", json.dumps(job).encode()))
        while found["status"] in ("queued", "running"):
            found = json.loads(self.ask("GET", f"/v1/jobs/{found['id']}?wait=60"))
        if found["status"] != "done":
            raise RuntimeError(f"job {found['id']} is {found['status']}: {found['error']}")
        return self.ask("GET", found["pictures"][0]["url"]), found


def references() -> list[bytes]:
    """64 pictures as PNG files."""
    made = []
    for turn in TURNS:
        for path in sorted(REFERENCES.glob("*.png")):
            with Image.open(path) as image:
                picture = image.convert("RGB") if turn is None else image.convert("RGB").transpose(turn)
            buffer = io.BytesIO()
            picture.save(buffer, "PNG")
            made.append(buffer.getvalue())
    return made


def job(number: int, pictures: list[bytes], steps: int) -> dict[str, Any]:
    """No two are alike: prompt, reference, strength and seed differ."""
    data = base64.b64encode(pictures[number % len(pictures)]).decode()
    prompt = f"a {['robot', 'cat', 'house', 'guitar', 'tree'][number % 5]} {number}"
    strength = 0.5 + number % 11 / 10
    return {"prompt": prompt, "style": [{"data": data}], "strength": strength, "seed": number, "num_inference_steps": steps}


def load_test(model: str, requests: int, clients: int, steps: int, max_batch: int) -> tuple[dict[str, Any], dict[int, bytes]]:
    pictures = references()
    drawn: dict[int, bytes] = {}
    jobs: dict[int, str] = {}
    seconds: dict[int, float] = {}
    errors: list[str] = []
    numbers = iter(range(requests))
    lock = threading.Lock()
    with tempfile.TemporaryDirectory() as folder:
        server = Server(model, folder, max_batch)
        try:
            Client(server).draw(job(0, pictures, steps))  # the first one pays for what is made once
            before = scrape(server)

            def work() -> None:
                client = Client(server)
                while True:
                    with lock:
                        number = next(numbers, None)
                    if number is None:
                        return
                    begun = time.perf_counter()
                    try:
                        drawn[number], found = client.draw(job(number, pictures, steps))
                        jobs[number] = found["id"]
                    except Exception as error:
                        errors.append(f"{number}: {error}")
                    seconds[number] = time.perf_counter() - begun

            threads = [threading.Thread(target=work) for _ in range(clients)]
            start = time.perf_counter()
            samples = len(server.memory)
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            took = time.perf_counter() - start
            memory = server.memory[samples:] or server.memory[-1:]
            after = scrape(server)
        finally:
            server.stop()
    times = sorted(seconds.values())
    batches = after["deadiff_batch_pictures_count"] - before["deadiff_batch_pictures_count"]
    fifth = max(1, len(memory) // 5)
    return {
        "requests": requests,
        "clients": clients,
        "max_batch": max_batch,
        "done": len(drawn),
        "lost": requests - len(drawn),
        "twice": len(jobs) - len(set(jobs.values())),
        "errors": errors[:5],
        "seconds": round(took, 2),
        "pictures_per_second": round(len(drawn) / took, 3),
        "p50_seconds": round(statistics.median(times), 3),
        "p95_seconds": round(times[int(0.95 * (len(times) - 1))], 3),
        "mean_batch": round((after["deadiff_pictures_total"] - before["deadiff_pictures_total"]) / batches, 2),
        "memory_mib": {
            "second_fifth": round(statistics.mean(memory[fifth : 2 * fifth] or memory), 1),
            "last_fifth": round(statistics.mean(memory[-fifth:]), 1),
            "greatest": round(max(memory), 1),
        },
    }, drawn


def scrape(server: Server) -> dict[str, float]:
    lines = Client(server).ask("GET", "/metrics").decode().splitlines()
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if not line.startswith("#"))}


def compare(model: str, drawn: dict[int, bytes], steps: int) -> dict[str, Any]:
    """Every picture against the same seed drawn alone, in this process, without the service."""
    from deadiff.jobs import Job
    from deadiff.loading import load

    stylizer, pictures = load(model), references()
    greatest, differing, mixed = 0, 0, 0
    for number, data in sorted(drawn.items()):
        asked = job(number, pictures, steps)
        one = Job(prompt=asked["prompt"], style=pictures[number % len(pictures)], strength=asked["strength"], seed=number)
        alone = np.asarray(stylizer(one, num_inference_steps=steps).images[0]).astype(int)
        with Image.open(io.BytesIO(data)) as picture:
            recipe = json.loads(picture.text["deadiff"])  # pyright: ignore[reportAttributeAccessIssue]
            difference = int(np.abs(np.asarray(picture).astype(int) - alone).max())
        greatest, differing = max(greatest, difference), differing + (difference > 0)
        mixed += difference > TOLERANCE or recipe["prompt"] != asked["prompt"] or recipe["seed"] != number
    return {"compared": len(drawn), "greatest_difference": greatest, "not_identical": differing, "mixed_up": mixed}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="icons")
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--max-batch", type=int, default=8)
    parser.add_argument("--alone", type=int, default=300, help="requests of the run that draws one at a time")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    batched, drawn = load_test(options.model, options.requests, options.clients, options.steps, options.max_batch)
    print("batched", json.dumps(batched), flush=True)
    alone, _ = load_test(options.model, options.alone, options.clients, options.steps, 1)
    print("one at a time", json.dumps(alone), flush=True)
    batched |= compare(options.model, drawn, options.steps)
    gain = round(batched["pictures_per_second"] / alone["pictures_per_second"], 2)
    figures = {"steps": options.steps, "batched": batched, "alone": alone, "gain": gain}
    print(json.dumps(figures, indent=2))
    if options.json is not None:
        options.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    if batched["lost"] or batched["mixed_up"] or batched["twice"] or alone["lost"]:
        sys.exit("pictures were lost or mixed up")


if __name__ == "__main__":
    if sys.argv[1:2] == ["serve"]:
        from deadiff.apps.cli import main as command

        command()
    else:
        main()
