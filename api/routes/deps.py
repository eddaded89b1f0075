"""What a process of the API has once: what it connects to, and the pages that it has drawn; what routes get of it.

Dependencies that only look up a value are `async`: the framework runs plain functions in its thread pool.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, lru_cache, partial
from typing import Annotated, TypeVar

from fastapi import Depends, Request

from api.http import deadline
from api.http.callers import Callers, Sessions, caller_of
from api.http.guard import RateLimits
from api.http.requests import idempotency_key
from api.monitoring import Monitoring
from api.queue import Queue
from api.routes.delivery import Delivery
from api.routes.event_feed import EventFeed
from api.routes.planning import Planning, Slots
from api.routes.reading import BatchedReader
from api.routes.submission import Submitter
from replaceme_core.errors import Unavailable
from replaceme_core.ledger.database import Database, LedgerSession
from replaceme_core.ledger.keys import Keys
from replaceme_core.report.page import plots_of, render_page
from replaceme_core.report.plots import Format, Plot, can_draw, rendered
from replaceme_core.secrets_box import SecretsBox
from replaceme_core.settings import Settings

MOST_KEPT = 64
"""Pages, and plots, of about 100 kB to 1 MB each."""
MOST_WAITING = 50
_Made = TypeVar("_Made", bytes, bytes | None)
WRITE_SLOTS, WRITE_SLOTS_OF_ONE = 5, 4
"""Transactions that write at the same time, of all callers and of one owner: fewer than connections in the pool, and
far fewer than threads."""


class ReportPages:
    """Pages and plots of reports: drawn outside of the event loop, and kept for those who come back.

    In one thread, because drawing takes a second of a processor, and the allocator keeps what was freed for each thread
    that has drawn, about 10 MB. What has begun goes on where nobody waits for it any more.

    Raises `Unavailable` where too many are waiting.
    """

    def __init__(self, *, most_kept: int = MOST_KEPT) -> None:
        self._asking = 0  # those who wait, and the one for whom something is being drawn
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="reports")
        # of the report as JSON: one that changes is another one
        self._plot = lru_cache(most_kept)(_drawn)
        self._page = lru_cache(most_kept)(self._rendered)

    async def page(self, report: Mapping[str, object], *, back: str = "") -> bytes:
        """The HTML of a report, the content of `replaceme.json`; `back` is the address of the page of its job."""
        return await self._made(report, partial(self._page, back=back))

    async def plot(self, report: Mapping[str, object], name: str, kind: Format) -> bytes | None:
        """The plot of that name; `None` where the report has none, and without matplotlib."""
        return await self._made(report, partial(self._plot, name=name, kind=kind))

    async def _made(self, report: Mapping[str, object], make: Callable[[str], _Made]) -> _Made:
        if self._asking > MOST_WAITING:
            raise Unavailable("too many reports are being drawn; try again in a minute")
        self._asking += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, make, json.dumps(report))
        finally:
            self._asking -= 1

    def _rendered(self, text: str, back: str) -> bytes:
        """A page with the plots that the page of the job has shown before."""

        def draw(plot: Plot) -> bytes:
            return self._plot(text, name=plot.name, kind="svg") or b""

        return render_page(json.loads(text), back=back, draw=draw).encode()

    def close(self) -> None:
        self._thread.shutdown(cancel_futures=True)


def _drawn(text: str, name: str, kind: Format) -> bytes | None:
    plot = next((one for one in plots_of(json.loads(text)) if one.name == name), None) if can_draw() else None
    return None if plot is None else rendered(plot, kind)


class Services:
    """What the process connects to, at the first use of each. Raises `InvalidInput` for an invalid setting."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.write_slots = Slots(WRITE_SLOTS, of_one=WRITE_SLOTS_OF_ONE, doing="writing")
        self.database = Database(settings.resolved_database_url)
        self.queue = Queue(settings)
        self.reader = BatchedReader(self.database)
        self.feed = EventFeed(self.database)
        self.callers = Callers(settings, self.database)
        self.planning = Planning(settings=settings, database=self.database, hub=settings.open_hub())
        self.report_pages = ReportPages()
        self.rate_limits = RateLimits(requests_per_minute=settings.requests_per_minute)
        self.monitoring = Monitoring(self.database, streams=lambda: self.feed.followers)
        self.submitter = Submitter(
            settings=settings,
            database=self.database,
            queue=self.queue,
            open_secrets_box=lambda: self.secrets_box,
            planning=self.planning,
            write_slots=self.write_slots,
        )
        self._delivery = Delivery(settings=settings, record=self.monitoring.record_try)
        if settings.deliver_webhooks:
            self._delivery.start()

    @cached_property
    def secrets_box(self) -> SecretsBox:
        """Made where it is needed: its key may be in a file, which is made with it."""
        return self.settings.secrets_box()

    @cached_property
    def sessions(self) -> Sessions:
        return Sessions(self.secrets_box)

    def close(self) -> None:
        self._delivery.stop()
        for service in (self.monitoring, self.reader, self.callers, self.report_pages, self.database, self.queue):
            service.close()


# Dependencies of routes


async def services(request: Request) -> Services:
    found: Services = request.app.state.services()
    return found


ServicesDep = Annotated[Services, Depends(services)]


async def write_slot(services: ServicesDep, request: Request) -> AsyncIterator[None]:
    """Wait for a write slot without occupying a thread.

    Between a route and its commit the framework takes a thread once more, to validate the response. If requests that
    wait for this one's connection or lock occupied all threads, this one would never get it: a deadlock.
    """
    async with services.write_slots.hold(caller_of(request.scope).owner):
        yield


WriteSlotDep = Annotated[None, Depends(write_slot, scope="function")]


def writing_session(services: ServicesDep, request: Request, _: WriteSlotDep) -> Iterator[LedgerSession]:
    with services.database.session() as session:
        yield session
        deadline.check(request.scope)


def reading_session(services: ServicesDep) -> Iterator[LedgerSession]:
    with services.database.session(read_only=True) as session:
        yield session


# scope="function": the commit happens after the route and before its response is sent. With the default scope a client
# would already have received 202 when a commit fails.
SessionDep = Annotated[LedgerSession, Depends(writing_session, scope="function")]
ReadingSessionDep = Annotated[LedgerSession, Depends(reading_session, scope="function")]


async def keys(session: SessionDep, services: ServicesDep) -> Keys:
    session.after_commit.append(services.callers.forget)
    return Keys(session)


KeysDep = Annotated[Keys, Depends(keys)]
IdempotencyKeyDep = Annotated[str | None, Depends(idempotency_key)]


async def caller(request: Request) -> str:
    """The owner of the jobs that a request may see; every query is limited to it."""
    return caller_of(request.scope).owner


CallerDep = Annotated[str, Depends(caller)]
