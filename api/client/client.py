"""A typed client of the service, for programs and for the command line. Needs Pydantic and httpx2 only.

    with Client("http://127.0.0.1:8000") as client:
        job = client.submit({"model": "org/name", "ratio": 0.25, "calibration": "builtin:pydoc-topics"})
        job = client.wait(job.id)

All methods raise `api.client.errors.ServiceError`. A request is repeated where that is safe: a `POST` that got no
response may have taken effect, so only those are that do nothing the second time, such as a `submit` with an
idempotency key.
"""

import math
import re
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Self

import httpx2
from pydantic import ValidationError

from api.client.connection import POLL_SECONDS, Connection, T, given, path_of, pause_while_down, rest, retry_after
from api.client.errors import NotTheService, ServiceError
from api.client.models import TERMINAL, Job, JobEvent, Webhook
from replaceme_core.shapes import (
    ApiKey,
    CancelledJob,
    CancelledJobs,
    CreatedApiKey,
    Credential,
    Delivery,
    Family,
    LogLine,
    Metric,
    OwnerSettings,
    Page,
    Plan,
    WholeDelivery,
    Worker,
)

DEFAULT_URL = "http://127.0.0.1:8000"
_EVENTS_PER_PAGE = 500
_KEYS_PER_PAGE = 200


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

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._connection.close()

    def submit(self, request: Mapping[str, object], *, idempotency_key: str | None = None) -> Job:
        """Submit a job (`POST /jobs`); the fields of `request` are those of the HTTP reference.

        With a key (1 to 255 visible ASCII characters, unique for each job) the request is repeated if it gets no
        response or a 5xx. All repetitions return the same job, whichever of them created it.
        """
        _check_kind(request, is_sweep=False)
        return self._create("/jobs", kind=Job, key=idempotency_key, body=request)

    def submit_sweep(self, request: Mapping[str, object], *, idempotency_key: str | None = None) -> tuple[Job, ...]:
        """Submit one job per number in the list `ratio` of `request`, all or none; they share the label `sweep`."""
        _check_kind(request, is_sweep=True)
        return self._create("/jobs", key=idempotency_key, body=request, kind=Page[Job]).items

    def retry(self, job_id: str, *, idempotency_key: str | None = None) -> Job:
        """A new job with the specification of one that has ended."""
        return self._create(path_of("jobs", job_id, "retry"), kind=Job, key=idempotency_key)

    def _create(self, path: str, *, kind: type[T], key: str | None, body: Mapping[str, object] | None = None) -> T:
        if key is not None and not is_idempotency_key(key):
            raise ValueError(f"an idempotency key is 1 to 255 visible ASCII characters, not {key!r}")
        headers = {} if key is None else {"Idempotency-Key": key}
        return self._connection.ask(kind, "POST", path, body=body, headers=headers, is_repeatable=key is not None)

    def plan(self, request: Mapping[str, object]) -> Plan:
        """What a job would take (`POST /plans`); nothing is queued. `request` is that of `submit`."""
        return self._connection.ask(Plan, "POST", "/plans", body=request, is_repeatable=True)

    def validate(self, request: Mapping[str, object]) -> Plan:
        """The plan for a request that `submit` would accept. Raises the error that `submit` would raise."""
        _check_kind(request, is_sweep=False)
        body = {**request, "validate_only": True}
        return self._connection.ask(Plan, "POST", "/jobs", body=body, is_repeatable=True)

    def job(self, job_id: str) -> Job:
        return self._connection.ask(Job, "GET", path_of("jobs", job_id))

    def jobs(
        self,
        *,
        status: str | Sequence[str] = (),
        labels: Mapping[str, str] | None = None,
        model: str | None = None,
        id_prefix: str | None = None,
        created_after: datetime | None = None,
        created_before: datetime | None = None,
        sort: str | None = None,
        limit: int | None = None,
        cursor: str | None = None,
    ) -> Page[Job]:
        """Jobs that match all that is given, newest first or as `sort` says. Times without a zone are local."""
        query = [
            *(("status", one) for one in ([status] if isinstance(status, str) else status)),
            ("model", model),
            ("id_prefix", id_prefix),
            ("created_after", with_zone(created_after)),
            ("created_before", with_zone(created_before)),
            ("sort", sort),
            ("limit", limit),
            ("cursor", cursor),
            *(("label", f"{name}={value}") for name, value in (labels or {}).items()),
        ]
        return self._connection.ask(Page[Job], "GET", "/jobs", query=query)

    def cancel(self, job_id: str) -> Job:
        return self._connection.ask(Job, "POST", path_of("jobs", job_id, "cancel"), is_repeatable=True)

    def cancel_matching(self, filters: Mapping[str, object]) -> tuple[CancelledJob, ...]:
        """Cancel all queued and running jobs that match (`POST /jobs/cancel`); `{"all": True}`: all of them."""
        cancelled: list[CancelledJob] = []
        while True:
            found = self._connection.ask(CancelledJobs, "POST", "/jobs/cancel", body=filters, is_repeatable=True)
            cancelled += found.items
            if not found.more:
                return tuple(cancelled)

    def delete(self, job_id: str) -> None:
        """Delete a job that has ended, with its events, metrics, log and report."""
        self._connection.send("DELETE", path_of("jobs", job_id), deletes=True)

    def events(self, job_id: str, *, after: int = 0, limit: int = _EVENTS_PER_PAGE) -> Page[JobEvent]:
        """Events with a `seq` above `after`, oldest first."""
        query = [("after", after), ("limit", limit)]
        return self._connection.ask(Page[JobEvent], "GET", path_of("jobs", job_id, "events"), query=query)

    def history(self, job_id: str) -> Iterator[JobEvent]:
        """All events so far, oldest first."""
        path, query = path_of("jobs", job_id, "events"), [("limit", _EVENTS_PER_PAGE)]
        return self._connection.items(Page[JobEvent], path, query=query, cursor_name="after")

    def stream(self, job_id: str | None = None, *, after: int | None = None) -> Iterator[JobEvent]:
        """Events as they happen; resumes where the connection is lost, so that each comes once and in order.

        Those of a job begin behind the `seq` `after` (all of them) and end with the job. Those of all jobs begin behind
        the position `after` (from now on), and do not end.
        """
        path = "/events" if job_id is None else path_of("jobs", job_id, "events")
        last, seen_at = "" if after is None else str(after), time.monotonic()
        while True:
            least = 0.0
            headers = {"Accept": "text/event-stream", **({"Last-Event-ID": last} if last else {})}
            try:
                with self._connection.opened("GET", path, headers=headers) as response:
                    if response.status_code == httpx2.codes.NO_CONTENT:
                        return  # the job has ended, and there is nothing behind the last event
                    seen_at = time.monotonic()
                    try:
                        for message in httpx2.EventSource(response):
                            least = least if message.retry is None else message.retry / 1000
                            last = message.id or last  # of one without data too: it is where a stream begins
                            if message.data:
                                event = _event(message.data)
                                yield event
                                if job_id is not None and event.type in TERMINAL:
                                    return
                    finally:
                        if response.num_bytes_downloaded:  # comments too, which are no messages
                            seen_at = time.monotonic()
            except ServiceError as error:
                rest(max(pause_while_down(error, down_since=seen_at), least), error)
            else:
                time.sleep(max(POLL_SECONDS, least))

    def log(self, job_id: str) -> Iterator[LogLine]:
        """The last lines that the runners of a job have written, oldest first."""
        return self._connection.items(Page[LogLine], path_of("jobs", job_id, "logs"), cursor_name="after")

    def follow_log(self, job_id: str) -> Iterator[LogLine]:
        """The lines as they come, until the job has ended."""
        after = 0
        while True:
            # before the lines, so that the last ones are not missed
            response = self._connection.send_while_down(path_of("jobs", job_id))
            path = path_of("jobs", job_id, "logs")
            found = self._connection.send_while_down(path, query=[("after", after)])
            page = self._connection.read(Page[LogLine], found)
            for line in page.items:
                after = line.number
                yield line
            if page.next_cursor is not None:
                continue
            if self._connection.read(Job, response).is_terminal:
                return
            time.sleep(_pause_after(response))

    def metrics(self, job_id: str) -> tuple[Metric, ...]:
        """What the present attempt has measured."""
        return self._connection.ask(Page[Metric], "GET", path_of("jobs", job_id, "metrics")).items

    def report(self, job_id: str) -> dict[str, object]:
        """The content of `replaceme.json` of a succeeded job."""
        return self._connection.ask(dict[str, object], "GET", path_of("jobs", job_id, "report"))

    def workers(self) -> tuple[Worker, ...]:
        """The workers that are alive, and those that were lost within the last hour."""
        return self._connection.ask(Page[Worker], "GET", "/workers").items

    def families(self) -> tuple[Family, ...]:
        """The model families, supported and refused."""
        return self._connection.ask(Page[Family], "GET", "/families").items

    def watch(self, job_id: str, *, timeout: float | None = None) -> Iterator[Job]:
        """The job whenever it has changed; the last item is terminal. Raises `TimeoutError`, and `ServiceUnreachable`
        where the service does not answer for as long.

        Asks as often as the service wants to be asked. Tolerates a service that is down for less than 30 seconds, such
        as during a restart.
        """
        until = math.inf if timeout is None else time.monotonic() + timeout
        known: dict[str, str] = {}
        status = "unknown"
        while True:
            response = self._connection.send_while_down(path_of("jobs", job_id), until=until, headers=known)
            if response.status_code != httpx2.codes.NOT_MODIFIED:
                job = self._connection.read(Job, response)
                yield job
                if job.is_terminal:
                    return
                status, tag = job.status, response.headers.get("etag")
                known = {"If-None-Match": tag} if tag else {}
            left = until - time.monotonic()
            if left <= 0:
                raise TimeoutError(f"job {job_id} is still {status} after {timeout:g} s")
            time.sleep(min(_pause_after(response), left))

    def wait(self, job_id: str, *, timeout: float | None = None) -> Job:
        """The job once it has ended. Raises `TimeoutError`; the job continues."""
        return deque(self.watch(job_id, timeout=timeout), maxlen=1).pop()  # a job that runs for days changes often


def _event(data: str) -> JobEvent:
    try:
        return JobEvent.model_validate_json(data)
    except ValidationError as error:
        raise NotTheService(f"an event is not one of this service: {error.errors()[0]['msg']}") from error


def is_idempotency_key(text: str) -> bool:
    """Whether the service takes it as one."""
    return re.fullmatch("[!-~]{1,255}", text) is not None


def _check_kind(request: Mapping[str, object], *, is_sweep: bool) -> None:
    """Raise `ValueError` for what would be queued, and then answered in a form that the method does not return."""
    if isinstance(request.get("ratio"), (list, tuple)) is not is_sweep:
        raise ValueError("`ratio` is a list for submit_sweep, and no list for submit and validate")


def with_zone(at: datetime | None) -> str | None:
    """As the service reads it; a time without a zone is local."""
    return None if at is None else at.astimezone().isoformat()


def _pause_after(response: httpx2.Response) -> float:
    """Seconds until the service wants to be asked again."""
    seconds = retry_after(response)
    return POLL_SECONDS if seconds is None else seconds


class KeysClient:
    """API keys. The key that is sent needs the scope `admin`."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def create(self, request: Mapping[str, object]) -> CreatedApiKey:
        """Create a key (`POST /keys`); the fields of `request` are those of the HTTP reference."""
        return self._connection.ask(CreatedApiKey, "POST", "/keys", body=request)

    def list(self, *, owner: str | None = None) -> Iterator[ApiKey]:
        """All keys, newest first."""
        query = [("owner", owner), ("limit", _KEYS_PER_PAGE)]
        return self._connection.items(Page[ApiKey], "/keys", query=query, cursor_name="cursor")

    def revoke(self, key_id: str) -> ApiKey:
        return self._connection.ask(ApiKey, "DELETE", path_of("keys", key_id))

    def rotate(self, key_id: str, *, overlap_seconds: int) -> CreatedApiKey:
        """Replace a key; the old one is valid for `overlap_seconds` more."""
        path, body = path_of("keys", key_id, "rotate"), {"overlap_seconds": overlap_seconds}
        return self._connection.ask(CreatedApiKey, "POST", path, body=body)

    def set_output_namespaces(self, owner: str, names: tuple[str, ...] | None) -> OwnerSettings:
        """Say where results of an owner may go; `None`: where those of everybody may."""
        return self._connection.ask(OwnerSettings, "PUT", path_of("owners", owner), body={"output_namespaces": names})


class CredentialsClient:
    """Tokens for the Hub that the service keeps. No method returns one."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def set(self, name: str, token: str) -> Credential:
        """Store a token under a name, in place of an earlier one."""
        return self._connection.ask(Credential, "PUT", path_of("credentials", name), body={"token": token})

    def list(self) -> tuple[Credential, ...]:
        return self._connection.ask(Page[Credential], "GET", "/credentials").items

    def delete(self, name: str) -> None:
        self._connection.send("DELETE", path_of("credentials", name), deletes=True)


class WebhooksClient:
    """The webhooks of a caller, and the messages to them."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def create(
        self,
        url: str,
        *,
        events: Sequence[str] | None = None,
        labels: Mapping[str, str] | None = None,
        payload: str | None = None,
    ) -> Webhook:
        """A webhook for all jobs. `secret` is in this response only."""
        body = given(url=url, events=events, labels=labels, payload=payload)
        return self._connection.ask(Webhook, "POST", "/webhooks", body=body)

    def page(self, *, job_id: str | None = None, limit: int | None = None, cursor: str | None = None) -> Page[Webhook]:
        """Standing webhooks, or those of a job, newest first."""
        query = [("job", job_id), ("limit", limit), ("cursor", cursor)]
        return self._connection.ask(Page[Webhook], "GET", "/webhooks", query=query)

    def get(self, webhook_id: str) -> Webhook:
        return self._connection.ask(Webhook, "GET", path_of("webhooks", webhook_id))

    def update(
        self,
        webhook_id: str,
        *,
        url: str | None = None,
        events: Sequence[str] | None = None,
        labels: Mapping[str, str] | None = None,
        payload: str | None = None,
        enabled: bool | None = None,
    ) -> Webhook:
        """Change what is given."""
        body = given(url=url, events=events, labels=labels, payload=payload, enabled=enabled)
        return self._connection.ask(Webhook, "PATCH", path_of("webhooks", webhook_id), body=body)

    def delete(self, webhook_id: str) -> None:
        self._connection.send("DELETE", path_of("webhooks", webhook_id), deletes=True)

    def rotate(self, webhook_id: str, *, overlap_seconds: float | None = None) -> Webhook:
        """A new `secret`, which is in this response only. The old one also signs for `overlap_seconds` (a day)."""
        path, body = path_of("webhooks", webhook_id, "rotate"), given(overlap_seconds=overlap_seconds)
        return self._connection.ask(Webhook, "POST", path, body=body)

    def deliveries(
        self, webhook_id: str, *, state: str | None = None, limit: int | None = None, cursor: str | None = None
    ) -> Page[Delivery]:
        """The messages to a webhook, newest first."""
        query = [("state", state), ("limit", limit), ("cursor", cursor)]
        path = path_of("webhooks", webhook_id, "deliveries")
        return self._connection.ask(Page[Delivery], "GET", path, query=query)

    def delivery(self, webhook_id: str, delivery_id: str) -> WholeDelivery:
        """One message with its body."""
        path = path_of("webhooks", webhook_id, "deliveries", delivery_id)
        return self._connection.ask(WholeDelivery, "GET", path)

    def redeliver(self, webhook_id: str, delivery_id: str) -> Delivery:
        """Send a message again, with the same id and body."""
        path = path_of("webhooks", webhook_id, "deliveries", delivery_id, "redeliver")
        return self._connection.ask(Delivery, "POST", path)
