"""What a process of the API connects to, each created once: database, queue, Hub, readers, metrics."""

import asyncio
from collections.abc import Callable
from functools import cached_property
from threading import RLock
from typing import Any, Generic, TypeVar

from api.auth.callers import Callers
from api.auth.rate import RateLimits, ReadingSlots
from api.auth.sessions import Sessions
from api.jobs.batched_reader import BatchedReader
from api.jobs.event_feed import EventFeed
from api.jobs.planning import Planning
from api.jobs.report_pages import ReportPages
from api.jobs.submission import Submitter
from api.jobs.webhook_delivery import Delivery
from api.monitoring.monitoring import Monitoring
from api.queue import Queue
from replaceme_core.hub.open import open_hub
from replaceme_core.hub.port import Hub
from replaceme_core.ledger.database import Database
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
        return open_hub(self.settings)

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
        return Planning(settings=self.settings, database=self.database, hub=self.hub, slots=ReadingSlots())

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
