"""Events for all who follow them: one task of the process reads the database, however many streams are open.

A stream first reads what it has missed from the table, then gets what the task finds. Where it falls behind, its queue
is dropped and it reads from the table again, so that a slow client costs no memory. The bytes of an event are made once
for all streams that send it.
"""

import asyncio
import time
from collections import defaultdict, deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, contextmanager, suppress
from functools import cached_property, partial
from typing import TypeVar

import structlog
from fastapi import Request, Response
from starlette.responses import StreamingResponse

from api.bodies import EventBody, JobEventBody
from api.http.callers import Caller, Callers, caller_of
from api.http.request_log import HEAD
from replaceme_core.errors import InvalidInput, JobNotFound, Unavailable
from replaceme_core.ledger import reading
from replaceme_core.ledger.database import Database, LedgerSession
from replaceme_core.ledger.keys import Scope
from replaceme_core.ledger.records import JobEvent
from replaceme_core.ledger.watching import FeedEvent, events_after, last_position, number_all

# Server-sent events

KEEP_ALIVE = b": keep-alive\n\n"
RETRY = b"retry: 2000\n\n"
"""The first message: after how many milliseconds a browser connects again."""
STREAM = "text/event-stream"
RECHECK_SECONDS = 2.0
"""Between two looks whether the caller of a stream may still have it, if it has something to send."""
_HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}  # the latter for nginx, which would collect parts
_LONGEST_ID = 18  # digits
_LAST = ("succeeded", "failed", "cancelled")


class EventMessage:
    """An event in both streams. `position` is 0 where it was read for the stream of one job."""

    def __init__(self, found: FeedEvent) -> None:
        self.position = found.position
        self.owner = found.owner
        self.event: JobEvent = found.event

    @cached_property
    def of_job(self) -> bytes:
        """In the stream of its job; the id is the `seq`."""
        return _encoded(self.event.seq, self.event.type, EventBody.of(self.event).model_dump_json())

    @cached_property
    def of_owner(self) -> bytes:
        """In the stream of all jobs; the id is the position."""
        body = JobEventBody.of(self.event, position=self.position)
        return _encoded(self.position, self.event.type, body.model_dump_json())


def _encoded(number: int, kind: str, data: str) -> bytes:
    return f"id: {number}\nevent: {kind}\ndata: {data}\n\n".encode()


def stream(parts: AsyncGenerator[bytes], request: Request) -> Response:
    """The response of a route that streams. It ends when the caller may no longer read: `parts` must not pause."""
    if HEAD in request.scope:
        return Response(headers=_HEADERS, media_type=STREAM)
    return StreamingResponse(_while_allowed(parts, request), headers=_HEADERS, media_type=STREAM)


async def _while_allowed(parts: AsyncGenerator[bytes], request: Request) -> AsyncGenerator[bytes]:
    callers: Callers = request.app.state.services().callers
    owner, due = caller_of(request.scope).owner, time.monotonic() + RECHECK_SECONDS
    async with aclosing(parts):
        async for part in parts:
            if time.monotonic() >= due:
                try:
                    found = await callers.identify(request.scope)
                except Unavailable:
                    pass  # an outage ends nothing
                else:
                    if not (isinstance(found, Caller) and found.owner == owner and Scope.JOBS_READ in found.scopes):
                        return  # a client that connects again gets the reason
                due = time.monotonic() + RECHECK_SECONDS
            yield part


def last_event_id(request: Request) -> int | None:
    """What a client that connects again has received last. Raises `InvalidInput` for one that is no number."""
    text = request.headers.get("last-event-id", "")
    if not text:
        return None
    if not (text.isascii() and text.isdecimal() and len(text) <= _LONGEST_ID):
        raise InvalidInput("expected the id of an event that was received, a number", field="Last-Event-ID", value=text)
    return int(text)


# The feed

POLL_SECONDS = 0.5
KEEP_ALIVE_SECONDS = 4.0  # between two messages; at each a stream looks whether its caller may still have it
BATCH = 500
MOST_QUEUED = 500
_PAUSE_SECONDS = 2.0
T = TypeVar("T")
_log = structlog.get_logger(__name__)


class _Follower:
    """What a stream has not sent yet."""

    def __init__(self, *, job_id: str | None) -> None:
        self.job_id = job_id
        self.queue: deque[EventMessage] = deque()
        self.news = asyncio.Event()
        self.fell_behind = False

    def offer(self, message: EventMessage) -> None:
        if len(self.queue) >= MOST_QUEUED:
            self.queue.clear()
            self.fell_behind = True
        if not self.fell_behind:
            self.queue.append(message)
        self.news.set()


class EventFeed:
    """Follows the events of a job or of an owner. Use within one event loop."""

    def __init__(self, database: Database, *, poll_seconds: float = POLL_SECONDS) -> None:
        self._database = database
        self._poll_seconds = poll_seconds
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="events")
        self._followers: defaultdict[tuple[str, str | None], set[_Follower]] = defaultdict(set)
        """Of an owner and a job; without a job those of all jobs of the owner."""
        self._position: int | None = None
        self._started = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._closed = False

    @property
    def followers(self) -> int:
        """How many streams are open."""
        return sum(map(len, self._followers.values()))

    async def of_job(self, job_id: str, *, owner: str, after: int) -> AsyncIterator[EventMessage | None]:
        """Events of a job behind the `seq` `after`, until the one that ends the job. `None`: nothing for a while.

        The caller has checked that the job is the owner's. Ends without a final event if the job is deleted.
        """

        def read(session: LedgerSession, last: int) -> list[FeedEvent]:
            page = reading.events(session, job_id, after=last, limit=BATCH, owner=owner)
            return [FeedEvent(position=0, owner=owner, event=event) for event in page.items]

        with self._following(owner, job_id) as follower, suppress(JobNotFound):
            async for message in self._follow(follower, after, read, lambda message: message.event.seq):
                yield message
                if message is not None and message.event.type in _LAST:
                    return

    async def of_owner(self, owner: str, *, after: int | None) -> AsyncIterator[EventMessage | int | None]:
        """Events of all jobs of an owner behind the position `after`; `None`: from now on. Does not end.

        From now on it begins with the present position, behind which a stream that is lost before an event resumes.
        """

        def read(session: LedgerSession, last: int) -> list[FeedEvent]:
            return events_after(session, last, limit=BATCH, owner=owner)

        with self._following(owner, None) as follower:
            await self._started.wait()
            assert self._position is not None
            last = self._position if after is None else after
            if after is None:
                yield last
            async for message in self._follow(follower, last, read, lambda message: message.position):
                yield message

    async def wait_for_end(self, job_id: str, *, owner: str, seconds: float) -> None:
        """Return when the job has ended, or after `seconds`."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                async for _ in self.of_job(job_id, owner=owner, after=0):
                    pass

    async def close(self) -> None:
        """End the task. Open streams end with their connections."""
        self._closed = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._thread.shutdown(cancel_futures=True)

    async def _follow(
        self,
        follower: _Follower,
        last: int,
        read: Callable[[LedgerSession, int], list[FeedEvent]],
        place: Callable[[EventMessage], int],
    ) -> AsyncIterator[EventMessage | None]:
        # Only now: what was committed before is in the table, and what is committed later is found by the task.
        await self._started.wait()
        while True:
            follower.queue.clear()
            follower.fell_behind = False
            missed: list[FeedEvent] | None = None
            while missed is None or len(missed) == BATCH:
                try:
                    missed = await self._in_thread(partial(self._read, read, last))
                except Unavailable:  # an outage of the database is waited for
                    yield None
                    await asyncio.sleep(_PAUSE_SECONDS)
                    continue
                for message in map(EventMessage, missed):
                    last = place(message)
                    yield message
            while not follower.fell_behind:
                while follower.queue and not follower.fell_behind:
                    message = follower.queue.popleft()
                    if place(message) > last:
                        last = place(message)
                        yield message
                follower.news.clear()
                if follower.queue or follower.fell_behind:
                    continue
                try:
                    async with asyncio.timeout(KEEP_ALIVE_SECONDS):
                        await follower.news.wait()
                except TimeoutError:
                    yield None
                    follower.fell_behind = follower.job_id is not None  # the job may be gone

    @contextmanager
    def _following(self, owner: str, job_id: str | None) -> Iterator[_Follower]:
        follower, key = _Follower(job_id=job_id), (owner, job_id)
        self._followers[key].add(follower)
        if self._task is None or self._task.done():
            self._started.clear()
            self._task = asyncio.create_task(self._read_on())
        try:
            yield follower
        finally:
            self._followers[key].discard(follower)
            if not self._followers[key]:
                del self._followers[key]

    async def _read_on(self) -> None:
        """Read and hand out what is new, as long as somebody follows."""
        self._position = None
        reachable = True
        while self.followers and not self._closed:
            try:
                found = await self._in_thread(self._read_new)
            except Unavailable as error:
                if reachable:
                    _log.warning("events cannot be read; streams wait", error=error.message)
                reachable = False
                await asyncio.sleep(_PAUSE_SECONDS)
                continue
            except Exception as error:
                _log.exception("events cannot be read; streams wait", error=type(error).__name__)
                await asyncio.sleep(_PAUSE_SECONDS)
                continue
            reachable = True
            self._started.set()
            for event in found:
                self._hand_out(EventMessage(event))
            if len(found) < BATCH:
                await asyncio.sleep(self._poll_seconds)

    def _hand_out(self, message: EventMessage) -> None:
        for job_id in (message.event.job_id, None):
            for follower in self._followers.get((message.owner, job_id), ()):
                follower.offer(message)

    def _read_new(self) -> list[FeedEvent]:
        number_all(self._database)
        with self._database.session(read_only=True) as session:
            if self._position is None:
                self._position = last_position(session)
                return []
            found = events_after(session, self._position, limit=BATCH, owner=None)
        if found:
            self._position = found[-1].position
        return found

    def _read(self, read: Callable[[LedgerSession, int], list[FeedEvent]], last: int) -> list[FeedEvent]:
        with self._database.session(read_only=True) as session:
            return read(session, last)

    async def _in_thread(self, call: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, call)
