"""What a process of the API connects to, each created once: database, queue, Hub, readers, metrics."""

import asyncio
from functools import cached_property
from threading import Lock

from api.auth.callers import Callers
from api.auth.rate import RateLimits
from api.auth.sessions import Sessions
from api.jobs.batched_reader import BatchedReader
from api.jobs.event_feed import EventFeed
from api.jobs.planning import Planning
from api.jobs.report_pages import ReportPages
from api.jobs.submission import Submitter
from api.monitoring.monitoring import Monitoring
from api.queue import Queue
from api.webhooks.delivery import Delivery
from replaceme_core.hub.open import open_hub
from replaceme_core.hub.port import Hub
from replaceme_core.jobs.session import Database
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

    @property
    def monitoring(self) -> Monitoring | None:
        """`None` where the operator wants no metrics."""
        with self._lock:
            return self._monitoring

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
    def _monitoring(self) -> Monitoring | None:
        if self.settings.metrics_key is None:
            return None
        feed = self._feed
        return Monitoring(self._database, streams=lambda: feed.followers)

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
        for name in ("_monitoring", "_reader", "_callers", "_database", "_queue"):
            service: Monitoring | BatchedReader | Callers | Database | Queue | None = self.__dict__.pop(name, None)
            if service is not None:
                service.close()
