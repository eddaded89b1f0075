"""A typed client of the service, for programs and for the command line. Needs Pydantic and httpx2 only.

    with Client("http://127.0.0.1:8000") as client:
        job = client.submit({"model": "org/name", "ratio": 0.25, "calibration": "builtin:pydoc-topics"})
        job = client.wait(job.id)

All methods raise `api.client.errors.ServiceError`. A `POST` that got no response may have taken effect, so the client
repeats none of them, except a `submit` with an idempotency key.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from functools import partial
from types import TracebackType
from typing import Self, TypeVar
from urllib.parse import quote

import httpx2

from api.client.access import CredentialsClient, KeysClient
from api.client.connection import Connection, QueryParameters
from api.client.errors import ServiceBroken, ServiceUnreachable
from api.client.models import (
    TERMINAL,
    CancelledJob,
    CancelledJobs,
    Family,
    Job,
    JobEvent,
    LogLine,
    Metric,
    Page,
    Worker,
)
from api.client.plan_models import Plan
from api.client.webhooks import WebhooksClient

DEFAULT_URL = "http://127.0.0.1:8000"
RETRY_SECONDS = 30.0
"""How long `watch`, `wait` and `follow` tolerate a service that is down."""
POLL_SECONDS = 0.5
SUBMIT_PAUSES_SECONDS = (0.5, 1.0, 2.0)
_EVENTS_PER_PAGE = 500

T = TypeVar("T")


class Client:
    """A connection pool to one service. A context manager; `timeout` in seconds, for each request.

    `api_key` is by default that of `REPLACEME_API_KEY` or, for a service on this machine, of `DATA/api-key`.
    """

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        api_key: str | None = None,
        timeout: float = 30.0,
        transport: httpx2.BaseTransport | None = None,
    ) -> None:
        self._connection = Connection(url, timeout=timeout, api_key=api_key, transport=transport)

        self.webhooks = WebhooksClient(self._connection)

    @property
    def url(self) -> str:
        return self._connection.url

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._connection.close()

    @property
    def keys(self) -> KeysClient:
        """The API keys of the service, for administrators."""
        return KeysClient(self._connection)

    @property
    def credentials(self) -> CredentialsClient:
        """The tokens for the Hub that are kept in the service for this client."""
        return CredentialsClient(self._connection)

    def submit(self, request: Mapping[str, object], *, idempotency_key: str | None = None) -> Job:
        """Submit a job (`POST /jobs`); the fields of `request` are those of the HTTP reference.

        With a key (1 to 255 visible ASCII characters, unique for each job) the request is repeated if it gets no
        response or a 5xx. All repetitions return the same job, whichever of them created it.
        """
        if idempotency_key is None:
            return self._connection.request(Job, "POST", "/jobs", body=request)
        headers = {"Idempotency-Key": idempotency_key}
        for pause in SUBMIT_PAUSES_SECONDS:
            try:
                return self._connection.request(Job, "POST", "/jobs", body=request, headers=headers)
            except (ServiceUnreachable, ServiceBroken):
                time.sleep(pause)
        return self._connection.request(Job, "POST", "/jobs", body=request, headers=headers)

    def plan(self, request: Mapping[str, object]) -> Plan:
        """What a job would take (`POST /plans`); nothing is queued. `request` is that of `submit`."""
        return self._connection.request(Plan, "POST", "/plans", body=request)

    def validate(self, request: Mapping[str, object]) -> Plan:
        """The plan for a request that `submit` would accept. Raises the error that `submit` would raise."""
        return self._connection.request(Plan, "POST", "/jobs", body={**request, "validate_only": True})

    def job(self, job_id: str) -> Job:
        return self._connection.request(Job, "GET", _path(job_id))

    def jobs(
        self,
        *,
        status: str | Sequence[str] = (),
        labels: Mapping[str, str] | None = None,
        model: str | None = None,
        created_after: datetime | None = None,
        created_before: datetime | None = None,
        sort: str | None = None,
        limit: int | None = None,
        cursor: str | None = None,
    ) -> Page[Job]:
        """Jobs that match all that is given, newest first or as `sort` says. Times without a zone are local."""
        times = {"created_after": created_after, "created_before": created_before}
        filters = {name: None if at is None else at.astimezone().isoformat() for name, at in times.items()}
        given = {"model": model, **filters, "sort": sort, "limit": limit, "cursor": cursor}
        query: QueryParameters = [("status", one) for one in ([status] if isinstance(status, str) else status)]
        query += [(name, str(value)) for name, value in given.items() if value]
        query += [("label", f"{name}={value}") for name, value in (labels or {}).items()]
        return self._connection.request(Page[Job], "GET", "/jobs", query=query)

    def cancel(self, job_id: str) -> Job:
        return self._connection.request(Job, "POST", _path(job_id, "cancel"))

    def cancel_matching(self, filters: Mapping[str, object]) -> tuple[CancelledJob, ...]:
        """Cancel all queued and running jobs that match (`POST /jobs/cancel`); `{"all": True}`: all of them."""
        found: list[CancelledJob] = []
        while True:
            answer = self._connection.request(CancelledJobs, "POST", "/jobs/cancel", body=filters)
            found += answer.items
            if not answer.more:
                return tuple(found)

    def retry(self, job_id: str, *, idempotency_key: str | None = None) -> Job:
        """A new job with the specification of one that has ended."""
        headers = {} if idempotency_key is None else {"Idempotency-Key": idempotency_key}
        return self._connection.request(Job, "POST", _path(job_id, "retry"), headers=headers)

    def delete(self, job_id: str) -> None:
        """Delete a job that has ended, with its events, metrics, log and report."""
        self._connection.request_nothing("DELETE", _path(job_id))

    def events(self, job_id: str, *, after: int = 0, limit: int = _EVENTS_PER_PAGE) -> Page[JobEvent]:
        """Events with a `seq` above `after`, oldest first."""
        query: QueryParameters = [("after", after), ("limit", limit)]
        return self._connection.request(Page[JobEvent], "GET", _path(job_id, "events"), query=query)

    def history(self, job_id: str) -> Iterator[JobEvent]:
        """All events so far, oldest first."""
        after = 0
        while (page := self.events(job_id, after=after)).items:
            yield from page.items
            if page.next_cursor is None:
                return
            after = page.items[-1].seq

    def metrics(self, job_id: str) -> tuple[Metric, ...]:
        return self._connection.request(Page[Metric], "GET", _path(job_id, "metrics")).items

    def log(self, job_id: str, *, after: int = 0) -> Iterator[LogLine]:
        """The lines that the runners of a job have written, with a `number` above `after`, oldest first."""
        while True:
            page = self._connection.request(Page[LogLine], "GET", _path(job_id, "logs"), query=[("after", after)])
            yield from page.items
            if page.next_cursor is None:
                return
            after = page.items[-1].number

    def workers(self) -> tuple[Worker, ...]:
        return self._connection.request(Page[Worker], "GET", "/workers").items

    def report(self, job_id: str) -> dict[str, object]:
        """The content of `replaceme.json` of a succeeded job."""
        return self._connection.request(dict[str, object], "GET", _path(job_id, "report"))

    def families(self) -> tuple[Family, ...]:
        """The model families, supported and refused."""
        return self._connection.request(Page[Family], "GET", "/families").items

    def watch(self, job_id: str, *, timeout: float | None = None) -> Iterator[Job]:
        """Poll the job until it has ended; the last item is terminal. Raises `TimeoutError`.

        Tolerates a service that is down for less than `RETRY_SECONDS`, such as during a restart.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            job = _retry_while_down(partial(self.job, job_id), until=deadline)
            yield job
            if job.is_terminal:
                return
            left = POLL_SECONDS if deadline is None else deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError(f"job {job_id} is still {job.status} after {timeout:g} seconds")
            time.sleep(min(POLL_SECONDS, left))

    def wait(self, job_id: str, *, timeout: float | None = None) -> Job:
        """The job once it has ended. Raises `TimeoutError`; the job continues."""
        *_, last = self.watch(job_id, timeout=timeout)
        return last

    def follow(self, job_id: str, *, after: int = 0) -> Iterator[JobEvent]:
        """Poll for events until the job has ended."""
        while True:
            page = _retry_while_down(partial(self.events, job_id, after=after))
            yield from page.items
            if page.items:
                after = page.items[-1].seq
                if page.items[-1].type in TERMINAL:
                    return
            else:
                time.sleep(POLL_SECONDS)


def _path(job_id: str, *rest: str) -> str:
    return "/".join(["/jobs", quote(job_id, safe=""), *rest])


def _retry_while_down(read: Callable[[], T], *, until: float | None = None) -> T:
    """Repeat a read while the service is down, at most `RETRY_SECONDS` and not past `until` (monotonic clock)."""
    give_up_at = time.monotonic() + RETRY_SECONDS
    if until is not None:
        give_up_at = min(give_up_at, max(until, time.monotonic()))
    while True:
        try:
            return read()
        except (ServiceUnreachable, ServiceBroken):
            if time.monotonic() >= give_up_at:
                raise
            time.sleep(POLL_SECONDS)
