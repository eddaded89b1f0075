"""A database that cannot be reached, breaks off, is damaged or is full."""

from pathlib import Path

import pytest
from psycopg import Connection
from psycopg.pq import TransactionStatus
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from benchmarks.harness.specs import a_spec
from replaceme_core.errors import DatabaseFull, DatabaseUnreachable
from replaceme_core.jobs.migrate import upgrade
from replaceme_core.jobs.repository import Jobs
from replaceme_core.jobs.session import Database
from replaceme_core.jobs.states import JobStatus
from tests.fixtures.jobs.ledger import Ledger, claim_job


def test_an_unreachable_server() -> None:
    database = Database("postgresql+psycopg://someone:secret@127.0.0.1:1/nothing")
    for ask in (database.ping, Ledger(database).add):
        with pytest.raises(DatabaseUnreachable) as caught:
            ask()
        assert "secret" not in caught.value.message
    database.close()


def test_an_autocommit_session_opens_no_transaction_and_writes_nothing(postgres_url: str) -> None:
    database = Database(postgres_url)
    job_id = Ledger(database).add()
    with database.autocommit_session() as session:
        assert Jobs(session).get(job_id).id == job_id
        connection = session.connection().connection.driver_connection
        assert isinstance(connection, Connection)
        assert connection.info.transaction_status is TransactionStatus.IDLE, "no transaction is open"
    with pytest.raises(DBAPIError, match="read-only transaction"), database.autocommit_session() as session:
        session.execute(text("DELETE FROM jobs"))
    with pytest.raises(DBAPIError, match="read-only transaction"), database.autocommit_session() as session:
        Jobs(session).request_cancel(job_id)
    assert Ledger(database).status(job_id) is JobStatus.QUEUED
    database.close()


def test_a_connection_that_breaks(postgres_url: str) -> None:
    database = Database(postgres_url)
    ledger = Ledger(database)
    job_id = ledger.add()
    other = Database(postgres_url)

    def end_all_others() -> None:
        mine = "datname = current_database() AND pid <> pg_backend_pid()"
        with other.session() as session:
            session.execute(text(f"SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE {mine}"))

    def claim_and_renew() -> None:
        with database.session() as session:
            claim = claim_job(session, job_id, worker="w", lease_seconds=60)
            end_all_others()
            Jobs(session).renew(claim, lease_seconds=60)

    with pytest.raises(DatabaseUnreachable):
        claim_and_renew()
    assert ledger.status(job_id) is JobStatus.QUEUED
    end_all_others()  # between two transactions: the pool detects it by itself
    assert ledger.claim(job_id).attempt == 1
    for one in (database, other):
        one.close()


def test_a_transaction_that_idles_is_ended_by_the_server(postgres_url: str) -> None:
    """Otherwise the lock of a frozen process would keep its job from being requeued."""
    database = Database(postgres_url)
    ledger = Ledger(database)
    job_id = ledger.add()

    def claim_and_idle() -> None:
        with database.session() as session:
            assert session.execute(text("SHOW idle_in_transaction_session_timeout")).scalar_one() == "30s"
            session.execute(text("SET LOCAL idle_in_transaction_session_timeout = '50ms'"))
            claim = claim_job(session, job_id, worker="w", lease_seconds=60)
            assert ledger.cancel(job_id).status is JobStatus.CANCELLED  # waits for the row's lock
            Jobs(session).renew(claim, lease_seconds=60)

    with pytest.raises(DatabaseUnreachable):
        claim_and_idle()
    database.close()


def test_a_file_that_cannot_be_opened(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    database = Database(f"sqlite:///{tmp_path / 'folder'}")
    with pytest.raises(DatabaseUnreachable):
        database.ping()
    database.close()


@pytest.mark.parametrize("place", [0, 8192])
def test_a_damaged_file(tmp_path: Path, place: int) -> None:
    """In its header, and in a page that is read later."""
    url = f"sqlite:///{tmp_path / 'ledger.sqlite3'}"
    upgrade(url)
    with (tmp_path / "ledger.sqlite3").open("r+b") as file:
        file.seek(place)
        file.write(b"\xa5" * 200_000)
    for leftover in tmp_path.glob("*-wal"):
        leftover.unlink()
    database = Database(url)
    with (
        pytest.raises(DatabaseUnreachable, match="the file of the database is damaged; restore it from a backup"),
        database.session() as session,
    ):
        Jobs(session).add(spec=a_spec(), owner="tests")
    database.close()


def test_a_device_that_is_full(sqlite_database: Database) -> None:
    ledger = Ledger(sqlite_database)
    job_id = ledger.add()
    with sqlite_database.session() as session:  # the limit belongs to the connection, and the pool returns the same one
        pages = session.execute(text("PRAGMA page_count")).scalar_one()
        session.execute(text(f"PRAGMA max_page_count = {pages}"))
    with pytest.raises(DatabaseFull) as full, sqlite_database.session() as session:
        Jobs(session).add(spec=a_spec(), owner="x" * 100_000)
    assert full.value.code == "out_of_space"
    assert isinstance(full.value, DatabaseUnreachable), "who waits for the database waits for space too"
    sqlite_database.close()
    assert ledger.claim(job_id).attempt == 1
