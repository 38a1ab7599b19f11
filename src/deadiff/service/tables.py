"""The state of the service as tables: jobs, their pictures, which files they use, named styles. The files are in store.py."""

from sqlalchemy import BigInteger, Boolean, Double, ForeignKey, Index, Integer, String, Text, UniqueConstraint
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

QUEUED, RUNNING, DONE, FAILED, CANCELLED = "queued", "running", "done", "failed", "cancelled"
FINAL = (DONE, FAILED, CANCELLED)
BigId = BigInteger().with_variant(Integer, "sqlite")  # SQLite counts up only what is called INTEGER


class Base(DeclarativeBase):
    """Times are seconds since 1970, UTC."""


class JobRow(Base):
    """One accepted job. `status` moves queued -> running -> done, failed or cancelled; running -> queued if its process ends."""

    __tablename__ = "jobs"

    seq: Mapped[int] = mapped_column(BigId, primary_key=True, autoincrement=True)  # the order of the queue
    id: Mapped[str] = mapped_column(String(32), unique=True)
    status: Mapped[str] = mapped_column(String(10))
    request: Mapped[str] = mapped_column(Text)  # JSON, see intake.py: all that is needed to draw
    kind: Mapped[str] = mapped_column(String(64))  # jobs of one kind can be drawn together
    images: Mapped[int] = mapped_column(Integer)
    created: Mapped[float] = mapped_column(Double)
    started: Mapped[float | None] = mapped_column(Double)
    finished: Mapped[float | None] = mapped_column(Double)
    attempts: Mapped[int] = mapped_column(Integer, default=0)  # times it was begun and not given back in good order
    worker: Mapped[str | None] = mapped_column(String(32))  # the process that draws it
    lease_until: Mapped[float | None] = mapped_column(Double)
    error: Mapped[str | None] = mapped_column(Text)
    idempotency_key: Mapped[str | None] = mapped_column(String(200), unique=True)
    request_hash: Mapped[str] = mapped_column(String(64))

    __table_args__ = (Index("jobs_by_status", "status", "seq"), Index("jobs_by_finish", "finished"))


class PictureRow(Base):
    """One finished picture. A job has each index once."""

    __tablename__ = "pictures"

    id: Mapped[int] = mapped_column(BigId, primary_key=True, autoincrement=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"))
    position: Mapped[int] = mapped_column(Integer)
    seed: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str] = mapped_column(String(64), index=True)
    bytes: Mapped[int] = mapped_column(Integer)
    width: Mapped[int] = mapped_column(Integer)
    height: Mapped[int] = mapped_column(Integer)
    flagged: Mapped[bool] = mapped_column(Boolean)

    __table_args__ = (UniqueConstraint("job_id", "position", name="pictures_once"),)


class UseRow(Base):
    """A reference, photo or style file that a job draws with."""

    __tablename__ = "uses"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    sha256: Mapped[str] = mapped_column(String(64), primary_key=True, index=True)


class StyleRow(Base):
    """A named style; its tokens and thumbnail are in the file of that sha256."""

    __tablename__ = "styles"

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    name: Mapped[str] = mapped_column(String(80), unique=True)
    sha256: Mapped[str] = mapped_column(String(64), index=True)
    model: Mapped[str] = mapped_column(String(64))
    created: Mapped[float] = mapped_column(Double)
