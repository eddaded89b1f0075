"""Metrics of HTTP requests, counted by this process. Labels have few values, whatever clients send."""

from typing import Final

from prometheus_client import CollectorRegistry, Counter, Histogram

NO_ROUTE: Final = "none"
"""The label of a request that no route got: nothing is at its path, or it was refused before."""
_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class RequestMetrics:
    """Counts requests."""

    def __init__(self, registry: CollectorRegistry) -> None:
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

    def record(self, *, method: str, route: str | None, status: int, seconds: float) -> None:
        """Count one request. `route` is its template such as `/jobs/{job_id}`, `method` one that is known."""
        route = route or NO_ROUTE
        self._requests.labels(method, route, str(status)).inc()
        self._seconds.labels(method, route).observe(seconds)
