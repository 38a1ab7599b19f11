"""Counters for Prometheus, in a registry of this service's own."""

import time
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900, 3600)


class Metrics:
    """Names follow Prometheus's conventions: base units, _total for counters."""

    def __init__(self) -> None:
        registry = CollectorRegistry()
        ProcessCollector(registry=registry)  # memory, open files, CPU
        self.registry = registry
        self.jobs = Counter("deadiff_jobs", "Jobs by what became of them.", ["status"], registry=registry)
        self.refused = Counter("deadiff_refused", "Requests turned away, by reason.", ["reason"], registry=registry)
        self.pictures = Counter("deadiff_pictures", "Pictures drawn.", registry=registry)
        self.waiting = Gauge("deadiff_queue_pictures", "Pictures accepted and not finished.", ["status"], registry=registry)
        self.listening = Gauge("deadiff_listeners", "Event streams and waiting callers.", registry=registry)
        self.batch = Histogram(
            "deadiff_batch_pictures", "Pictures drawn in one batch.", buckets=(1, 2, 4, 8, 16, 32), registry=registry
        )
        self.batch_seconds = Histogram("deadiff_batch_seconds", "Time to draw a batch.", buckets=_SECONDS, registry=registry)
        self.job_seconds = Histogram("deadiff_job_seconds", "From accepted to done.", buckets=_SECONDS, registry=registry)
        self.tokens = Counter("deadiff_tokens", "References by whether their tokens were known.", ["cached"], registry=registry)
        self.requests = Counter("deadiff_http_requests", "HTTP requests.", ["method", "route", "status"], registry=registry)
        self.request_seconds = Histogram(
            "deadiff_http_request_seconds",
            "Time to answer, event streams left out.",
            ["route"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._rate = 1.0  # pictures a second, lately

    def text(self) -> bytes:
        return generate_latest(self.registry)

    def batch_drawn(self, pictures: int, seconds: float) -> None:
        self.pictures.inc(pictures)
        self.batch.observe(pictures)
        self.batch_seconds.observe(seconds)
        self._rate = 0.7 * self._rate + 0.3 * pictures / max(seconds, 1e-3)

    def seconds_for(self, pictures: int) -> float:
        """How long that many pictures take, judged by the last batches."""
        return pictures / max(self._rate, 1e-6)


class CountRequests:
    """ASGI: counts and times what goes through, by the route's pattern and never by the path, which callers choose."""

    METHODS = ("GET", "POST", "PATCH", "DELETE", "PUT", "HEAD", "OPTIONS")

    def __init__(self, app: Any, metrics: Metrics) -> None:
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begun, seen = time.perf_counter(), {"status": 500, "stream": False}

        async def watch(message: Any) -> None:
            if message["type"] == "http.response.start":
                seen["status"] = message["status"]
                seen["stream"] = any(k.lower() == b"content-type" and b"event-stream" in v for k, v in message["headers"])
            await send(message)

        try:
            await self.app(scope, receive, watch)
        finally:
            route = getattr(scope.get("route"), "path", "none")
            method = scope["method"] if scope["method"] in self.METHODS else "other"
            self.metrics.requests.labels(method, route, str(seen["status"])).inc()
            if not seen["stream"]:
                self.metrics.request_seconds.labels(route).observe(time.perf_counter() - begun)
