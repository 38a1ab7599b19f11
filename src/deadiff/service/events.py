"""What happens to jobs while they are drawn, told to those who wait for it. Worker threads publish, coroutines listen."""

import asyncio
import contextlib
import threading
from collections import defaultdict
from collections.abc import Iterator


class Events:
    """Wakes listeners; what they then read is the database, and `progress` for what is too quick for it."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # stop() is called by a signal, in the middle of anything the main thread does
        self._loop: asyncio.AbstractEventLoop | None = None
        self._listeners: dict[str, set[asyncio.Event]] = defaultdict(set)
        self._progress: dict[str, float] = {}
        self.listening = 0  # at this moment
        self.stopping = False

    def bind(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop

    def progress(self, job: str) -> float:
        """From 0 to 1, of a job being drawn in this process."""
        return self._progress.get(job, 0.0)

    def publish(self, job: str, progress: float | None = None) -> None:
        """From any thread. progress None: the job is over, or back in the queue."""
        with self._lock:
            if progress is None:
                self._progress.pop(job, None)
            else:
                self._progress[job] = progress
            waiting = list(self._listeners.get(job, ()))
        self._wake(waiting)

    def stop(self) -> None:
        """Let everybody who waits go home."""
        self.stopping = True
        with self._lock:
            waiting = [event for events in self._listeners.values() for event in events]
        self._wake(waiting)

    @contextlib.contextmanager
    def listen(self, job: str) -> Iterator[asyncio.Event]:
        """An event that is set whenever something happened to the job; the listener clears it."""
        event = asyncio.Event()
        with self._lock:
            self._listeners[job].add(event)
            self.listening += 1
        try:
            yield event
        finally:
            with self._lock:
                self.listening -= 1
                self._listeners[job].discard(event)
                if not self._listeners[job]:
                    del self._listeners[job]

    def _wake(self, waiting: list[asyncio.Event]) -> None:
        if not waiting or self._loop is None:
            return
        with contextlib.suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(lambda: [event.set() for event in waiting])
