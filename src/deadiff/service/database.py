"""The database: SQLite in the service's folder, or PostgreSQL by its URL; brought up to date by the packaged migrations."""

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.exc import ArgumentError, DBAPIError
from sqlalchemy.orm import Session

from deadiff.errors import ConfigError, MissingExtraError
from deadiff.references import one_line
from deadiff.service.settings import without_password

MIGRATIONS = Path(__file__).parent / "migrations"
_MIGRATION_LOCK = 20240306951  # any number: of the advisory lock that lets one process migrate at a time
_POOL: dict[str, Any] = {"pool_size": 16, "max_overflow": 32}  # more than the threads that answer requests


class Database:
    """Transactions. `write()` is exclusive from its start on SQLite, so that what it reads stays true until it commits."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._reading = engine.execution_options(reading=True)

    @contextlib.contextmanager
    def read(self) -> Iterator[Session]:
        with Session(self._reading) as session:
            yield session

    @contextlib.contextmanager
    def write(self) -> Iterator[Session]:
        """Commits at the end, or rolls back if an error leaves the block."""
        with Session(self.engine, expire_on_commit=False) as session, session.begin():
            yield session

    def close(self) -> None:
        self.engine.dispose()


def open_database(url: str) -> Database:
    """Connect, migrate to the newest tables. Raises ConfigError or MissingExtraError, in one line without the password."""
    shown = without_password(url)
    try:
        engine = _sqlite(url) if url.startswith("sqlite") else create_engine(url, pool_pre_ping=True, **_POOL)
        try:
            with engine.begin() as connection:
                migrate(connection)
        except BaseException:
            engine.dispose()
            raise
        return Database(engine)
    except ModuleNotFoundError as error:
        raise MissingExtraError(f"PostgreSQL needs {error.name}: pip install 'deadiff[postgres]'") from error
    except ArgumentError as error:
        raise ConfigError(f"the database URL '{shown}' cannot be read: expected postgresql://USER:PASSWORD@HOST/NAME") from error
    except DBAPIError as error:
        raise ConfigError(f"the database '{shown}' cannot be used: {one_line(error.orig or error)}") from error
    except command.util.CommandError as error:
        raise ConfigError(
            f"the database '{shown}' is not one of this version of deadiff: {one_line(error)}; use the newer version, or another"
        ) from error


def migrate(connection: Connection, revision: str = "head") -> None:
    """Upgrade over an open connection, in its transaction; of several processes that start at once, one does."""
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_MIGRATION_LOCK})")
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    command.upgrade(config, revision)


def _sqlite(url: str) -> Engine:
    engine = create_engine(url, connect_args={"timeout": 30, "check_same_thread": False}, **_POOL)

    @event.listens_for(engine, "connect")
    def prepare(connection: Any, _: Any) -> None:
        assert isinstance(connection, sqlite3.Connection)
        connection.isolation_level = None  # we say BEGIN ourselves, below
        connection.execute("PRAGMA journal_mode=WAL")  # readers do not wait for the writer
        connection.execute("PRAGMA synchronous=FULL")  # an accepted job survives a power cut
        connection.execute("PRAGMA foreign_keys=ON")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN" if connection.get_execution_options().get("reading") else "BEGIN IMMEDIATE")

    return engine
