"""Transactions: commits, actions after the commit, a database that is not reachable, and one that is a file."""

import re
import subprocess
import sys
from contextlib import closing, suppress
from functools import partial
from pathlib import Path

import pytest
from psycopg import Connection
from psycopg.pq import TransactionStatus
from sqlalchemy import delete, insert, make_url, select, text, update
from sqlalchemy.exc import DBAPIError, IntegrityError

from benchmarks.harness.processes import wait_until
from benchmarks.harness.servers import RestartablePostgres
from benchmarks.harness.specs import a_spec
from replaceme_core.errors import DatabaseFull, DatabaseUnreachable, InvalidInput
from replaceme_core.ledger import attempts, changes, reading
from replaceme_core.ledger import database as database_module
from replaceme_core.ledger.database import Database, change_or_insert, now
from replaceme_core.ledger.migrate import upgrade
from replaceme_core.ledger.states import JobStatus
from replaceme_core.ledger.tables import JobLabelRow, JobRow, OwnerRow
from tests.fixtures.jobs.ledger import Ledger, at_once, claim_job


def test_messages_follow_the_commit_and_none_is_sent_without_it(database: Database) -> None:
    ledger, seen = Ledger(database), []
    with suppress(ZeroDivisionError), database.session() as session:
        changes.add(session, spec=a_spec(), owner="ada")
        session.after_commit.append(lambda: seen.append("sent"))
        raise ZeroDivisionError
    with database.session() as session:
        assert reading.page(session, owner="ada", limit=5).items == ()
        job = changes.add(session, spec=a_spec(), owner="ada")
        session.after_commit.append(lambda: seen.append(ledger.status(job.id)))  # another connection sees it already
        session.after_commit.append(lambda: seen.append(ledger.claim(job.id).attempt))
        assert seen == []
    assert seen == [JobStatus.QUEUED, 1]


def test_a_read_only_session_writes_nothing(database: Database) -> None:
    job_id = Ledger(database).add()
    with pytest.raises(DatabaseUnreachable) as refused, database.session(read_only=True) as session:
        claim_job(session, job_id, worker="w", lease_seconds=1)
    assert re.search("read.?only", refused.value.explained)
    assert Ledger(database).claim(job_id).attempt == 1  # and the connection writes again afterwards


def test_reading_does_not_wait_for_a_writer(database: Database) -> None:
    ledger = Ledger(database)
    job_id = ledger.add()
    with database.session() as session:
        claim_job(session, job_id, worker="w", lease_seconds=60)
        assert ledger.status(job_id) is JobStatus.QUEUED
    assert ledger.status(job_id) is JobStatus.RUNNING


def test_a_transaction_that_reads_before_it_writes_waits_for_another(database: Database) -> None:
    """On SQLite the second transaction would fail if it began as a reader."""
    ledger = Ledger(database)
    jobs = [ledger.add() for _ in range(2)]

    def work(job_id: str) -> None:
        for _ in range(20):
            with database.session() as session:
                reading.page(session, owner="someone", limit=5)
                claim = claim_job(session, job_id, worker="w", lease_seconds=60)
                attempts.release(session, claim, reason="test")

    at_once(*(partial(work, job_id) for job_id in jobs))
    assert [ledger.get(job_id).attempt for job_id in jobs] == [20, 20]


def test_rows_refer_to_a_job(database: Database) -> None:
    job_id = Ledger(database).add(labels={"team": "red"})
    with pytest.raises(IntegrityError), database.session() as session:
        session.execute(insert(JobLabelRow).values(job_id="nowhere", name="team", value="red"))
    with database.session() as session:
        session.execute(text("DELETE FROM jobs"))
    with database.session() as session:
        assert session.scalars(select(JobLabelRow)).all() == []
    assert Ledger(database).add() != job_id


def test_a_row_that_is_written_while_others_delete_it(postgres_database: Database) -> None:
    key, values = {"owner": "ada"}, {"output_namespaces": ["a"]}

    def write(number: int) -> object:
        with postgres_database.session() as session:
            if number % 2:
                return session.execute(delete(OwnerRow)) and ["a"]
            return change_or_insert(session, OwnerRow, key, change=values, new=values).output_namespaces

    for _ in range(20):
        assert at_once(*(partial(write, number) for number in range(6))) == [["a"]] * 6


def test_an_error_in_sql_is_not_reported_as_an_outage(database: Database) -> None:
    with pytest.raises(DBAPIError, match="no_such_function"), database.session() as session:
        session.execute(text("SELECT no_such_function()"))


def test_an_autocommit_session_opens_no_transaction_and_writes_nothing(postgres_database: Database) -> None:
    database = postgres_database
    job_id = Ledger(database).add()
    with database.session(autocommit=True) as session:
        assert reading.get(session, job_id, owner="someone").id == job_id
        connection = session.connection().connection.driver_connection
        assert isinstance(connection, Connection)
        assert connection.info.transaction_status is TransactionStatus.IDLE, "no transaction is open"
    with pytest.raises(DatabaseUnreachable) as refused, database.session(autocommit=True) as session:
        changes.request_cancel(session, job_id, owner="someone")
    assert "read-only transaction" in refused.value.explained
    assert Ledger(database).status(job_id) is JobStatus.QUEUED


def test_settings_of_the_server_change_no_statement(postgres_database: Database, postgres_url: str) -> None:
    name = make_url(postgres_url).database
    with postgres_database.session() as session:
        for setting in ("datestyle = 'SQL, DMY'", "default_transaction_isolation = 'serializable'"):
            session.execute(text(f'ALTER DATABASE "{name}" SET {setting}'))
    database = Database(postgres_url)
    job_id = Ledger(database).add()
    for autocommit in (False, True):
        with database.session(autocommit=autocommit) as session:
            assert reading.get(session, job_id, owner="someone").id == job_id
            assert session.execute(text("SHOW transaction_isolation")).scalar() == "read committed"
    database.close()


def test_a_server_that_takes_no_writes_is_waited_for(postgres_database: Database, postgres_url: str) -> None:
    """Of a failover, for one."""
    read_only = {"options": "-c default_transaction_read_only=on"}
    standby = Database(make_url(postgres_url).update_query_dict(read_only).render_as_string(hide_password=False))
    with pytest.raises(DatabaseUnreachable, match="does not answer") as refused:
        Ledger(standby).add()
    assert "session is read-only" in refused.value.explained
    standby.close()
    assert Ledger(postgres_database).add()


def test_a_standby_is_waited_for_until_it_is_promoted(
    postgres: RestartablePostgres | None, postgres_database: Database
) -> None:
    """After a failover the address may lead to it, also for a pool that has read before."""
    if postgres is None:
        pytest.skip("the server is not ours to stop")
    job_id = Ledger(postgres_database).add()
    assert Ledger(postgres_database).status(job_id) is JobStatus.QUEUED
    postgres.crash()
    postgres.start_as_standby()
    try:
        with pytest.raises(DatabaseUnreachable, match="does not answer"):
            Ledger(postgres_database).status(job_id)
    finally:
        postgres.server.execute("SELECT pg_promote()")
    assert Ledger(postgres_database).claim(job_id).attempt == 1


def test_an_error_has_no_values(database: Database) -> None:
    """It is logged, and some values are addresses of webhooks."""
    with pytest.raises(DBAPIError) as caught, database.session() as session:
        session.execute(text("SELECT no_such_function(:url)"), {"url": "https://hooks.example.com/secret"})
    assert "no_such_function" in str(caught.value)
    assert "hooks.example.com" not in str(caught.value)


def test_a_connection_that_breaks(postgres_database: Database, postgres_url: str) -> None:
    database = postgres_database
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
            attempts.renew(session, claim, lease_seconds=60)

    with pytest.raises(DatabaseUnreachable):
        claim_and_renew()
    assert ledger.status(job_id) is JobStatus.QUEUED
    end_all_others()  # between two transactions: the pool detects it by itself
    assert ledger.claim(job_id).attempt == 1
    other.close()


def test_a_frozen_worker_holds_its_job_only_for_so_long(
    postgres_database: Database, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server ends its transaction, whose lock would keep the job from being requeued."""
    monkeypatch.setattr(database_module, "IDLE_SECONDS", 1)
    frozen, other = Database(postgres_url), postgres_database
    job_id = Ledger(other).add()
    claim = Ledger(frozen).claim(job_id, lease_seconds=-1)

    def requeued() -> bool:
        return Ledger(other).requeue_expired() == [job_id]

    def freeze() -> None:
        with frozen.session() as session:
            session.execute(update(JobRow).where(JobRow.id == job_id).values(worker="still frozen"))
            assert not requeued()
            wait_until(requeued, what="the job to be requeued")
            attempts.renew(session, claim, lease_seconds=60)

    with pytest.raises(DatabaseUnreachable):
        freeze()
    frozen.close()


@pytest.mark.parametrize(
    "url",
    [
        "",
        "x",
        "mysql://host/name",
        "sqlite://",
        "sqlite:///:memory:",
        "sqlite+aiosqlite:///x",
        "postgresql+asyncpg://:secret@h/n",
    ],
)
def test_unknown_urls(url: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        Database(url)
    assert caught.value.field == "database_url"
    assert "secret" not in caught.value.message


def test_a_file_that_cannot_be_opened(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    database = Database(f"sqlite:///{tmp_path / 'folder'}")
    with (
        pytest.raises(DatabaseUnreachable, match="file of the database cannot be opened"),
        database.session(read_only=True) as session,
    ):
        session.execute(select(1))
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
        changes.add(session, spec=a_spec(), owner="tests")
    database.close()


def test_a_device_that_is_full(sqlite_database: Database) -> None:
    ledger = Ledger(sqlite_database)
    job_id = ledger.add()
    with sqlite_database.session() as session:  # the limit belongs to the connection, and the pool returns the same one
        pages = session.execute(text("PRAGMA page_count")).scalar_one()
        session.execute(text(f"PRAGMA max_page_count = {pages}"))
    with pytest.raises(DatabaseFull) as full, sqlite_database.session() as session:
        changes.add(session, spec=a_spec(), owner="x" * 100_000)
    assert full.value.code == "out_of_space"
    assert isinstance(full.value, DatabaseUnreachable), "who waits for the database waits for space too"
    sqlite_database.close()
    assert ledger.claim(job_id).attempt == 1


@pytest.mark.parametrize("before", [None, 0o644], ids=["new", "readable by others"])
def test_only_its_owner_can_read_the_file_and_those_beside_it(tmp_path: Path, before: int | None) -> None:
    file = tmp_path / "ledger.sqlite3"
    if before is not None:
        file.touch(before)
    upgrade(f"sqlite:///{file}")
    database = Database(f"sqlite:///{file}")
    with database.session() as session:
        changes.add(session, spec=a_spec(), owner="tests")
        session.flush()
        modes = {path.name: oct(path.stat().st_mode & 0o777) for path in tmp_path.iterdir()}
    database.close()
    assert modes == dict.fromkeys((file.name, f"{file.name}-wal", f"{file.name}-shm"), "0o600")


def test_a_second_pool_for_a_file_leaves_the_locks_of_the_first(tmp_path: Path) -> None:
    """Without them, another process that ends deletes the log that the first pool goes on to write to."""
    file = tmp_path / "ledger.sqlite3"
    upgrade(f"sqlite:///{file}")
    read = f"import sqlite3; print(sqlite3.connect({str(file)!r}).execute('SELECT owner FROM jobs').fetchall())"
    with closing(Database(f"sqlite:///{file}")) as first:
        Ledger(first).add(owner="ada")
        with closing(Database(f"sqlite:///{file}")):
            seen = []
            for _ in range(2):
                seen.append(subprocess.run([sys.executable, "-c", read], capture_output=True, text=True, check=True))
                Ledger(first).add(owner="ada")
    assert [done.stdout for done in seen] == ["[('ada',)]\n", "[('ada',), ('ada',)]\n"]


def test_the_database_refuses_inconsistent_rows(database: Database) -> None:
    ledger = Ledger(database)
    job_id = ledger.add()
    refused: tuple[dict[str, object], ...] = (
        {"status": "done"},
        {"status": "running"},
        {"status": "cancelled"},
        {"status": "failed", "finished_at": now()},
        {"status": "succeeded", "finished_at": now()},
        {"finished_at": now()},
    )
    for values in refused:
        with pytest.raises(IntegrityError), database.session() as session:
            session.execute(update(JobRow.__table__).where(JobRow.id == job_id).values(**values))  # type: ignore[arg-type]
    assert ledger.status(job_id) is JobStatus.QUEUED


def test_an_unreachable_server() -> None:
    database = Database("postgresql+psycopg://someone:secret@127.0.0.1:1/nothing")
    with pytest.raises(DatabaseUnreachable) as caught:
        Ledger(database).add()
    assert "secret" not in caught.value.message
    database.close()
