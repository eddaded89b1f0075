"""Streams that make pages live: each says only that something has changed, and the page then reads it again.

Changes are events of the feed, and progress, which has no events: that is seen by the version of a job, which the
batched reader reads for all streams together.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from contextlib import suppress

from api.routes.event_feed import KEEP_ALIVE, KEEP_ALIVE_SECONDS, RETRY, EventMessage
from api.routes.reading import BatchedReader
from replaceme_core.errors import JobNotFound, Unavailable
from replaceme_core.ledger.states import ATTEMPT_ENDS, EventType

LOOK_SECONDS = 1.0
"""Between two reads of progress, and at least between two messages to a page."""
_CHANGED, _ENDED = b"event: changed\ndata:\n\n", b"event: ended\ndata:\n\n"


async def changed_and_ended() -> AsyncGenerator[bytes]:
    """The stream of a job that has finished: the page reads it once more and connects no more."""
    yield _CHANGED
    yield _ENDED


async def changes(
    messages: AsyncIterator[EventMessage | None],
    *,
    running: Iterable[str],
    owner: str,
    reader: BatchedReader,
    of_job: bool,
) -> AsyncGenerator[bytes]:
    """Server-sent events: `changed`, at most one in `LOOK_SECONDS`, and `ended`, a change too, after the last one.

    `running` are ids of jobs whose progress is shown; jobs that start or stop later are added and removed. The id of a
    message is where the feed resumes: the `seq` of a job's event with `of_job`, else a position.
    """
    watched, news = dict.fromkeys(running, ""), asyncio.Event()
    last: EventMessage | None = None

    async def follow() -> None:
        nonlocal last
        async for message in messages:
            if message is None:
                continue
            if message.event.type is EventType.CLAIMED:
                watched.setdefault(message.event.job_id, "")
            elif message.event.type in ATTEMPT_ENDS:
                watched.pop(message.event.job_id, None)
            last = message
            news.set()

    following, quiet = asyncio.create_task(follow()), 0.0
    try:
        await _look(watched, owner=owner, reader=reader)
        yield RETRY
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK_SECONDS):
                    await news.wait()
            has_news = news.is_set()
            news.clear()
            if await _look(watched, owner=owner, reader=reader) or has_news:
                place = "" if last is None else f"id: {last.event.seq if of_job else last.position}\n"
                yield place.encode() + _CHANGED
                quiet = 0.0
                await asyncio.sleep(LOOK_SECONDS)
            elif not following.done() and (quiet := quiet + LOOK_SECONDS) >= KEEP_ALIVE_SECONDS:
                yield KEEP_ALIVE
                quiet = 0.0
            if following.done():
                following.result()  # raises what the feed has raised: the browser connects again
                yield _ENDED
                return
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)


async def _look(watched: dict[str, str], *, owner: str, reader: BatchedReader) -> bool:
    """Whether one of the jobs has another version than before. A database that is down is waited for."""
    ids = tuple(watched)
    reads = (reader.read_status(job_id, owner=owner) for job_id in ids)
    found = await asyncio.gather(*reads, return_exceptions=True)
    moved = False
    for job_id, read in zip(ids, found, strict=True):
        if job_id not in watched:  # it has stopped meanwhile
            continue
        if isinstance(read, JobNotFound):  # deleted, or never the owner's
            moved = moved or bool(watched[job_id])
            watched.pop(job_id)
        elif isinstance(read, Unavailable):
            continue
        elif isinstance(read, BaseException):
            raise read
        elif watched[job_id] != read.tag:
            moved = moved or bool(watched[job_id])
            watched[job_id] = read.tag
    return moved
