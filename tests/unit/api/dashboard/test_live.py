"""The streams behind live pages: events and progress make them say `changed`, the last event `ended`."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from api.dashboard import live
from api.routes.event_feed import EventFeed
from api.routes.reading import BatchedReader
from benchmarks.harness.jobs import owner_of
from replaceme_core.ledger import attempts, changes
from replaceme_core.ledger.database import Database
from replaceme_core.runner.messages import Stage
from tests.fixtures.jobs.ledger import Ledger

OWNER = "someone"


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "LOOK_SECONDS", 0.05)


async def next_change(parts: AsyncIterator[bytes], behind: int | None = None) -> bytes:
    """The next message; if `behind` is given, the next with that id: a change may be seen before its event."""
    async with asyncio.timeout(10):
        async for part in parts:
            if b"event:" in part and (behind is None or part.startswith(b"id: %d\n" % behind)):
                return part
    raise AssertionError("the stream has ended")


def test_a_job_from_its_progress_to_its_end(sqlite_database: Database) -> None:
    ledger = Ledger(sqlite_database)
    job = ledger.add()

    async def follow() -> None:
        feed, reader = EventFeed(sqlite_database, poll_seconds=0.05), BatchedReader(sqlite_database)
        messages = feed.of_job(job, owner=OWNER, after=1)
        parts = live.changes(messages, running=[job], owner=OWNER, reader=reader, of_job=True)
        waiting = asyncio.create_task(next_change(parts, 2))
        await asyncio.sleep(0.3)
        assert not waiting.done(), "nothing has happened"
        claim = ledger.claim(job)
        assert await waiting == b"id: 2\nevent: changed\ndata:\n\n"
        with sqlite_database.session() as session:
            attempts.record_progress(session, claim, stage=Stage.CALIBRATE, overall=0.1, fraction=0.2, eta_seconds=None)
        assert await next_change(parts, 3) == b"id: 3\nevent: changed\ndata:\n\n"
        await asyncio.sleep(0.2)
        with sqlite_database.session() as session:  # no event is written
            attempts.record_progress(session, claim, stage=Stage.CALIBRATE, overall=0.2, fraction=0.4, eta_seconds=None)
        assert await next_change(parts) == b"id: 3\nevent: changed\ndata:\n\n"
        ledger.succeed(claim)
        rest = [part async for part in parts]  # `ended` may be all: it is a change too
        assert rest[-1] == b"event: ended\ndata:\n\n"
        await feed.close()
        reader.close()

    asyncio.run(follow())


def test_jobs_that_start_later_are_watched_in_a_list(sqlite_database: Database) -> None:
    ledger = Ledger(sqlite_database)

    async def follow() -> None:
        feed, reader = EventFeed(sqlite_database, poll_seconds=0.05), BatchedReader(sqlite_database)
        gone = ledger.add()
        parts = live.changes(feed.of_owner(OWNER, after=None), running=[gone], owner=OWNER, reader=reader, of_job=False)
        waiting = asyncio.create_task(next_change(parts))
        await asyncio.sleep(0.3)
        job = ledger.add()
        assert b"event: changed" in await waiting
        claim = ledger.claim(job)
        assert b"event: changed" in await next_change(parts)
        await asyncio.sleep(0.2)
        waiting = asyncio.create_task(next_change(parts))
        await asyncio.sleep(0.3)
        with sqlite_database.session() as session:
            attempts.record_progress(session, claim, stage=Stage.CALIBRATE, overall=0.1, fraction=0.2, eta_seconds=None)
        await waiting
        await asyncio.sleep(0.2)
        with sqlite_database.session() as session:
            attempts.record_progress(session, claim, stage=Stage.CALIBRATE, overall=0.3, fraction=0.6, eta_seconds=None)
        await next_change(parts)
        ledger.cancel(gone)
        with sqlite_database.session() as session:
            changes.delete_job(session, gone, owner=owner_of(session, gone))
        await next_change(parts)
        await parts.aclose()  # type: ignore[attr-defined]
        assert feed.followers == 0, "a stream that is closed follows no more"
        await feed.close()
        reader.close()

    asyncio.run(follow())


def test_jobs_of_others_change_nothing(sqlite_database: Database) -> None:
    ledger = Ledger(sqlite_database)

    async def follow() -> None:
        feed, reader = EventFeed(sqlite_database, poll_seconds=0.05), BatchedReader(sqlite_database)
        theirs = ledger.add(owner="another")
        parts = live.changes(
            feed.of_owner(OWNER, after=None), running=[theirs], owner=OWNER, reader=reader, of_job=False
        )
        waiting = asyncio.create_task(next_change(parts))
        await asyncio.sleep(0.3)
        ledger.claim(theirs)
        await asyncio.sleep(0.5)
        assert not waiting.done()
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        await feed.close()
        reader.close()

    asyncio.run(follow())
