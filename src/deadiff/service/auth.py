"""What is decided before a route runs: who may come in, and how much may be sent."""

import hmac
import json
from typing import Any
from urllib.parse import urlsplit

from deadiff.service.metrics import Metrics
from deadiff.service.settings import is_loopback

OPEN_PATHS = ("/health", "/ready")  # for load balancers, which carry no token; they say nothing but yes or no


class Guard:
    """ASGI: a bearer token where one is set; without one, only what comes from this machine and from no web page elsewhere.

    The second keeps a page in the user's browser from reaching the service by way of "localhost" (cross-site requests, DNS
    rebinding): browsers then name another Origin or Host.
    """

    def __init__(self, app: Any, token: str | None, metrics: Metrics) -> None:
        self.app, self.token, self.metrics = app, None if token is None else token.encode(), metrics

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        refusal = None if scope["path"] in OPEN_PATHS else self._refusal(scope)
        if refusal is None and scope["type"] == "http":
            await self.app(scope, receive, send)
        elif scope["type"] == "http":
            status, error, headers = refusal or (400, "there are no websockets here", {})
            self.metrics.refused.labels("token" if status == 401 else "origin").inc()
            await answer(send, status, error, headers)
        else:
            await send({"type": "websocket.close", "code": 1008})

    def _refusal(self, scope: Any) -> tuple[int, str, dict[str, str]] | None:
        headers = {name.lower(): value for name, value in scope["headers"]}
        if self.token is not None:
            kind, _, given = headers.get(b"authorization", b"").partition(b" ")
            if kind.lower() == b"bearer" and hmac.compare_digest(given.strip(), self.token):
                return None
            return 401, "a token is needed: send the header Authorization: Bearer TOKEN", {"www-authenticate": "Bearer"}
        for name in (b"host", b"origin"):
            value = headers.get(name, b"").decode("latin-1")
            if value and not _is_here(value):
                return 403, f"without a token the service answers this machine only: the request's {name.decode()} is another", {}
        return None


class LimitBodies:
    """ASGI: no body above `most` bytes, whatever its headers claim, and no more than `in_flight` bytes of all at once."""

    def __init__(self, app: Any, most: int, in_flight: int, metrics: Metrics) -> None:
        self.app, self.most, self.left, self.metrics = app, most, max(in_flight, most), metrics

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD", "OPTIONS"):
            await self.app(scope, receive, send)
            return
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        if len(declared) > 15 or int(declared if declared.isdigit() else 0) > self.most:
            await self._too_large(send)
            return
        body, reserved = bytearray(), 0
        try:
            while True:  # the whole body, before any route runs
                message = await receive()
                if message["type"] == "http.disconnect":
                    return
                chunk = message.get("body", b"")
                if len(body) + len(chunk) > self.most:
                    await self._too_large(send)
                    return
                if len(chunk) > self.left:
                    self.metrics.refused.labels("uploads").inc()
                    await answer(send, 503, "too much is being uploaded at once: try again in a moment", {"retry-after": "2"})
                    return
                self.left -= len(chunk)
                reserved += len(chunk)
                body += chunk
                if not message.get("more_body", False):
                    break
            whole = [{"type": "http.request", "body": bytes(body), "more_body": False}]
            del body

            async def once() -> Any:
                return whole.pop() if whole else await receive()

            await self.app(scope, once, send)
        finally:
            self.left += reserved

    async def _too_large(self, send: Any) -> None:
        self.metrics.refused.labels("bytes").inc()
        await answer(send, 413, f"the request is too large: expected at most {self.most / 2**20:g} MiB", {"connection": "close"})


async def answer(send: Any, status: int, error: str, headers: dict[str, str]) -> None:
    """A JSON error in one line, as the routes give it."""
    body = json.dumps({"error": error}).encode()
    named = {"content-type": "application/json", "content-length": str(len(body)), **headers}
    raw = [(name.encode(), value.encode()) for name, value in named.items()]
    await send({"type": "http.response.start", "status": status, "headers": raw})
    await send({"type": "http.response.body", "body": body})


def _is_here(value: str) -> bool:
    """Whether a Host or Origin header names this machine's loopback."""
    try:
        host = urlsplit(value if "//" in value else f"//{value}").hostname
    except ValueError:
        return False
    return host is not None and is_loopback(host)
