"""Everything one running service consists of, opened and closed in one place."""

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from deadiff.errors import ConfigError
from deadiff.references import one_line
from deadiff.service.database import Database, open_database
from deadiff.service.drawing import Drawing
from deadiff.service.events import Events
from deadiff.service.intake import Intake
from deadiff.service.metrics import Metrics
from deadiff.service.queue import Queue
from deadiff.service.settings import Settings
from deadiff.service.store import HOUR, Store
from deadiff.service.styles import Styles
from deadiff.service.worker import Worker
from deadiff.style_library import SUFFIX
from deadiff.stylizer import Stylizer
from deadiff.writing import prepare_folder

try:
    import fcntl
except ImportError:  # Windows has no such locks
    fcntl = None


@dataclass(frozen=True, kw_only=True)
class Service:
    """The parts, wired together."""

    settings: Settings
    stylizer: Stylizer
    database: Database
    queue: Queue
    worker: Worker
    events: Events
    metrics: Metrics
    intake: Intake
    styles: Styles
    pictures: Store

    def trouble(self) -> str | None:
        """Why it could not draw a job now, in one line."""
        if not self.worker.alive:
            return "it is stopping"
        try:
            with self.database.read() as session:
                session.execute(text("SELECT 1"))
        except SQLAlchemyError as error:
            return f"the database does not answer: {one_line(error)}"
        return self.worker.trouble


@contextlib.contextmanager
def open_service(settings: Settings, stylizer: Stylizer) -> Iterator[Service]:
    """Draws what is in the queue until the block is left. Raises ConfigError (folder in use, database unusable)."""
    folder = prepare_folder(settings.folder)
    with _locked(folder, settings.alone), contextlib.closing(open_database(settings.database_url)) as database:
        metrics, events = Metrics(), Events()
        pictures, references = Store(folder / "pictures", ".png"), Store(folder / "references")
        styles = Styles(database, Store(folder / "styles", SUFFIX))
        queue = Queue(database, limit=settings.max_queue, lease=settings.lease, max_attempts=settings.max_attempts)

        def sweep() -> None:
            """Finished jobs too old to keep; then the files that nothing names."""
            if settings.keep_hours is not None:
                while queue.forget_finished(time.time() - settings.keep_hours * HOUR):
                    pass
            pictures.sweep(queue.pictures_in_use, older=HOUR)
            references.sweep(queue.files_in_use, older=settings.keep_uploads_hours * HOUR)
            styles.store.sweep(queue.files_in_use, older=HOUR)

        drawing = Drawing(stylizer, references, styles, pictures, metrics)
        worker = Worker(settings, queue, drawing, events, metrics, sweep)
        worker.start()
        try:
            yield Service(
                settings=settings,
                stylizer=stylizer,
                database=database,
                queue=queue,
                worker=worker,
                events=events,
                metrics=metrics,
                intake=Intake(settings, stylizer, references, styles),
                styles=styles,
                pictures=pictures,
            )
        finally:
            events.stop()
            worker.stop()


@contextlib.contextmanager
def _locked(folder: Path, alone: bool) -> Iterator[None]:
    """One process for one folder with SQLite. The lock goes with the process, however it ends."""
    if not alone or fcntl is None:
        yield
        return
    with open(folder / "service.lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ConfigError(
                f"another service uses the folder '{folder}': stop it, choose another with --data, or share a PostgreSQL database"
            ) from None
        yield
