"""Named styles of the service: names in the database, each style's file (style_library.py) in the store."""

import io
import secrets
import time
from dataclasses import replace

from sqlalchemy import delete, select, update
from sqlalchemy.exc import IntegrityError

from deadiff.errors import DEADiffError
from deadiff.service.database import Database
from deadiff.service.store import Store
from deadiff.service.tables import StyleRow
from deadiff.style_library import SavedStyle, clean_name


class NameTakenError(DEADiffError):
    """Another style has that name."""


class NoSuchError(DEADiffError):
    """There is no such job, style or picture."""


class Styles:
    """Create, read, rename, delete. A job keeps the file it was accepted with, whatever becomes of the name."""

    def __init__(self, database: Database, store: Store) -> None:
        self.database, self.store = database, store

    def all(self) -> list[StyleRow]:
        with self.database.read() as session:
            rows = list(session.scalars(select(StyleRow).order_by(StyleRow.name)))
            session.expunge_all()
            return rows

    def get(self, identity: str) -> StyleRow:
        """Raises NoSuchError."""
        return self._one(StyleRow.id == identity, "of that id")

    def named(self, name: str) -> StyleRow:
        """Raises NoSuchError."""
        wanted = clean_name(name)
        return self._one(StyleRow.name == wanted, f"'{wanted}'")

    def add(self, style: SavedStyle) -> StyleRow:
        """Raises NameTakenError."""
        sha256 = self.store.put(style.to_bytes())
        row = StyleRow(id=secrets.token_hex(16), name=style.name, sha256=sha256, model=style.model, created=time.time())
        try:
            with self.database.write() as session:
                session.add(row)
        except IntegrityError as error:
            raise NameTakenError(f"there is a style '{style.name}' already: choose another name, or delete that one") from error
        return row

    def rename(self, identity: str, name: str) -> StyleRow:
        """The name in the file changes too: it is what others get to see. Raises NoSuchError or NameTakenError."""
        style = replace(self.open(self.get(identity).sha256), name=name)
        sha256 = self.store.put(style.to_bytes())
        try:
            with self.database.write() as session:
                change = update(StyleRow).where(StyleRow.id == identity)
                session.execute(change.values(name=style.name, sha256=sha256))
        except IntegrityError as error:
            raise NameTakenError(f"there is a style '{style.name}' already: choose another name, or delete that one") from error
        return self.get(identity)

    def delete(self, identity: str) -> None:
        """Raises NoSuchError."""
        self.get(identity)
        with self.database.write() as session:
            session.execute(delete(StyleRow).where(StyleRow.id == identity))

    def open(self, sha256: str) -> SavedStyle:
        """Raises DataError or ReferenceError where the file was lost or damaged."""
        return SavedStyle.from_bytes(self.store.get(sha256))

    def thumbnail(self, sha256: str) -> bytes:
        buffer = io.BytesIO()
        self.open(sha256).thumbnail.save(buffer, "PNG")
        return buffer.getvalue()

    def _one(self, which: object, what: str) -> StyleRow:
        with self.database.read() as session:
            row = session.scalar(select(StyleRow).where(which))  # pyright: ignore[reportArgumentType]
            if row is None:
                raise NoSuchError(f"there is no style {what}: GET /v1/styles lists those saved")
            session.expunge(row)
            return row
