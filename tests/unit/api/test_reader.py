"""Many who ask after jobs at once: one reads for all, and each gets the answer to his own question."""

import asyncio
import math
import threading
from collections.abc import Iterator
from dataclasses import replace
from uuid import uuid4

import pytest
from sqlalchemy import event, update

from api.reader import Reader
from benchmarks.harness.processes import wait_until
from replaceme_core.errors import DatabaseUnreachable, JobNotFound
from replaceme_core.jobs.records import Job, QueuePosition
from replaceme_core.jobs.session import Database
from replaceme_core.jobs.tables import JobRow
from tests.fixtures.jobs.ledger import Ledger


@pytest.fixture
def reader(sqlite_database: Database) -> Iterator[Reader]:
    reader = Reader(sqlite_database)
    yield reader
    reader.close()


def ask(reader: Reader, *questions: tuple[str, str]) -> list[tuple[Job, QueuePosition | None] | BaseException]:
    """All at once."""

    async def all_at_once() -> list[tuple[Job, QueuePosition | None] | BaseException]:
        reads = (reader.read(job_id, owner=owner) for job_id, owner in questions)
        return await asyncio.gather(*reads, return_exceptions=True)

    return asyncio.run(all_at_once())


def position(answers: list[tuple[Job, QueuePosition | None] | BaseException]) -> int | None:
    """Of the one job that was asked after."""
    [answer] = answers
    assert isinstance(answer, tuple)
    assert answer[1] is not None
    return answer[1].position


def test_each_gets_his_own_answer(sqlite_database: Database, reader: Reader) -> None:
    ledger = Ledger(sqlite_database)
    waits, runs, theirs = ledger.add(owner="ada"), ledger.add(owner="ada"), ledger.add(owner="bob")
    ledger.claim(runs)
    missing = str(uuid4())
    questions = [(waits, "ada"), (runs, "ada"), (theirs, "ada"), (missing, "ada"), ("no id", "ada"), (waits, "ada")]
    first, second, *refused, again = ask(reader, *questions)
    assert isinstance(first, tuple)
    assert first == (ledger.get(waits), first[1]) == again
    assert first[1] is not None
    assert second == (ledger.get(runs), None)
    assert [type(each) for each in refused] == [JobNotFound] * 3
    assert [str(each) for each in refused] == [f"there is no job {job_id!r}" for job_id in (theirs, missing, "no id")]


def test_many_questions_are_few_for_the_database(sqlite_database: Database, reader: Reader) -> None:
    ledger = Ledger(sqlite_database)
    jobs = [ledger.add(owner="ada") for _ in range(50)]
    statements: list[str] = []
    event.listen(sqlite_database._engine, "before_cursor_execute", lambda *told: statements.append(told[2]))
    answers = ask(reader, *((job_id, "ada") for job_id in jobs * 4))
    positions = [answer[1].position for answer in answers if isinstance(answer, tuple) and answer[1] is not None]
    assert positions == [*range(1, 51)] * 4
    assert sum("SELECT" in statement for statement in statements) < 30


def test_nobody_waits_for_the_queue_to_be_read_anew(sqlite_database: Database, reader: Reader) -> None:
    """While what is known of it is not too old."""
    ledger = Ledger(sqlite_database)
    first, second = ledger.add(owner="ada"), ledger.add(owner="ada")
    assert [position(ask(reader, (job_id, "ada"))) for job_id in (first, second)] == [1, 2]
    ledger.cancel(first)
    assert reader._kept is not None
    reader._kept = replace(reader._kept, renew_at=0.0, useless_at=math.inf)
    threads: set[str] = set()

    def note(*told: object) -> None:
        if "ORDER BY jobs.priority DESC" in str(told[2]):
            threads.add(threading.current_thread().name.partition("_")[0])

    event.listen(sqlite_database._engine, "before_cursor_execute", note)
    assert position(ask(reader, (second, "ada"))) == 2
    wait_until(lambda: position(ask(reader, (second, "ada"))) == 1, seconds=10, what="the queue is read anew")
    assert threads == {"standing"}


def test_a_queue_that_nobody_has_asked_after_for_long_is_read_first(sqlite_database: Database, reader: Reader) -> None:
    ledger = Ledger(sqlite_database)
    first, second = ledger.add(owner="ada"), ledger.add(owner="ada")
    assert position(ask(reader, (second, "ada"))) == 2
    ledger.cancel(first)
    assert reader._kept is not None
    reader._kept = replace(reader._kept, useless_at=0.0)
    assert position(ask(reader, (second, "ada"))) == 1


def test_a_job_that_has_just_come_has_its_place(sqlite_database: Database, reader: Reader) -> None:
    ledger = Ledger(sqlite_database)
    for number in range(1, 6):
        [(_, place)] = ask(reader, (ledger.add(owner="ada"), "ada"))  # type: ignore[misc]
        assert place is not None
        assert place.position == number


def test_a_row_that_cannot_be_read_spoils_no_other_answer(sqlite_database: Database, reader: Reader) -> None:
    ledger = Ledger(sqlite_database)
    good, broken = ledger.add(owner="ada"), ledger.add(owner="ada")
    with sqlite_database.session() as session:
        session.execute(update(JobRow).where(JobRow.id == broken).values(spec={"model": 3}))
    first, second = ask(reader, (good, "ada"), (broken, "ada"))
    assert isinstance(first, tuple)
    assert isinstance(second, ValueError)


def test_a_database_that_is_gone_is_told_to_each(tmp_path_factory: pytest.TempPathFactory) -> None:
    reader = Reader(Database("postgresql://127.0.0.1:1/none"))
    answers = ask(reader, *((str(uuid4()), "ada") for _ in range(3)))
    assert [type(answer) for answer in answers] == [DatabaseUnreachable] * 3
    reader.close()
