"""The client for asyncio: the methods of `api.client.client.Client`, with the same arguments, errors and repetitions.

async with AsyncClient("http://127.0.0.1:8000") as client:
    job = await client.submit({"model": "org/name", "ratio": 0.25, "calibration": "builtin:pydoc-topics"})
    async for event in client.stream(job.id):
        print(event.type)
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import datetime
from types import TracebackType
from typing import Self

import httpx2

from api.client import flows
from api.client.async_access import AsyncCredentialsClient, AsyncKeysClient
from api.client.async_connection import AsyncConnection
from api.client.async_webhooks import AsyncWebhooksClient
from api.client.client import DEFAULT_URL
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


class AsyncClient:
    """A connection pool to one service. A context manager; `timeout` in seconds, for each request.

    `api_key` is by default that of `REPLACEME_API_KEY` or, for a service on this machine, of `DATA/api-key`.
    """

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        api_key: str | None = None,
        timeout: float = 30.0,
        transport: httpx2.AsyncBaseTransport | None = None,
    ) -> None:
        self._connection = AsyncConnection(url, timeout=timeout, api_key=api_key, transport=transport)
        self.webhooks = AsyncWebhooksClient(self._connection)
        self.keys = AsyncKeysClient(self._connection)
        """The API keys of the service, for administrators."""
        self.credentials = AsyncCredentialsClient(self._connection)
        """The tokens for the Hub that are kept in the service for this client."""

    @property
    def url(self) -> str:
        return self._connection.exchange.url

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        await self._connection.close()

    async def submit(self, request: Mapping[str, object], *, idempotency_key: str | None = None) -> Job:
        """Submit a job (`POST /jobs`); the fields of `request` are those of the HTTP reference.

        With a key (1 to 255 visible ASCII characters, unique for each job) the request is repeated if it gets no
        response or a 5xx. All repetitions return the same job, whichever of them created it.
        """
        return await self._connection.send(requests.submit(request, idempotency_key=idempotency_key))

    async def plan(self, request: Mapping[str, object]) -> Plan:
        """What a job would take (`POST /plans`); nothing is queued. `request` is that of `submit`."""
        return await self._connection.send(requests.plan(request))

    async def validate(self, request: Mapping[str, object]) -> Plan:
        """The plan for a request that `submit` would accept. Raises the error that `submit` would raise."""
        return await self._connection.send(requests.validate(request))

    async def job(self, job_id: str) -> Job:
        return await self._connection.send(requests.job(job_id))

    async def jobs(
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
        return await self._connection.send(
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

    async def cancel(self, job_id: str) -> Job:
        return await self._connection.send(requests.cancel(job_id))

    async def cancel_matching(self, filters: Mapping[str, object]) -> tuple[CancelledJob, ...]:
        """Cancel all queued and running jobs that match (`POST /jobs/cancel`); `{"all": True}`: all of them."""
        return await self._connection.run(flows.cancel_matching(filters))

    async def retry(self, job_id: str, *, idempotency_key: str | None = None) -> Job:
        """A new job with the specification of one that has ended."""
        return await self._connection.send(requests.retry(job_id, idempotency_key=idempotency_key))

    async def delete(self, job_id: str) -> None:
        """Delete a job that has ended, with its events, metrics, log and report."""
        await self._connection.send(requests.delete(job_id))

    async def events(self, job_id: str, *, after: int = 0, limit: int = requests.EVENTS_PER_PAGE) -> Page[JobEvent]:
        """Events with a `seq` above `after`, oldest first."""
        return await self._connection.send(requests.events(job_id, after=after, limit=limit))

    def history(self, job_id: str) -> AsyncIterator[JobEvent]:
        """All events so far, oldest first."""
        return self._connection.iterate(flows.pages(lambda cursor: requests.events(job_id, after=cursor or 0)))

    def stream(self, job_id: str | None = None, *, after: int | None = None) -> AsyncIterator[JobEvent]:
        """Events as they happen; resumes where the connection is lost, so that each comes once and in order.

        Those of a job begin behind the `seq` `after` (all of them) and end with the job. Those of all jobs begin behind
        the position `after` (from now on), and do not end.
        """
        return self._connection.iterate(flows.stream(job_id, after=after))

    def log(self, job_id: str) -> AsyncIterator[LogLine]:
        """The last lines that the runners of a job have written, oldest first."""
        return self._connection.iterate(flows.pages(lambda cursor: requests.log(job_id, after=cursor or 0)))

    def follow_log(self, job_id: str) -> AsyncIterator[LogLine]:
        """The lines as they come, until the job has ended."""
        return self._connection.iterate(flows.follow_log(job_id))

    async def metrics(self, job_id: str) -> tuple[Metric, ...]:
        """What the present attempt has measured."""
        return (await self._connection.send(requests.metrics(job_id))).items

    async def report(self, job_id: str) -> dict[str, object]:
        """The content of `replaceme.json` of a succeeded job."""
        return await self._connection.send(requests.report(job_id))

    async def workers(self) -> tuple[Worker, ...]:
        """The workers that are alive, and those that were lost within the last hour."""
        return (await self._connection.send(requests.workers())).items

    async def families(self) -> tuple[Family, ...]:
        """The model families, supported and refused."""
        return (await self._connection.send(requests.families())).items

    def watch(self, job_id: str, *, timeout: float | None = None) -> AsyncIterator[Job]:
        """The job whenever it has changed; the last item is terminal. Raises `TimeoutError`.

        Asks as often as the service wants to be asked. Tolerates a service that is down for less than
        `flows.DOWN_SECONDS`, such as during a restart.
        """
        return self._connection.iterate(flows.watch(job_id, timeout=timeout))

    async def wait(self, job_id: str, *, timeout: float | None = None) -> Job:
        """The job once it has ended. Raises `TimeoutError`; the job continues."""
        return [job async for job in self.watch(job_id, timeout=timeout)][-1]
