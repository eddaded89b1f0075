"""What `GET /metrics` shows: the requests and webhooks of this process, and the service as a whole."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata

from prometheus_client import CollectorRegistry, Gauge, Info, ProcessCollector, disable_created_metrics
from prometheus_client.exposition import choose_encoder

from api.monitoring.request_metrics import RequestMetrics
from api.monitoring.service_metrics import ServiceMetrics
from api.monitoring.webhook_metrics import WebhookMetrics
from replaceme_core.ledger.database import Database


class Monitoring:
    """The metrics of one process. `streams` returns how many streams of events are open."""

    def __init__(self, database: Database, *, streams: Callable[[], int]) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # they would double the number of series
        # not the registry of the library, which is one for all applications in a process
        self._registry = CollectorRegistry()
        self.requests = RequestMetrics(self._registry)
        self.webhooks = WebhookMetrics(self._registry)
        Gauge("replaceme_event_streams", "Open streams of events.", registry=self._registry).set_function(streams)
        build = Info("replaceme_build", "The release that runs.", registry=self._registry)
        build.info({"version": metadata.version("replaceme")})
        self._registry.register(ServiceMetrics(database))
        ProcessCollector(registry=self._registry)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="metrics")

    async def scrape(self, *, accept: str) -> tuple[bytes, str]:
        """All metrics in the format that the header `accept` asks for, and the media type.

        In a thread of its own: a scrape must not wait behind requests that wait for the database.
        """
        encode, media_type = choose_encoder(accept)
        body = await asyncio.get_running_loop().run_in_executor(self._thread, encode, self._registry)
        return body, media_type

    def close(self) -> None:
        self._thread.shutdown(cancel_futures=True)
