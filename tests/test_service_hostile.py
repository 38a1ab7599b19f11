"""Hundreds of hostile requests against the real process: never a 500, and not a byte is written outside its folder."""

import base64
import io
import json
import os
import socket
import struct
import time
import urllib.error
import urllib.request
import zlib
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from PIL import Image
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import content_type_conformance, response_schema_conformance, status_code_conformance

from serving import Command, png
from tiny import tiny_model_folder

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
EXAMPLES = 8  # of each operation, right ones and wrong ones: some 250 requests in all

# Runs in the server before anything else: every file opened for writing, made, moved or removed outside the folder is noted.
WATCH = """
import os, sys
def _watch():
    root, noted = os.environ["WATCH_FOLDER"], os.open(os.environ["WATCH_LOG"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    inside = lambda path: os.path.abspath(os.fsdecode(path)).startswith(root + os.sep) or os.fsdecode(path) in (root, os.devnull)
    changes = ("os.mkdir", "os.rename", "os.link", "os.symlink", "os.remove", "os.rmdir", "os.truncate", "os.chmod", "os.chown")
    def hook(event, given):
        if event == "open" and isinstance(given[0], (str, bytes)):
            writes = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
            if isinstance(given[2], int) and given[2] & writes and not inside(given[0]):
                os.write(noted, f"{event} {given}\\n".encode())
        elif event in changes:
            if not all(inside(path) for path in given if isinstance(path, (str, bytes))):
                os.write(noted, f"{event} {given}\\n".encode())
        elif event in ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "socket.connect"):
            os.write(noted, f"{event} {given}\\n".encode())
    return hook
sys.addaudithook(_watch())
"""


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    model = tiny_model_folder(tmp_path_factory.mktemp("model"))
    folder = tmp_path_factory.mktemp("served")
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    environment = {
        "WATCH_FOLDER": str(folder / "data"),
        "WATCH_LOG": str(folder / "noted"),
        "TMPDIR": str(elsewhere),
        "HOME": str(elsewhere),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    options = ["--model", str(model), "--max-steps", "2", "--max-images", "2", "--max-megapixels", "4"]
    with Command(folder / "data", *options, wrapper=WATCH, **environment) as command:
        command.noted, command.elsewhere = folder / "noted", elsewhere
        command.before = command.noted.read_text()  # what loading the libraries did, before anybody asked for anything
        yield command


def status_of(url: str, data: bytes | None = None, kind: str = "application/json", **headers: str) -> int:
    request = urllib.request.Request(url, data, {"Content-Type": kind, **headers})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            answer.read()
            return answer.status
    except urllib.error.HTTPError as error:
        with error:
            assert "error" in json.load(error)
            return error.code


def raw(url: str, sent: bytes) -> bytes:
    """The first line of the answer to bytes that no HTTP library would send; empty if the connection was closed."""
    address = urlsplit(url)
    with socket.create_connection((address.hostname, address.port), timeout=20) as connection:
        connection.settimeout(5)
        try:
            connection.sendall(sent)
            connection.shutdown(socket.SHUT_WR)
            return connection.makefile("rb").readline()
        except (ConnectionError, TimeoutError):
            return b""


def test_whatever_follows_or_breaks_the_openapi_document_gets_a_documented_answer(served, record_property):
    schema = schemathesis.openapi.from_url(f"{served.url}/openapi.json")
    sent: list[int] = []
    with requests.Session() as session:
        for result in schema.get_all_operations():
            operation = result.ok()
            if operation.path.endswith("/events"):
                continue  # a stream; its errors are those of /v1/jobs/{id}
            for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
                try:
                    strategy = operation.as_strategy(generation_mode=mode)
                except Exception as error:
                    if "negative" not in str(error).lower():
                        raise
                    continue

                @settings(
                    max_examples=EXAMPLES,
                    deadline=None,
                    database=None,
                    derandomize=True,
                    phases=[Phase.generate],
                    suppress_health_check=list(HealthCheck),
                )
                @given(case=strategy)
                def send(case):
                    response = case.call(session=session, timeout=60)
                    sent.append(response.status_code)
                    case.validate_response(response, checks=CHECKS)

                try:
                    send()
                except Exception as error:
                    if type(error).__name__ not in ("Unsatisfiable", "SkipTest", "Skipped"):  # nothing to break in it
                        raise
    record_property("requests", len(sent))
    assert len(sent) >= 200 and max(sent) < 500 and {200, 202, 404, 422} <= set(sent), sorted(set(sent))


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def bombs() -> dict[str, bytes]:
    header = b"\x89PNG\r\n\x1a\n"
    size = chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0))
    small = chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 8, 2, 0, 0, 0))
    wide = io.BytesIO()
    Image.new("1", (60_000, 1000)).save(wide, "PNG")
    many = io.BytesIO()
    Image.new("L", (1000, 1000)).save(
        many, "GIF", save_all=True, append_images=[Image.new("L", (1000, 1000), i) for i in range(20)]
    )
    text = chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(100_000_000), 9))
    good = png()
    return {
        "60,000 x 60,000 pixels claimed": header + size + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b""),
        "60 megapixels for real": wide.getvalue(),
        "100 MB of text": header + small + text + chunk(b"IDAT", zlib.compress(bytes(25 * 8))) + chunk(b"IEND", b""),
        "a film": many.getvalue(),
        "cut short": good[: len(good) // 2],
        "a picture and a program": good + b"#!/bin/sh\nrm -rf /\n",
        "svg": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
        "postscript": b"%!PS-Adobe\n(/etc/passwd) (r) file\n",
        "noise": bytes(range(256)) * 100,
        "tiff that points at itself": b"II*\0\x08\0\0\0\x01\0\x00\x01\x03\0\x01\0\0\0\x01\0\0\0\x08\0\0\0",
    }


def test_bombs_and_broken_pictures_are_refused_or_drawn_but_never_a_crash(served):
    for name, data in bombs().items():
        begun = time.monotonic()
        as_json = {"prompt": name, "style": [{"data": base64.b64encode(data).decode()}], "num_inference_steps": 1}
        answers = [
            status_of(f"{served.url}/v1/references", data, "image/png"),
            status_of(f"{served.url}/v1/jobs", json.dumps(as_json).encode()),
            status_of(f"{served.url}/v1/styles/import", data, "application/octet-stream"),
        ]
        assert set(answers) <= {201, 202, 422}, (name, answers)
        assert time.monotonic() - begun < 60, name


def test_forms_with_tricks_are_refused_or_read_but_never_a_crash(served):
    boundary = "multipart/form-data; boundary=b"
    disposition = b'--b\r\nContent-Disposition: form-data; name="'
    forms = {
        "a path for a name": (boundary, disposition + b'style"; filename="../../../etc/cron.d/x"\r\n\r\nx\r\n--b--\r\n'),
        "no end": (boundary, disposition + b'prompt"\r\n\r\nx'),
        "no boundary": ("multipart/form-data", b"x"),
        "an endless boundary": (f"multipart/form-data; boundary={'b' * 5000}", b"x"),
        "many parts": (boundary, (disposition + b'x"\r\n\r\n1\r\n') * 5000 + b"--b--\r\n"),
        "not text": (boundary, disposition + b'prompt"\r\n\r\n\xff\xfe\x00\r\n--b--\r\n'),
        "an odd charset": (boundary + "; charset=zip", disposition + b'prompt"\r\n\r\nx\r\n--b--\r\n'),
        "a codec that is none": (boundary + "; charset=hex", disposition + b'prompt"\r\n\r\nx\r\n--b--\r\n'),
        "no name": (boundary, b"--b\r\nContent-Disposition: form-data\r\n\r\nx\r\n--b--\r\n"),
        "a giant header of a part": (boundary, b"--b\r\n" + b"X: " + b"y" * 100_000 + b"\r\n\r\nx\r\n--b--\r\n"),
        "a window of words": (boundary, disposition + b'style_window"\r\n\r\na:b:c\r\n--b--\r\n'),
        "a form that is json": ("application/json", b'{"prompt": "x"}'),
    }
    for name, (kind, body) in forms.items():
        for route in ("jobs", "styles"):
            assert status_of(f"{served.url}/v1/{route}/form", body, kind) in (201, 202, 400, 422), name


def test_bytes_that_are_hardly_http_are_answered_or_dropped(served):
    host = b"Host: 127.0.0.1\r\n"
    tricks = {
        "a giant header": b"GET /health HTTP/1.1\r\n" + host + b"X: " + b"a" * 1_000_000 + b"\r\n\r\n",
        "many headers": b"GET /health HTTP/1.1\r\n" + host + b"".join(b"X-%d: a\r\n" % i for i in range(20_000)) + b"\r\n",
        "a giant address": b"GET /" + b"a" * 500_000 + b" HTTP/1.1\r\n" + host + b"\r\n",
        "up and away": b"GET /v1/jobs/../../../../etc/passwd HTTP/1.1\r\n" + host + b"\r\n",
        "up and away, encoded": b"GET /v1/jobs/%2e%2e%2f%2e%2e%2fetc%2fpasswd HTTP/1.1\r\n" + host + b"\r\n",
        "a nul": b"GET /v1/styles/%00%0a HTTP/1.1\r\n" + host + b"\r\n",
        "not utf-8": b"GET /v1/styles/%ff%fe?x=%ff HTTP/1.1\r\n" + host + b"\r\n",
        "two lengths": b"POST /v1/references HTTP/1.1\r\n" + host + b"Content-Length: 5\r\nContent-Length: 500\r\n\r\nhello",
        "a negative length": b"POST /v1/references HTTP/1.1\r\n" + host + b"Content-Length: -5\r\n\r\nhello",
        "a giant length": b"POST /v1/references HTTP/1.1\r\n" + host + b"Content-Length: 99999999999999999999\r\n\r\nhello",
        "a length in words": b"POST /v1/references HTTP/1.1\r\n" + host + b"Content-Length: \xb2\r\n\r\nhello",
        "broken chunks": b"POST /v1/references HTTP/1.1\r\n"
        + host
        + b"Transfer-Encoding: chunked\r\n\r\nzz\r\nhello\r\n0\r\n\r\n",
        "smuggled": b"POST /v1/references HTTP/1.1\r\n"
        + host
        + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /",
        "cut short": b"POST /v1/jobs HTTP/1.1\r\n" + host + b"Content-Type: application/json\r\nContent-Length: 500\r\n\r\n{",
        "no host": b"GET /health HTTP/1.1\r\n\r\n",
        "another host": b"GET /v1/jobs HTTP/1.1\r\nHost: evil.example\r\n\r\n",
        "a broken host": b"GET /v1/jobs HTTP/1.1\r\nHost: [::1\r\n\r\n",
        "an odd method": b"PROPFIND /v1/jobs HTTP/1.1\r\n" + host + b"\r\n",
        "an upgrade": b"GET /v1/jobs HTTP/1.1\r\n"
        + host
        + b"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: x\r\n\r\n",
        "tls": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200),
        "a proxy's": b"CONNECT example.org:443 HTTP/1.1\r\n" + host + b"\r\n",
        "a page elsewhere": b"GET http://169.254.169.254/latest HTTP/1.1\r\n" + host + b"\r\n",
        "a bad key": b"POST /v1/jobs HTTP/1.1\r\n" + host + b"Idempotency-Key: a b\xff\r\nContent-Type: application/json\r\n"
        b'Content-Length: 15\r\n\r\n{"prompt": "x"}',
    }
    for name, sent in tricks.items():
        answer = raw(served.url, sent)
        assert not answer.startswith(b"HTTP/1.1 5"), (name, answer)
        assert b"200 OK" not in answer or name == "an upgrade", (name, answer)  # which HTTP lets a server ignore
    slow = socket.create_connection((urlsplit(served.url).hostname, urlsplit(served.url).port))
    with slow:
        slow.sendall(b"POST /v1/jobs HTTP/1.1\r\nContent-Le")  # and then nothing: others are served all the same
        assert status_of(f"{served.url}/health") == 200


def test_after_all_that_it_still_draws_and_has_written_nowhere_else(served):
    body = json.dumps({"prompt": "still here", "num_inference_steps": 1}).encode()
    until = time.monotonic() + 120
    while (status := status_of(f"{served.url}/v1/jobs", body)) == 429 and time.monotonic() < until:
        time.sleep(0.5)
    assert status == 202
    with urllib.request.urlopen(f"{served.url}/v1/jobs?limit=1") as answer:
        identity = json.load(answer)["jobs"][0]["id"]
    while time.monotonic() < until:
        with urllib.request.urlopen(f"{served.url}/v1/jobs/{identity}?wait=30") as answer:
            if json.load(answer)["status"] == "done":
                break
    with urllib.request.urlopen(f"{served.url}/v1/jobs/{identity}") as answer:
        assert json.load(answer)["status"] == "done"
    assert status_of(f"{served.url}/ready") == 200
    assert served.noted.read_text() == served.before
    assert [path for path in Path(served.elsewhere).rglob("*") if path.is_file()] == []
    code, log = served.end("terminate"), "".join(served.said)
    assert code == 0 and "Traceback" not in log, log[-3000:]
    assert os.listdir(served.elsewhere) == [] or not any(p.is_file() for p in Path(served.elsewhere).rglob("*"))
