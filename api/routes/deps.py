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
from replaceme_core.hub.port import Hub
from replaceme_core.ledger.database import Database, LedgerSession
from replaceme_core.ledger.keys import Keys
from replaceme_core.secrets_box import SecretsBox
from replaceme_core.settings import Settings

WRITE_SLOTS, WRITE_SLOTS_OF_ONE = 5, 4
"""Transactions that write at the same time, of all callers and of one owner: fewer than connections in the pool, and
far fewer than threads."""


class Services:
    """What the process connects to. Each is created on first use: importing the application connects to nothing.

    `open` creates what threads share, before there are requests.
    """

    def __init__(self, settings: Settings | None = None) -> None:
        self._given = settings
        self.write_slots = Slots(WRITE_SLOTS, of_one=WRITE_SLOTS_OF_ONE, doing="writing")

    @cached_property
    def settings(self) -> Settings:
        return self._given or Settings()

    @cached_property
    def database(self) -> Database:
        return Database(self.settings.resolved_database_url)

    @cached_property
    def queue(self) -> Queue:
        return Queue(self.settings)

    @cached_property
    def hub(self) -> Hub:
        return self.settings.open_hub()

    @cached_property
    def reader(self) -> BatchedReader:
        return BatchedReader(self.database)

    @cached_property
    def feed(self) -> EventFeed:
        return EventFeed(self.database)

    @cached_property
    def secrets_box(self) -> SecretsBox:
        return self.settings.secrets_box()

    @cached_property
    def callers(self) -> Callers:
        return Callers(self.settings, self.database)

    @cached_property
    def planning(self) -> Planning:
        return Planning(settings=self.settings, database=self.database, hub=self.hub)

    @cached_property
    def monitoring(self) -> Monitoring | None:
        """`None` where the operator wants no metrics."""
        if self.settings.metrics_key is None:
            return None
        feed = self.feed
        return Monitoring(self.database, streams=lambda: feed.followers)

    @cached_property
    def sessions(self) -> Sessions:
        return Sessions(self.secrets_box)

    @cached_property
    def report_pages(self) -> ReportPages:
        return ReportPages()

    @cached_property
    def rate_limits(self) -> RateLimits:
        return RateLimits(requests_per_minute=self.settings.requests_per_minute)

    @property
    def submitter(self) -> Submitter:
        return Submitter(
            settings=self.settings,
            database=self.database,
            queue=self.queue,
            open_secrets_box=lambda: self.secrets_box,
            planning=self.planning,
            write_slots=self.write_slots,
        )

    @cached_property
    def _delivery(self) -> Delivery:
        monitoring = self.monitoring
        return Delivery(settings=self.settings, record=None if monitoring is None else monitoring.record_try)

    def open(self) -> None:
        """Create all of them, so that an invalid setting stops the process at its start, not a request later."""
        _ = (self.settings, self.database, self.queue, self.hub, self.reader, self.feed, self.callers, self.monitoring)
        _ = self.planning
        if self.settings.deliver_webhooks:
            self._delivery.start()

    def close(self) -> None:
        """Close those that were created."""
        delivery: Delivery | None = self.__dict__.pop("_delivery", None)
        if delivery is not None:
            delivery.stop()
        for name in ("monitoring", "reader", "callers", "database", "queue"):
            service: Monitoring | BatchedReader | Callers | Database | Queue | None = self.__dict__.pop(name, None)
            if service is not None:
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
