"""A real PostgreSQL for tests, from the machine's own binaries, in a folder of its own; gone afterwards."""

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_PLACES = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)  # where Debian puts them


def binary(name: str) -> str | None:
    return shutil.which(name) or next((str(p / name) for p in _PLACES if (p / name).is_file()), None)


def why_not() -> str | None:
    """Why there can be no PostgreSQL here, or None."""
    if binary("initdb") is None or binary("postgres") is None:
        return "there is no PostgreSQL on this machine: apt install postgresql"
    if os.geteuid() == 0 and not _user():
        return "PostgreSQL does not run as root, and there is no user postgres"
    return None


@contextmanager
def postgres() -> Iterator[str]:
    """Its URL, over a socket in its folder: no port is taken."""
    who = {"user": "postgres", "group": "postgres"} if os.geteuid() == 0 else {}
    folder = Path(tempfile.mkdtemp(prefix="deadiff-pg-"))  # not below pytest's folder, which only root may enter
    server = None
    try:
        if who:
            shutil.chown(folder, **who)
        made = [binary("initdb"), "-D", folder / "data", "-U", "deadiff", "--auth=trust", "--encoding=UTF8", "--no-sync"]
        subprocess.run(made, check=True, capture_output=True, cwd=folder, **who)
        options = ["-c", "listen_addresses=", "-c", "fsync=off", "-k", str(folder)]
        with open(folder / "log", "w") as log:
            server = subprocess.Popen(
                [binary("postgres"), "-D", folder / "data", *options], stderr=log, stdout=log, cwd=folder, **who
            )
        url = f"postgresql://deadiff@/postgres?host={folder}"
        _wait(url, folder / "log")
        yield url
    finally:
        if server is not None:
            server.terminate()
            server.wait(30)
        shutil.rmtree(folder, ignore_errors=True)


def _wait(url: str, log: Path) -> None:
    import psycopg

    for _ in range(300):
        try:
            psycopg.connect(url).close()
            return
        except psycopg.OperationalError:
            time.sleep(0.1)
    raise AssertionError(f"PostgreSQL did not start: {log.read_text()[-2000:]}")


def _user() -> bool:
    import pwd

    try:
        pwd.getpwnam("postgres")
        return True
    except KeyError:
        return False
