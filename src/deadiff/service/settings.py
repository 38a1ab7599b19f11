"""Every dial of the service, with its unit, checked once before anything is opened."""

import ipaddress
import math
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from deadiff.errors import ConfigError

LEAST_TOKEN = 16  # characters of a bearer token: shorter ones can be guessed
DIALECTS = ("sqlite", "postgresql")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What holds for the whole life of one service."""

    folder: Path  # everything the service writes is in here
    database: str | None = None  # a URL; None: deadiff.sqlite in the folder
    host: str = "127.0.0.1"
    port: int = 8000  # 0: any free one
    token: str | None = None  # what callers send as "Authorization: Bearer ..."; needed beyond loopback
    max_queue: int = 256  # pictures accepted and not yet drawn; above it, 429
    max_batch: int = 8  # pictures drawn in one forward pass
    batch_wait: float = 0.02  # seconds an idle service waits for more of the same kind
    max_bytes: int = 16 * 2**20  # of a request's body
    max_bytes_in_flight: int = 256 * 2**20  # of all bodies being read at once; above it, 503
    max_pixels: int = 16_000_000  # of a reference or photo, decoded
    max_drawn_pixels: int = 1024 * 1024  # of a picture to draw
    max_prompt: int = 1000  # characters
    max_images: int = 16  # pictures of one job
    max_steps: int = 100
    max_references: int = 8  # of one role
    max_streams: int = 256  # event streams and waiting callers at once; above it, 503
    keep_hours: float | None = None  # how long finished jobs and their pictures are kept; None: until they are deleted
    keep_uploads_hours: float = 24.0  # references that no job and no style uses
    max_attempts: int = 3  # times a job may be drawn when the process dies each time
    lease: float = 60.0  # seconds after which another process takes over the jobs of one that died
    grace: float = 10.0  # seconds that a batch may still take when the service is told to stop

    def __post_init__(self) -> None:
        for name in ("max_queue", "max_batch", "max_bytes", "max_bytes_in_flight", "max_pixels", "max_drawn_pixels"):
            _at_least(name, getattr(self, name), 1)
        for name in ("max_prompt", "max_images", "max_steps", "max_references", "max_streams", "max_attempts"):
            _at_least(name, getattr(self, name), 1)
        for name in ("batch_wait", "grace", "keep_uploads_hours"):
            _at_least(name, getattr(self, name), 0)
        _at_least("lease", self.lease, 1)
        if self.keep_hours is not None:
            _at_least("keep_hours", self.keep_hours, 0)
        if not 0 <= self.port <= 65535:
            raise ConfigError(f"port is {self.port}: expected 1 to 65535, or 0 for any free one")
        if self.token is not None:
            check_token(self.token)
        if self.token is None and not is_loopback(self.host):
            raise ConfigError(
                f"refused to listen on '{self.host}' without a token, where others can reach it: put one into the environment "
                "variable DEADIFF_TOKEN or a file for --token-file, or listen on 127.0.0.1"
            )
        dialect = self.database_url.split(":")[0].split("+")[0]
        if dialect not in DIALECTS:
            raise ConfigError(
                f"the database is '{without_password(self.database_url)}': expected sqlite:///FILE or postgresql://USER@HOST/NAME"
            )

    @property
    def database_url(self) -> str:
        """For SQLAlchemy, with the driver that we bring for PostgreSQL."""
        url = self.database or f"sqlite:///{self.folder / 'deadiff.sqlite'}"
        for prefix in ("postgresql://", "postgres://"):
            if url.startswith(prefix):
                return "postgresql+psycopg://" + url.removeprefix(prefix)
        return url

    @property
    def alone(self) -> bool:
        """Whether no other process can share the database: SQLite, whose folder is locked."""
        return self.database_url.startswith("sqlite")


def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def check_token(token: str) -> None:
    if len(token) < LEAST_TOKEN or not token.isascii() or not token.isprintable() or " " in token:
        raise ConfigError(
            f"the token has {len(token)} characters, or some that a header cannot carry: expected at least {LEAST_TOKEN} "
            "letters and digits, as from: openssl rand -hex 32"
        )


def without_password(url: str) -> str:
    """A database URL for messages and logs."""
    try:
        password = urlsplit(url).password
    except ValueError:
        return url.split("@")[-1]
    return url.replace(f":{password}@", ":***@", 1) if password else url


def _at_least(name: str, value: float, least: float) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or value < least:
        raise ConfigError(f"{name} is {value!r}: expected a number of at least {least:g}")
