"""What a process of the API connects to, each created once, and what routes are given of it.

Dependencies that only look up a value are `async`: the framework runs plain functions in its thread pool.
"""

from collections.abc import AsyncIterator, Iterator
from functools import cached_property
from typing import Annotated

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
from api.routes.report_pages import ReportPages
from api.routes.submission import Submitter
from replaceme_core.ledger.database import Database, LedgerSession
from replaceme_core.ledger.keys import Keys
from replaceme_core.secrets_box import SecretsBox
from replaceme_core.settings import Settings

WRITE_SLOTS, WRITE_SLOTS_OF_ONE = 5, 4
"""Transactions that write at the same time, of all callers and of one owner: fewer than connections in the pool, and
far fewer than threads."""


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
        for service in (self.monitoring, self.reader, self.callers, self.database, self.queue):
            service.close()


# Dependencies of routes


async def services(request: Request) -> Services:
    found: Services = request.app.state.services
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
