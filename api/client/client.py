"""A typed client of the service, for programs and for the command line. Needs Pydantic and httpx2 only.

    with Client("http://127.0.0.1:8000") as client:
        job = client.submit({"model": "org/name", "ratio": 0.25, "calibration": "builtin:pydoc-topics"})
        job = client.wait(job.id)

All methods raise `api.client.errors.ServiceError`. A request is repeated where that is safe (`flows.pause_before`): a
`POST` that got no response may have taken effect, so only those are that do nothing the second time, such as a `submit`
with an idempotency key. `api.client.async_client.AsyncClient` has the same methods for asyncio.
"""

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from types import TracebackType
from typing import Self

import httpx2

from api.client import flows
from api.client.access import CredentialsClient, KeysClient
from api.client.connection import Connection
from api.client.models import (
    CancelledJob,
    Family,
    Job,
    JobEvent,
    LogLine,
    Metric,
    Page,
    Worker,
)
from api.client.requests import jobs as requests
from api.client.responses.plan import Plan
from api.client.webhooks import WebhooksClient

DEFAULT_URL = "http://127.0.0.1:8000"


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
        self.keys = KeysClient(self._connection)
        """The API keys of the service, for administrators."""
        self.credentials = CredentialsClient(self._connection)
        """The tokens for the Hub that are kept in the service for this client."""

    @property
    def url(self) -> str:
        return self._connection.exchange.url

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._connection.close()

    def submit(self, request: Mapping[str, object], *, idempotency_key: str | None = None) -> Job:
        """Submit a job (`POST /jobs`); the fields of `request` are those of the HTTP reference.

        With a key (1 to 255 visible ASCII characters, unique for each job) the request is repeated if it gets no
        response or a 5xx. All repetitions return the same job, whichever of them created it.
        """
        return self._connection.send(requests.submit(request, idempotency_key=idempotency_key))

    def plan(self, request: Mapping[str, object]) -> Plan:
        """What a job would take (`POST /plans`); nothing is queued. `request` is that of `submit`."""
        return self._connection.send(requests.plan(request))

    def validate(self, request: Mapping[str, object]) -> Plan:
        """The plan for a request that `submit` would accept. Raises the error that `submit` would raise."""
        return self._connection.send(requests.validate(request))

    def job(self, job_id: str) -> Job:
        return self._connection.send(requests.job(job_id))

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
        return self._connection.send(
            requests.jobs(
                status=status,
                labels=labels,
                model=model,
                created_after=created_after,
                created_before=created_before,
                sort=sort,
                limit=limit,
                cursor=cursor,
            )
        )

    def cancel(self, job_id: str) -> Job:
        return self._connection.send(requests.cancel(job_id))

    def cancel_matching(self, filters: Mapping[str, object]) -> tuple[CancelledJob, ...]:
        """Cancel all queued and running jobs that match (`POST /jobs/cancel`); `{"all": True}`: all of them."""
        return self._connection.run(flows.cancel_matching(filters))

    def retry(self, job_id: str, *, idempotency_key: str | None = None) -> Job:
        """A new job with the specification of one that has ended."""
        return self._connection.send(requests.retry(job_id, idempotency_key=idempotency_key))

    def delete(self, job_id: str) -> None:
        """Delete a job that has ended, with its events, metrics, log and report."""
        self._connection.send(requests.delete(job_id))

    def events(self, job_id: str, *, after: int = 0, limit: int = requests.EVENTS_PER_PAGE) -> Page[JobEvent]:
        """Events with a `seq` above `after`, oldest first."""
        return self._connection.send(requests.events(job_id, after=after, limit=limit))

    def history(self, job_id: str) -> Iterator[JobEvent]:
        """All events so far, oldest first."""
        return self._connection.iterate(flows.pages(lambda cursor: requests.events(job_id, after=cursor or 0)))

    def stream(self, job_id: str | None = None, *, after: int | None = None) -> Iterator[JobEvent]:
        """Events as they happen; resumes where the connection is lost, so that each comes once and in order.

        Those of a job begin behind the `seq` `after` (all of them) and end with the job. Those of all jobs begin behind
        the position `after` (from now on), and do not end.
        """
        return self._connection.iterate(flows.stream(job_id, after=after))

    def log(self, job_id: str) -> Iterator[LogLine]:
        """The last lines that the runners of a job have written, oldest first."""
        return self._connection.iterate(flows.pages(lambda cursor: requests.log(job_id, after=cursor or 0)))

    def follow_log(self, job_id: str) -> Iterator[LogLine]:
        """The lines as they come, until the job has ended."""
        return self._connection.iterate(flows.follow_log(job_id))

    def metrics(self, job_id: str) -> tuple[Metric, ...]:
        """What the present attempt has measured."""
        return self._connection.send(requests.metrics(job_id)).items

    def report(self, job_id: str) -> dict[str, object]:
        """The content of `replaceme.json` of a succeeded job."""
        return self._connection.send(requests.report(job_id))

    def workers(self) -> tuple[Worker, ...]:
        """The workers that are alive, and those that were lost within the last hour."""
        return self._connection.send(requests.workers()).items

    def families(self) -> tuple[Family, ...]:
        """The model families, supported and refused."""
        return self._connection.send(requests.families()).items

    def watch(self, job_id: str, *, timeout: float | None = None) -> Iterator[Job]:
        """The job whenever it has changed; the last item is terminal. Raises `TimeoutError`.

        Asks as often as the service wants to be asked. Tolerates a service that is down for less than
        `flows.DOWN_SECONDS`, such as during a restart.
        """
        return self._connection.iterate(flows.watch(job_id, timeout=timeout))

    def wait(self, job_id: str, *, timeout: float | None = None) -> Job:
        """The job once it has ended. Raises `TimeoutError`; the job continues."""
        *_, last = self.watch(job_id, timeout=timeout)
        return last
