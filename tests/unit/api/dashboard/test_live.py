"""The streams behind live pages: events and progress make them say `changed`, the last event `ended`."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import closing

import pytest

from api.dashboard import live
from api.routes.event_feed import EventFeed
from api.routes.reading import BatchedReader
from replaceme_core.ledger import attempts, changes
from replaceme_core.ledger.database import Database
from replaceme_core.ledger.records import Claim
from replaceme_core.runner.messages import Stage
from tests.fixtures.jobs.ledger import Ledger

OWNER = "someone"


async def next_change(parts: AsyncIterator[bytes]) -> bytes:
    async with asyncio.timeout(10):
        async for part in parts:
            if b"event:" in part:
                return part
    raise AssertionError("the stream has ended")


def progress(ledger: Ledger, claim: Claim, fraction: float) -> None:
    """It writes no event, but for the first of a stage."""
    with ledger.database.session() as session:
        attempts.record_progress(
            session, claim, stage=Stage.CALIBRATE, overall=fraction, fraction=fraction, eta_seconds=None
        )


def test_a_list_watches_jobs_that_start_later_and_none_of_others(
    sqlite_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "LOOK_SECONDS", 0.02)
    ledger, reader = Ledger(sqlite_database), BatchedReader(sqlite_database)
    feed = EventFeed(sqlite_database, poll_seconds=0.02)
    gone, theirs = ledger.add(), ledger.add(owner="another")

    async def follow() -> None:
        messages = feed.of_owner(OWNER, after=None)
        parts = live.changes(messages, running=[gone, theirs], owner=OWNER, reader=reader, of_job=False)
        waiting = asyncio.create_task(next_change(parts))
        await asyncio.sleep(0.1)
        progress(ledger, ledger.claim(theirs), 0.1)
        await asyncio.sleep(0.2)
        assert not waiting.done()
        job = ledger.add()
        assert b"event: changed" in await waiting
        claim = ledger.claim(job)
        await next_change(parts)
        for fraction in (0.2, 0.4):
            await asyncio.sleep(0.1)
            waiting = asyncio.create_task(next_change(parts))
            await asyncio.sleep(0.1)
            progress(ledger, claim, fraction)
            await waiting
        ledger.cancel(gone)
        with sqlite_database.session() as session:
            changes.delete_job(session, gone, owner=OWNER)
        await next_change(parts)
        await parts.aclose()
        assert feed.followers == 0, "a stream that is closed follows no more"
        messages = feed.of_job(job, owner=OWNER, after=0)
        parts = live.changes(messages, running=[job], owner=OWNER, reader=reader, of_job=True)
        ledger.succeed(claim)
        assert [part async for part in parts][-1] == b"event: ended\ndata:\n\n"
        await feed.close()

    with closing(reader):
        asyncio.run(follow())
