"""What `GET /metrics` shows: the requests and webhooks of this process, and the service as a whole.

The latter is read from the database, so all processes of the API show the same. What was read is shown for some
seconds, so that frequent scrapes cost the database nothing. Labels have few values, whatever clients send.
"""

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from itertools import accumulate
from typing import Final

import structlog
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    Metric,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector
from sqlalchemy.orm import Session

from replaceme_core import errors
from replaceme_core.errors import ReplaceMeError, Unavailable
from replaceme_core.ledger.database import Database
from replaceme_core.ledger.states import DeliveryState, EventType
from replaceme_core.ledger.watching import BOUNDS, COUNTED, StageTotal, event_totals, gauges, number_all, stage_totals

NO_ROUTE: Final = "none"
"""The label of a request that no route got: nothing is at its path, or it was refused before."""
_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
DELIVERED = "delivered"


class Monitoring:
    """The metrics of one process. `streams` returns how many streams of events are open."""

    def __init__(self, database: Database, *, streams: Callable[[], int]) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # they would double the number of series
        # not the registry of the library, which is one for all applications in a process
        registry = self._registry = CollectorRegistry()
        self._requests = Counter(
            "replaceme_http_requests",
            "Requests that were answered.",
            ("method", "route", "status"),
            registry=registry,
        )
        self._seconds = Histogram(
            "replaceme_http_request_duration_seconds",
            "Time until a response began; a stream of events begins at once.",
            ("method", "route"),
            buckets=_BUCKETS,
            registry=registry,
        )
        self._tries = Counter(
            "replaceme_webhook_tries",
            "Tries to send a message, by what became of them: delivered, or what went wrong.",
            ("outcome",),
            registry=registry,
        )
        self._deliveries = Counter(
            "replaceme_webhook_deliveries",
            "Messages that are done: delivered, or failed after the last try.",
            ("state",),
            registry=registry,
        )
        for state in (DeliveryState.DELIVERED, DeliveryState.FAILED):
            self._deliveries.labels(state.value)  # shown before the first one
        Gauge("replaceme_event_streams", "Open streams of events.", registry=registry).set_function(streams)
        build = Info("replaceme_build", "The release that runs.", registry=registry)
        build.info({"version": metadata.version("replaceme")})
        registry.register(ServiceMetrics(database))
        ProcessCollector(registry=registry)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="metrics")

    def record_request(self, *, method: str, route: str | None, status: int, seconds: float) -> None:
        """Count one request. `route` is its template such as `/jobs/{job_id}`, `method` one that is known.

        `seconds`: until its response began.
        """
        route = route or NO_ROUTE
        self._requests.labels(method, route, str(status)).inc()
        self._seconds.labels(method, route).observe(seconds)

    def record_try(self, *, error: str | None, is_last: bool) -> None:
        """Count a try to send a message. `error` is one of the words of deliveries; `None`: delivered.

        `is_last`: no other follows.
        """
        self._tries.labels(error or DELIVERED).inc()
        if is_last:
            self._deliveries.labels((DeliveryState.FAILED if error else DeliveryState.DELIVERED).value).inc()

    async def scrape(self, *, accept: str) -> tuple[bytes, str]:
        """All metrics in the format that the header `accept` asks for, and the media type.

        In a thread of its own: a scrape must not wait behind requests that wait for the database.
        """
        encode, media_type = choose_encoder(accept)
        body = await asyncio.get_running_loop().run_in_executor(self._thread, encode, self._registry)
        return body, media_type

    def close(self) -> None:
        self._thread.shutdown(cancel_futures=True)


CACHE_SECONDS = 5.0
_NO_CODE = ""
_ERROR_CODES = frozenset(
    each.code for each in vars(errors).values() if isinstance(each, type) and issubclass(each, ReplaceMeError)
)
_log = structlog.get_logger(__name__)


class ServiceMetrics(Collector):
    """Reads the figures when it is collected, in one thread at a time."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._metrics: list[Metric] = []
        self._expires_at = float("-inf")

    def describe(self) -> list[Metric]:
        """Nothing: the registry would otherwise read the database to learn the names."""
        return []

    def collect(self) -> Iterator[Metric]:
        """All metrics; without the database only `replaceme_database_up`, which is 0 then."""
        if time.monotonic() >= self._expires_at:
            up = GaugeMetricFamily("replaceme_database_up", "1 if the figures below could be read from the database.")
            found = self._read()
            up.add_metric([], float(bool(found)))
            self._metrics = [up, *found]
            self._expires_at = time.monotonic() + CACHE_SECONDS
        return iter(self._metrics)

    def _read(self) -> list[Metric]:
        try:
            number_all(self._database)
            with self._database.session(read_only=True) as session:
                totals = [_of_events(event_totals(session)), _of_stages(stage_totals(session))]
                return [*_of_gauges(session), *totals]
        except Unavailable:  # logged by the session
            return []
        except ReplaceMeError as error:
            _log.warning("the metrics of the service cannot be read", error=error.explained)
            return []


def _of_gauges(session: Session) -> Iterator[Metric]:
    for gauge in gauges(session):
        family = GaugeMetricFamily(f"replaceme_{gauge.name}", gauge.text, labels=gauge.labels)
        for labels, value in gauge.values.items():
            family.add_metric(labels, value)
        yield family


def _of_events(totals: Mapping[tuple[str, str], int]) -> Metric:
    events = CounterMetricFamily(
        "replaceme_job_events",
        "Events of jobs: submitted (created), attempts (claimed) and how they ended; of failures with the error code.",
        labels=("type", "code"),
    )
    # all from the start: to Prometheus, a counter that begins with 1 has not increased, and the first failure is missed
    counted = {(kind.value, _NO_CODE): 0 for kind in COUNTED}
    counted |= {(EventType.FAILED.value, code): 0 for code in _ERROR_CODES}
    for (kind, code), count in sorted({**counted, **totals}.items()):
        events.add_metric([kind, code], count)
    return events


def _of_stages(totals: Mapping[str, StageTotal]) -> Metric:
    stages = HistogramMetricFamily(
        "replaceme_stage_duration_seconds",
        "How long stages of jobs took, those of lost attempts too.",
        labels=("stage",),
    )
    for stage, total in sorted(totals.items()):
        bounds = [*(str(float(bound)) for bound in BOUNDS), "+Inf"]
        buckets = list(zip(bounds, accumulate(map(float, total.counts)), strict=True))
        stages.add_metric([stage], buckets=buckets, sum_value=total.seconds)
    return stages
