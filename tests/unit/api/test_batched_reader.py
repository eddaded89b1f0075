"""Concurrent reads of jobs: one thread reads for all, and each request gets its own job."""

import asyncio
import math
import threading
from collections.abc import Iterator
from dataclasses import replace
from uuid import uuid4

import pytest
from sqlalchemy import event, update

from api.jobs.reading import BatchedReader, JobRead
from benchmarks.harness.processes import wait_until
from replaceme_core.errors import DatabaseUnreachable, JobNotFound
from replaceme_core.ledger.database import Database
from replaceme_core.ledger.tables import JobRow
from tests.fixtures.jobs.ledger import Ledger


@pytest.fixture
def reader(sqlite_database: Database) -> Iterator[BatchedReader]:
    reader = BatchedReader(sqlite_database)
    yield reader
    reader.close()


def read_all(reader: BatchedReader, *requests: tuple[str, str]) -> list[JobRead | BaseException]:
    """The outcomes of concurrent reads, each a pair of job id and owner."""

    async def all_at_once() -> list[JobRead | BaseException]:
        reads = (reader.read(job_id, owner=owner) for job_id, owner in requests)
        return await asyncio.gather(*reads, return_exceptions=True)

    return asyncio.run(all_at_once())


def position_of(outcomes: list[JobRead | BaseException]) -> int | None:
    """The queue position in the only outcome."""
    [outcome] = outcomes
    assert isinstance(outcome, JobRead)
    assert outcome.seen is not None
    assert outcome.seen.position is not None
    return outcome.seen.position.position


def test_each_request_gets_its_own_job(sqlite_database: Database, reader: BatchedReader) -> None:
    ledger = Ledger(sqlite_database)
    queued, running, theirs = ledger.add(owner="ada"), ledger.add(owner="ada"), ledger.add(owner="bob")
    ledger.claim(running)
    missing = str(uuid4())
    requests = [(queued, "ada"), (running, "ada"), (theirs, "ada"), (missing, "ada"), ("no id", "ada"), (queued, "ada")]
    first, second, *refused, again = read_all(reader, *requests)
    assert isinstance(first, JobRead)
    assert first.seen is not None
    assert first.seen.job == ledger.get(queued)
    assert first.seen.position is not None
    assert first == again
    assert isinstance(second, JobRead)
    assert second.seen is not None
    assert (second.seen.job, second.seen.position) == (ledger.get(running), None)
    assert [type(each) for each in refused] == [JobNotFound] * 3
    assert [str(each) for each in refused] == [f"there is no job {job_id!r}" for job_id in (theirs, missing, "no id")]


def test_many_requests_are_few_statements(sqlite_database: Database, reader: BatchedReader) -> None:
    ledger = Ledger(sqlite_database)
    jobs = [ledger.add(owner="ada") for _ in range(50)]
    statements: list[str] = []
    event.listen(sqlite_database._engine, "before_cursor_execute", lambda *arguments: statements.append(arguments[2]))
    outcomes = read_all(reader, *((job_id, "ada") for job_id in jobs * 4))
    positions = [position_of([outcome]) for outcome in outcomes]
    assert positions == [*range(1, 51)] * 4
    assert sum("SELECT" in statement for statement in statements) < 30


def test_requests_do_not_wait_for_a_refresh_of_the_queue_positions(
    sqlite_database: Database, reader: BatchedReader
) -> None:
    """As long as the cached positions have not expired."""
    ledger = Ledger(sqlite_database)
    first, second = ledger.add(owner="ada"), ledger.add(owner="ada")
    assert [position_of(read_all(reader, (job_id, "ada"))) for job_id in (first, second)] == [1, 2]
    ledger.cancel(first)
    assert reader._positions is not None
    reader._positions = replace(reader._positions, refresh_at=0.0, expires_at=math.inf)
    threads: set[str] = set()

    def note(*arguments: object) -> None:
        if "ORDER BY jobs.priority DESC" in str(arguments[2]):
            threads.add(threading.current_thread().name.partition("_")[0])

    event.listen(sqlite_database._engine, "before_cursor_execute", note)
    assert position_of(read_all(reader, (second, "ada"))) == 2
    wait_until(
        lambda: position_of(read_all(reader, (second, "ada"))) == 1, seconds=10, what="a refresh of the queue positions"
    )
    assert threads == {"positions"}


def test_expired_queue_positions_are_read_first(sqlite_database: Database, reader: BatchedReader) -> None:
    ledger = Ledger(sqlite_database)
    first, second = ledger.add(owner="ada"), ledger.add(owner="ada")
    assert position_of(read_all(reader, (second, "ada"))) == 2
    ledger.cancel(first)
    assert reader._positions is not None
    reader._positions = replace(reader._positions, expires_at=0.0)
    assert position_of(read_all(reader, (second, "ada"))) == 1


def test_a_new_job_has_a_queue_position(sqlite_database: Database, reader: BatchedReader) -> None:
    ledger = Ledger(sqlite_database)
    for number in range(1, 6):
        assert position_of(read_all(reader, (ledger.add(owner="ada"), "ada"))) == number


def test_an_unreadable_row_fails_only_its_own_requests(sqlite_database: Database, reader: BatchedReader) -> None:
    ledger = Ledger(sqlite_database)
    good, broken = ledger.add(owner="ada"), ledger.add(owner="ada")
    with sqlite_database.session() as session:
        session.execute(update(JobRow).where(JobRow.id == broken).values(spec={"model": 3}))
    first, second = read_all(reader, (good, "ada"), (broken, "ada"))
    assert isinstance(first, JobRead)
    assert isinstance(second, ValueError)


def test_an_unreachable_database_fails_every_request(tmp_path_factory: pytest.TempPathFactory) -> None:
    reader = BatchedReader(Database("postgresql://127.0.0.1:1/none"))
    outcomes = read_all(reader, *((str(uuid4()), "ada") for _ in range(3)))
    assert [type(outcome) for outcome in outcomes] == [DatabaseUnreachable] * 3
    reader.close()
