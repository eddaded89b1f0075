"""Dependencies of the routes: the ledger in one transaction, the queue, the Hub, the caller.

Dependencies that only look up a value are `async`: the framework runs plain functions in its thread pool.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator
from functools import cached_property
from threading import Lock
from typing import Annotated

from fastapi import Depends, Request

from api.auth.caller import caller_of
from api.auth.callers import Callers
from api.auth.rate import RateLimits
from api.auth.sessions import Sessions
from api.http import deadline
from api.http.idempotency import idempotency_key
from api.jobs.batched_reader import BatchedReader
from api.jobs.event_feed import EventFeed
from api.jobs.planning import Planning
from api.jobs.submission import Submitter
from api.queue import Queue
from api.webhooks.delivery import Delivery
from replaceme_core.hub.open import open_hub
from replaceme_core.hub.port import Hub
from replaceme_core.jobs.access.keys import Keys
from replaceme_core.jobs.access.owners import Owners
from replaceme_core.jobs.repository import Jobs
from replaceme_core.jobs.session import Database, LedgerSession
from replaceme_core.jobs.webhooks.repository import Webhooks
from replaceme_core.secrets_box import SecretsBox
from replaceme_core.settings import Settings

WRITE_SLOTS = 5
"""Transactions that write at the same time: fewer than connections in the pool, and far fewer than threads."""


class Services:
    """What the process connects to. Each is created on first use: importing the application connects to nothing."""

    def __init__(self, settings: Settings | None = None) -> None:
        self._given = settings
        self._lock = Lock()
        self.write_slots = asyncio.Semaphore(WRITE_SLOTS)

    @cached_property
    def settings(self) -> Settings:
        return self._given or Settings()

    @property
    def database(self) -> Database:
        with self._lock:  # two threads that enter a cached_property at once would create two
            return self._database

    @property
    def queue(self) -> Queue:
        with self._lock:
            return self._queue

    @property
    def hub(self) -> Hub:
        with self._lock:
            return self._hub

    @property
    def reader(self) -> BatchedReader:
        with self._lock:
            return self._reader

    @property
    def feed(self) -> EventFeed:
        with self._lock:
            return self._feed

    @property
    def secrets_box(self) -> SecretsBox:
        with self._lock:
            return self._secrets_box

    @property
    def callers(self) -> Callers:
        with self._lock:
            return self._callers

    @cached_property
    def sessions(self) -> Sessions:  # without the lock: only the event loop asks for it
        return Sessions(self.secrets_box)

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

    @property
    def planning(self) -> Planning:
        with self._lock:
            return self._planning

    @cached_property
    def _planning(self) -> Planning:
        return Planning(settings=self.settings, database=self._database, hub=self._hub)

    @cached_property
    def _reader(self) -> BatchedReader:
        return BatchedReader(self._database)

    @cached_property
    def _feed(self) -> EventFeed:
        return EventFeed(self._database)

    @cached_property
    def _callers(self) -> Callers:
        return Callers(self.settings, self._database)

    @cached_property
    def _database(self) -> Database:
        return Database(self.settings.resolved_database_url)

    @cached_property
    def _queue(self) -> Queue:
        return Queue(self.settings)

    @cached_property
    def _hub(self) -> Hub:
        return open_hub(self.settings)

    @cached_property
    def _secrets_box(self) -> SecretsBox:
        return self.settings.secrets_box()

    @cached_property
    def _delivery(self) -> Delivery:
        return Delivery(settings=self.settings)

    def open(self) -> None:
        """Create all of them, so that an invalid setting stops the process at its start, not a request later."""
        _ = (self.settings, self.database, self.queue, self.hub, self.reader, self.feed, self.callers)
        if self.settings.deliver_webhooks:
            self._delivery.start()

    def close(self) -> None:
        """Close those that were created."""
        delivery: Delivery | None = self.__dict__.pop("_delivery", None)
        if delivery is not None:
            delivery.stop()
        for name in ("_reader", "_callers", "_database", "_queue"):
            service: BatchedReader | Callers | Database | Queue | None = self.__dict__.pop(name, None)
            if service is not None:
                service.close()


async def services(request: Request) -> Services:
    found: Services = request.app.state.services
    return found


ServicesDep = Annotated[Services, Depends(services)]


async def database(services: ServicesDep) -> Database:
    return services.database


async def submitter(services: ServicesDep) -> Submitter:
    return services.submitter


async def planning(services: ServicesDep) -> Planning:
    return services.planning


async def feed(services: ServicesDep) -> EventFeed:
    return services.feed


async def reader(request: Request) -> BatchedReader:
    found: Services = request.app.state.services  # without a nested dependency: this is the busiest route's
    return found.reader


DatabaseDep = Annotated[Database, Depends(database)]
PlanningDep = Annotated[Planning, Depends(planning)]
SubmitterDep = Annotated[Submitter, Depends(submitter)]
ReaderDep = Annotated[BatchedReader, Depends(reader)]
FeedDep = Annotated[EventFeed, Depends(feed)]


async def write_slot(services: ServicesDep) -> AsyncIterator[None]:
    """Wait for a write slot without occupying a thread.

    Between a route and its commit the framework takes a thread once more, to validate the response. If requests that
    wait for this one's connection or lock occupied all threads, this one would never get it: a deadlock.
    """
    async with services.write_slots:
        yield


WriteSlotDep = Annotated[None, Depends(write_slot, scope="function")]


def writing_session(database: DatabaseDep, request: Request, _: WriteSlotDep) -> Iterator[LedgerSession]:
    with database.session() as session:
        yield session
        deadline.check(request.scope)


def reading_session(database: DatabaseDep) -> Iterator[LedgerSession]:
    with database.session(read_only=True) as session:
        yield session


# scope="function": the commit happens after the route and before its response is sent. With the default scope a client
# would already have received 202 when a commit fails.
SessionDep = Annotated[LedgerSession, Depends(writing_session, scope="function")]
ReadingSessionDep = Annotated[LedgerSession, Depends(reading_session, scope="function")]


async def jobs(session: SessionDep) -> Jobs:
    return Jobs(session)


async def jobs_to_read(session: ReadingSessionDep) -> Jobs:
    return Jobs(session)


async def webhooks(session: SessionDep) -> Webhooks:
    return Webhooks(session)


async def webhooks_to_read(session: ReadingSessionDep) -> Webhooks:
    return Webhooks(session)


JobsDep = Annotated[Jobs, Depends(jobs)]
JobsToReadDep = Annotated[Jobs, Depends(jobs_to_read)]
WebhooksDep = Annotated[Webhooks, Depends(webhooks)]
WebhooksToReadDep = Annotated[Webhooks, Depends(webhooks_to_read)]


async def keys(session: SessionDep, services: ServicesDep) -> Keys:
    session.after_commit(services.callers.forget)
    return Keys(session)


async def keys_to_read(session: ReadingSessionDep) -> Keys:
    return Keys(session)


async def owners(session: SessionDep) -> Owners:
    return Owners(session)


async def owners_to_read(session: ReadingSessionDep) -> Owners:
    return Owners(session)


KeysDep = Annotated[Keys, Depends(keys)]
KeysToReadDep = Annotated[Keys, Depends(keys_to_read)]
OwnersDep = Annotated[Owners, Depends(owners)]
OwnersToReadDep = Annotated[Owners, Depends(owners_to_read)]


IdempotencyKeyDep = Annotated[str | None, Depends(idempotency_key)]


async def caller(request: Request) -> str:
    """The owner of the jobs that a request may see; every query is limited to it."""
    return caller_of(request.scope).owner


CallerDep = Annotated[str, Depends(caller)]
