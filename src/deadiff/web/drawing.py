"""One request drawn in a thread of its own and told as events: how far, how it looks so far, each picture as it is finished."""

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from deadiff.errors import DEADiffError
from deadiff.references import one_line

log = logging.getLogger(__name__)

LEAST_GAP = 0.15  # seconds between previews
PREVIEW_SHARE = 8  # a preview may take one part in so many of the time: large VAEs are asked more rarely


@dataclass(frozen=True, kw_only=True)
class Event:
    """What is known now; `ended` is the last one's."""

    note: str = ""  # one line for the page
    done: int = 0  # steps, of all pictures together
    total: int = 0
    looks: Mapping[int, Image.Image] = field(default_factory=dict)  # index -> the picture so far, or finished
    result: Any = None  # what the work returned
    error: str | None = None
    ended: bool = False
    cancelled: bool = False


class CancelledError(Exception):
    """Raised inside the drawing, at the next step after somebody asked for it."""


class Watcher:
    """What the work calls while it draws; it raises CancelledError at the first step after `cancel` is set."""

    def __init__(self, cancel: threading.Event, tell: Callable[[Event], None]) -> None:
        self._cancel, self._tell = cancel, tell
        self._looks: dict[int, Image.Image] = {}
        self._done = self._total = 0
        self._last, self._cost = 0.0, 0.0

    def note(self, text: str) -> None:
        self.stop_if_asked()
        self._send(text)

    def stop_if_asked(self) -> None:
        if self._cancel.is_set():
            raise CancelledError

    def progress(self, done: int, total: int) -> None:
        self._done, self._total = done, total
        self._send()
        self.stop_if_asked()

    def preview(self, indices: list[int], pictures: Callable[[], list[Image.Image]]) -> None:
        now = time.monotonic()
        if now - self._last < max(LEAST_GAP, PREVIEW_SHARE * self._cost):
            return
        self._looks.update(zip(indices, pictures(), strict=True))
        self._last = time.monotonic()
        self._cost = self._last - now
        self._send()

    def finished(self, index: int, picture: Image.Image) -> None:
        self._looks[index] = picture
        self._send()

    def _send(self, note: str = "") -> None:
        self._tell(Event(note=note, done=self._done, total=self._total, looks=dict(self._looks)))

    @property
    def looks(self) -> dict[int, Image.Image]:
        return dict(self._looks)


def told(work: Callable[[Watcher], Any], cancel: threading.Event, turn: threading.Lock) -> Iterator[Event]:
    """Run `work` when its turn comes; events until one has `ended`. If nobody listens any more it still goes on to its end.

    So a closed page loses no picture: `work` saves them itself. A mistake of the user ends in Event.error, as one line.
    """
    events: queue.SimpleQueue[Event] = queue.SimpleQueue()

    def run() -> None:
        watcher = Watcher(cancel, events.put)
        try:
            while not turn.acquire(timeout=0.2):
                watcher.note("Waiting for another drawing to finish")
            try:
                watcher.stop_if_asked()
                result = work(watcher)
            finally:
                turn.release()
            events.put(Event(ended=True, result=result, looks=watcher.looks))
        except CancelledError:
            events.put(Event(ended=True, cancelled=True, looks=watcher.looks))
        except DEADiffError as error:
            events.put(Event(ended=True, error=" ".join(str(error).split())))
        except MemoryError:
            events.put(Event(ended=True, error="out of memory: ask for fewer pictures at once"))
        except Exception as error:  # a bug, or a model that does not fit: the page says so, the terminal says where
            log.exception("drawing failed")
            events.put(Event(ended=True, error=f"this went wrong inside: {one_line(error)} (the terminal says more)"))

    threading.Thread(target=run, name="deadiff-drawing", daemon=True).start()
    event = Event()
    while not event.ended:
        event = events.get()
        while not event.ended and not events.empty():  # only the latest matters to a reader that is behind
            event = events.get()
        yield event
