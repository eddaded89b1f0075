"""Measure lists, filters, claims and sweeps in a small ledger and in a large one, with the plans of their statements.

    python -m benchmarks.rows [--small 1000] [--large 100000] [--repeats 40] [--plans]

On PostgreSQL and on SQLite. A call may take at most twice as long with the large table, and its plans must use indexes.
"""

import argparse
import re
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

from sqlalchemy import Connection, delete, event, insert, text
from sqlalchemy.orm import Session

from benchmarks.harness.jobs import owner_of
from benchmarks.harness.servers import start_postgres
from benchmarks.harness.specs import a_spec
from replaceme_core.ledger import attempts, reading
from replaceme_core.ledger.database import Database, LedgerSession, now
from replaceme_core.ledger.migrate import upgrade
from replaceme_core.ledger.reading import JobFilters
from replaceme_core.ledger.records import stored_spec
from replaceme_core.ledger.states import EventType, JobStatus
from replaceme_core.ledger.sweep import collect_wake_ups, requeue_expired
from replaceme_core.ledger.tables import JobEventRow, JobLabelRow, JobRow

MAX_RATIO = 2.0
OWNERS = 50
CHUNK = 5000
RUNNING = 20
RESULT = {"repo_id": "org/small", "revision": "b" * 40, "removed_blocks": [1], "kept_blocks": [0]}

Call = Callable[[Session], object]


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Seconds of one transaction (the lower quartile, since other processes only add time) and its plans."""

    seconds: float
    plans: tuple[str, ...]


def job_id(number: int) -> str:
    return str(UUID(int=number))


def fill(database: Database, rows: int) -> None:
    """Nine tenths have succeeded, a tenth is queued, a few run. One owner has half of them; ten jobs share a label."""
    with database.session() as session:
        session.execute(delete(JobRow))
    spec = stored_spec(a_spec())
    for first in range(0, rows, CHUNK):
        numbers = range(first, min(first + CHUNK, rows))
        jobs = {number: _status(number, rows) for number in numbers}
        with database.session() as session:
            for status, values in _VALUES.items():
                some = [number for number, found in jobs.items() if found is status]
                if some:
                    session.execute(
                        insert(JobRow).values(
                            status=status,
                            spec=spec,
                            attempt=0,
                            event_count=1,
                            overall=0.0,
                            stage_fraction=0.0,
                            created_at=now(),
                            **values,
                        ),
                        [{"id": job_id(number), "owner": _owner(number)} for number in some],
                    )
            ids = [job_id(number) for number in numbers]
            session.execute(
                insert(JobLabelRow),
                [{"job_id": job_id(n), "name": "run", "value": str(n % (rows // 10))} for n in numbers],
            )
            created = insert(JobEventRow).values(seq=1, type=EventType.CREATED, at=now(), attempt=0, data={})
            session.execute(created, [{"job_id": each} for each in ids])
    with database.session() as session:
        session.execute(text("ANALYZE"))


def _owner(number: int) -> str:
    return f"owner-{number // 2 % OWNERS if number % 2 else 0}"


def _status(number: int, rows: int) -> JobStatus:
    if number >= rows - RUNNING:
        return JobStatus.RUNNING
    return JobStatus.QUEUED if number // 2 % 10 == 0 else JobStatus.SUCCEEDED


_VALUES: dict[JobStatus, dict[str, object]] = {
    JobStatus.SUCCEEDED: {"finished_at": now(), "started_at": now(plus_seconds=-60), "result": RESULT},
    JobStatus.QUEUED: {"enqueued_at": now()},
    JobStatus.RUNNING: {"lease_token": "0" * 32, "lease_expires_at": now(plus_seconds=3600), "started_at": now()},
}


def calls(database: Database, rows: int) -> dict[str, Call]:
    """The measured calls by name. Each transaction is rolled back."""
    with database.session(read_only=True) as session:
        waiting, running, cancelled = (
            JobFilters(statuses=[status]) for status in (JobStatus.QUEUED, JobStatus.RUNNING, JobStatus.CANCELLED)
        )
        some, none = JobFilters(labels={"run": "8"}), JobFilters(labels={"run": "none"})
        middle = reading.page(session, limit=rows // 4, owner="owner-0").next_cursor
    return {
        "list": lambda session: reading.page(session, limit=50, owner="owner-0"),
        "list, a page in the middle": lambda session: reading.page(session, limit=50, owner="owner-0", cursor=middle),
        "list of a small owner": lambda session: reading.page(session, limit=5, owner="owner-7"),
        "filter by status": lambda session: reading.page(session, limit=20, owner="owner-0", filters=waiting),
        "filter by a status few have": lambda session: reading.page(
            session, limit=20, owner="owner-0", filters=running
        ),
        "filter by a status none has": lambda session: reading.page(
            session, limit=20, owner="owner-0", filters=cancelled
        ),
        "filter by a label": lambda session: reading.page(session, limit=50, owner="owner-0", filters=some),
        "filter by a label none has": lambda session: reading.page(session, limit=50, owner="owner-0", filters=none),
        "get": lambda session: reading.get(session, job_id(7), owner=owner_of(session, job_id(7))),
        "claim": lambda session: attempts.claim_next(session, worker="w", lease_seconds=60),
        "sweep: requeue expired": lambda session: requeue_expired(session, max_attempts=3, limit=16),
        "sweep: wake-ups": lambda session: collect_wake_ups(session, older_than_seconds=3600, limit=16),
    }


class _Undo(Exception):
    pass


def measure(database: Database, call: Call, *, repeats: int) -> Timing:
    """Measure `repeats` calls after a few to warm up, each in a transaction of its own that is rolled back."""
    seconds: list[float] = []
    for _ in range(repeats + 5):
        try:
            with database.session() as session:
                session.connection()
                began = time.perf_counter()
                call(session)
                seconds.append(time.perf_counter() - began)
                raise _Undo
        except _Undo:
            pass
    return Timing(seconds=sorted(seconds[5:])[repeats // 4], plans=plans(database, call))


def plans(database: Database, call: Call) -> tuple[str, ...]:
    """The plan of each statement that `call` sends."""
    found: list[str] = []
    try:
        with database.session() as session:
            for statement, parameters in _sent_by(session, call):
                sqlite = session.connection().dialect.name == "sqlite"
                explain = "EXPLAIN QUERY PLAN " if sqlite else "EXPLAIN "
                lines = session.connection().exec_driver_sql(explain + statement, parameters).all()
                found.append("\n".join(str(line[-1]) for line in lines))
            raise _Undo
    except _Undo:
        pass
    return tuple(found)


def _sent_by(session: LedgerSession, call: Call) -> list[tuple[str, object]]:
    sent: list[tuple[str, object]] = []

    def record(_: Connection, __: object, statement: str, parameters: object, *___: object) -> None:
        if statement.startswith(("SELECT", "WITH", "UPDATE", "DELETE")):
            sent.append((statement, parameters))

    connection = session.connection()
    event.listen(connection, "before_cursor_execute", record)
    call(session)
    event.remove(connection, "before_cursor_execute", record)
    return sent


def indexes_of(found: Sequence[str]) -> list[str]:
    """The indexes that plans use, and `NONE: ...` for each step that reads a whole table."""
    text = "\n".join(found)
    names = set(re.findall(r"(?:using|INDEX|Bitmap Index Scan on) ((?:ix|pk|uq)_\w+|sqlite_autoindex_\w+)", text))
    scans = {
        line.strip() for line in text.splitlines() if re.search(r"Seq Scan|SCAN (jobs|job_labels)(?!.*INDEX)", line)
    }
    return sorted(names) + [f"NONE: {line}" for line in sorted(scans)]


def compare(database: Database, *, small: int, large: int, repeats: int, show_plans: bool) -> bool:
    """Print one row for each call; returns whether all are fast enough and use indexes."""
    found: dict[str, list[Timing]] = {}
    for rows in (small, large):
        fill(database, rows)
        for name, call in calls(database, rows).items():
            found.setdefault(name, []).append(measure(database, call, repeats=repeats))
    print(f"| call | {small:,} jobs | {large:,} jobs | times | indexes |")
    print("|---|---|---|---|---|")
    good = True
    for name, (first, second) in found.items():
        times, indexes = second.seconds / first.seconds, ", ".join(indexes_of(second.plans))
        good = good and times <= MAX_RATIO and "NONE" not in indexes
        print(f"| {name} | {first.seconds * 1e3:.2f} ms | {second.seconds * 1e3:.2f} ms | {times:.2f} | {indexes} |")
    if show_plans:
        for name, (_, second) in found.items():
            print(f"\n{name}\n")
            for plan in second.plans:
                print("    " + plan.replace("\n", "\n    "))
    return good


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", type=int, default=1000, help="jobs (default: %(default)s)")
    parser.add_argument("--large", type=int, default=100_000, help="jobs (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=40, help="of each call (default: %(default)s)")
    parser.add_argument("--plans", action="store_true", help="print the plans, too")
    options = parser.parse_args()
    good = True
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="replaceme-rows-")))
        urls = {
            "PostgreSQL": stack.enter_context(stack.enter_context(start_postgres(durable=True)).server.database()),
            "SQLite": f"sqlite:///{folder / 'ledger.sqlite3'}",
        }
        for name, url in urls.items():
            upgrade(url)
            database = Database(url)
            print(f"\n{name}\n")
            sizes = {"small": options.small, "large": options.large}
            good = compare(database, **sizes, repeats=options.repeats, show_plans=options.plans) and good
            database.close()
    print(
        "\nall calls are within the limit and use indexes" if good else "\nsome calls exceed the limit or use no index"
    )
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
