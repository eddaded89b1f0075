"""What a process of the API connects to, each created once, and what routes are given of it.

Dependencies that only look up a value are `async`: the framework runs plain functions in its thread pool.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from functools import cached_property
from threading import RLock
from typing import Annotated, Any, Generic, TypeVar

from fastapi import Depends, Request

from api.http import deadline
from api.http.callers import Callers, Sessions, caller_of
from api.http.guard import RateLimits
from api.http.requests import idempotency_key
from api.monitoring import Monitoring
from api.queue import Queue
from api.routes.delivery import Delivery
from api.routes.event_feed import EventFeed
from api.routes.planning import Planning
from api.routes.reading import BatchedReader
from api.routes.report_pages import ReportPages
from api.routes.submission import Submitter
from replaceme_core.hub.port import Hub
from replaceme_core.ledger.database import Database, LedgerSession
from replaceme_core.ledger.keys import Keys
from replaceme_core.secrets_box import SecretsBox
from replaceme_core.settings import Settings

Service = TypeVar("Service")
WRITE_SLOTS = 5
"""Transactions that write at the same time: fewer than connections in the pool, and far fewer than threads."""


class shared(Generic[Service]):
    """A service that is created once, although several threads may be the first to ask for it."""

    def __init__(self, create: Callable[[Any], Service]) -> None:
        self._create = create
        self.__doc__ = create.__doc__

    def __set_name__(self, _: type, name: str) -> None:
        self._name = name

    def __get__(self, services: "Services", _: type | None = None) -> Service:
        found = services.__dict__  # once it is there, the attribute itself is found, without the lock
        with services.lock:
            if self._name not in found:
                found[self._name] = self._create(services)
        service: Service = found[self._name]
        return service


class Services:
    """What the process connects to. Each is created on first use: importing the application connects to nothing."""

    def __init__(self, settings: Settings | None = None) -> None:
        self._given = settings
        self.lock = RLock()  # the services that one is made of are created while it is
        self.write_slots = asyncio.Semaphore(WRITE_SLOTS)

    @cached_property
    def settings(self) -> Settings:
        return self._given or Settings()

    @shared
    def database(self) -> Database:
        return Database(self.settings.resolved_database_url)

    @shared
    def queue(self) -> Queue:
        return Queue(self.settings)

    @shared
    def hub(self) -> Hub:
        return self.settings.open_hub()

    @shared
    def reader(self) -> BatchedReader:
        return BatchedReader(self.database)

    @shared
    def feed(self) -> EventFeed:
        return EventFeed(self.database)

    @shared
    def secrets_box(self) -> SecretsBox:
        return self.settings.secrets_box()

    @shared
    def callers(self) -> Callers:
        return Callers(self.settings, self.database)

    @shared
    def planning(self) -> Planning:
        return Planning(settings=self.settings, database=self.database, hub=self.hub)

    @shared
    def monitoring(self) -> Monitoring | None:
        """`None` where the operator wants no metrics."""
        if self.settings.metrics_key is None:
            return None
        feed = self.feed
        return Monitoring(self.database, streams=lambda: feed.followers)

    @cached_property
    def sessions(self) -> Sessions:  # without the lock: only the event loop asks for it
        return Sessions(self.secrets_box)

    @cached_property
    def report_pages(self) -> ReportPages:  # the same
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
        return Delivery(settings=self.settings, record=None if monitoring is None else monitoring.webhooks.record)

    def open(self) -> None:
        """Create all of them, so that an invalid setting stops the process at its start, not a request later."""
        _ = (self.settings, self.database, self.queue, self.hub, self.reader, self.feed, self.callers, self.monitoring)
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


async def write_slot(services: ServicesDep) -> AsyncIterator[None]:
    """Wait for a write slot without occupying a thread.

    Between a route and its commit the framework takes a thread once more, to validate the response. If requests that
    wait for this one's connection or lock occupied all threads, this one would never get it: a deadlock.
    """
    async with services.write_slots:
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
    session.after_commit(services.callers.forget)
    return Keys(session)


KeysDep = Annotated[Keys, Depends(keys)]
IdempotencyKeyDep = Annotated[str | None, Depends(idempotency_key)]


async def caller(request: Request) -> str:
    """The owner of the jobs that a request may see; every query is limited to it."""
    return caller_of(request.scope).owner


CallerDep = Annotated[str, Depends(caller)]
