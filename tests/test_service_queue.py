"""The queue's promises on SQLite and on a real PostgreSQL: the same tables, no job lost, none twice, whoever dies."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import func, select, text

from deadiff.errors import ConfigError
from deadiff.loading import load
from deadiff.service.database import Database, migrate, open_database
from deadiff.service.queue import Drawn, KeyReusedError, NewJob, Queue, QueueFullError
from deadiff.service.settings import Settings
from deadiff.service.tables import Base, JobRow, PictureRow
from postgres import postgres, why_not
from serving import reference, serving, wait_for
from tiny import tiny_model_folder


@pytest.fixture(scope="module")
def postgres_url():
    with postgres() as url:
        yield url


needs_postgres = pytest.param("postgres", marks=pytest.mark.skipif(why_not() is not None, reason=str(why_not())))


@pytest.fixture(params=["sqlite", needs_postgres])
def url(request, tmp_path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'q.sqlite'}"
    given = Settings(folder=tmp_path, database=request.getfixturevalue("postgres_url")).database_url
    database = open_database(given)
    with database.write() as session:
        for table in reversed(Base.metadata.sorted_tables):
            session.execute(table.delete())
    database.close()
    return given


@pytest.fixture
def database(url):
    made = open_database(url)
    yield made
    made.close()


def queue(database: Database, **changes) -> Queue:
    return Queue(database, **{"limit": 100, "lease": 60.0, "max_attempts": 3, **changes})


def job(kind: str = "a", images: int = 1, key: str | None = None, request: str = "{}") -> NewJob:
    return NewJob(
        request=request, kind=kind, images=images, uses=frozenset({"f" * 64}), request_hash=request[:64], idempotency_key=key
    )


def drawn(position: int = 0) -> Drawn:
    return Drawn(position=position, seed=2**63 - 1, sha256="0" * 64, bytes=1, width=1, height=1, flagged=False)


def test_the_migrations_make_the_tables_that_the_code_uses(database):
    with database.engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), Base.metadata) == []


def test_migrating_again_changes_nothing_and_back_leaves_nothing(database, url):
    identity, _ = queue(database).accept(job())
    open_database(url).close()
    assert queue(database).get(identity) is not None
    with database.engine.begin() as connection:
        from alembic import command
        from alembic.config import Config

        from deadiff.service.database import MIGRATIONS

        config = Config()
        config.set_main_option("script_location", str(MIGRATIONS))
        config.attributes["connection"] = connection
        command.downgrade(config, "base")
    with database.engine.begin() as connection:
        migrate(connection)
        assert connection.execute(select(func.count()).select_from(JobRow)).scalar() == 0


def test_a_database_of_a_newer_version_is_refused_in_one_line(database, url):
    with database.engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    try:
        with pytest.raises(ConfigError, match="not one of this version") as caught:
            open_database(url)
        assert "\n" not in str(caught.value)
    finally:
        with database.engine.begin() as connection:
            connection.execute(text("UPDATE alembic_version SET version_num = '0001'"))


def test_jobs_of_one_kind_are_claimed_together_oldest_first(database):
    q = queue(database)
    ids = [q.accept(job(kind, images))[0] for kind, images in (("a", 1), ("b", 1), ("a", 2), ("a", 9), ("a", 1))]
    assert [row.id for row in q.claim(4)] == [ids[0], ids[2], ids[4]]  # the one of nine pictures does not fit beside them
    assert [row.id for row in q.claim(4)] == [ids[1]] and [row.id for row in q.claim(4)] == [ids[3]] and q.claim(4) == []


def test_many_workers_never_claim_the_same_job(database):
    ids = {queue(database).accept(job())[0] for _ in range(60)}
    taken: list[str] = []

    def work() -> None:
        mine = queue(database)
        while rows := mine.claim(3):
            taken.extend(row.id for row in rows)
            for row in rows:
                assert mine.finish(row.id, [drawn()])

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(taken) == sorted(ids)
    with database.read() as session:
        assert session.scalar(select(func.count()).select_from(PictureRow)) == 60


def test_the_bound_is_exact_under_a_rush(database):
    q = queue(database, limit=10)

    def accept(_: int) -> bool:
        try:
            return q.accept(job())[1]
        except QueueFullError:
            return False

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(accept, range(40))) == 10
    assert q.waiting() == {"queued": 10, "running": 0}


def test_one_idempotency_key_is_one_job_under_a_rush(database):
    q = queue(database)
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: q.accept(job(key="k")), range(16)))
    assert len({identity for identity, _ in answers}) == 1 and sum(new for _, new in answers) == 1
    with pytest.raises(KeyReusedError):
        q.accept(job(key="k", request="{1}"))


def test_a_job_is_finished_once_and_only_by_who_holds_it(database):
    dead, alive = queue(database, lease=0.0), queue(database)
    identity, _ = dead.accept(job())
    dead.claim(1)
    time.sleep(0.01)
    assert alive.recover(everything=False) == 1  # its lease has run out
    assert [row.id for row in alive.claim(1)] == [identity]
    assert not dead.finish(identity, [drawn()]) and not dead.fail(identity, "late") and dead.renew() == set()
    assert alive.renew() == {identity} and alive.finish(identity, [drawn()]) and not alive.finish(identity, [drawn()])
    row, pictures, _ = alive.get(identity)
    assert row.status == "done" and len(pictures) == 1 and pictures[0].seed == 2**63 - 1


def test_a_living_worker_keeps_its_jobs(database):
    alive, other = queue(database), queue(database)
    alive.accept(job())
    alive.claim(1)
    assert other.recover(everything=False) == 0
    assert other.recover(everything=True) == 1  # SQLite: after a start no other process can be alive


def test_a_job_that_kills_its_process_is_drawn_alone_and_given_up_in_the_end(database):
    first = queue(database)
    poison, _ = first.accept(job())
    good, _ = first.accept(job())
    first.claim(8)
    for attempt in range(2):
        again = queue(database)
        again.recover(everything=True)
        rows = again.claim(8)
        assert [row.id for row in rows] == [poison], attempt
    last = queue(database)
    last.recover(everything=True)
    assert [row.id for row in last.claim(8)] == [good]
    row, _, _ = last.get(poison)
    assert row.status == "failed" and "ended 3 times" in row.error


def test_a_job_given_back_in_good_order_does_not_count_as_an_attempt(database):
    q = queue(database)
    identity, _ = q.accept(job())
    for _ in range(5):
        assert [row.attempts for row in q.claim(1)] == [1]
        assert q.give_back() == 1
    assert q.cancel(identity) and not q.cancel(identity) and q.claim(1) == []


def test_a_whole_service_draws_over_this_database(url, tmp_path):
    stylizer = load(tiny_model_folder(tmp_path / "model"), device="cpu")
    with serving(stylizer, tmp_path / "data", database=url) as (client, _):
        client.post("/v1/styles", json={"name": "né 🎨", "style": [reference(1)]})
        asked = {"prompt": "a robot 🤖\u0000", "style": [{"style": "né 🎨"}], "num_images": 2, "num_inference_steps": 1}
        done = wait_for(client, client.post("/v1/jobs", json=asked).json())
        assert done["status"] == "done" and len(done["pictures"]) == 2 and done["request"]["prompt"] == "a robot 🤖\u0000"
        assert client.get(done["pictures"][1]["url"]).status_code == 200
        assert client.delete(f"/v1/jobs/{done['id']}").status_code == 204
        assert client.post("/v1/styles", json={"name": "né 🎨", "style": [reference(2)]}).status_code == 409


def test_a_database_that_is_not_there_is_one_line_without_the_password(tmp_path):
    given = Settings(folder=tmp_path, database="postgresql://me:secret@127.0.0.1:1/none?connect_timeout=2").database_url
    with pytest.raises(ConfigError, match="cannot be used") as caught:
        open_database(given)
    assert "secret" not in str(caught.value) and "\n" not in str(caught.value)
