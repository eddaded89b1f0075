"""Typed client of the service, synchronous, over httpx2. Knows HTTP and the public JSON only.

    with Client("http://127.0.0.1:8000") as client:
        job = client.submit({"model": "org/name", "ratio": 0.25, "calibration": "builtin:pydoc-topics"})
        job = client.wait(job.id)

Errors, all of them `ServiceError`:

    ServiceError
    |-- ServiceUnreachable     nothing answered, or not in time
    |-- NotTheService          something answered, but not as this service does
    `-- Refused                an answer that is a problem: status, code, detail, errors
        |-- NotAllowed         401, 403
        |-- Missing            404
        |-- Conflicting        409
        |-- Invalid            422; `errors` name field, value and what would be right
        `-- ServiceBroken      5xx

A `POST` whose answer was lost may have been carried out, so none is sent twice, apart from a `submit` with a key.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from types import TracebackType
from typing import Self, TypeVar
from urllib.parse import quote, urlsplit

import httpx2
from pydantic import TypeAdapter, ValidationError

from api.client.models import TERMINAL, Family, Job, JobEvent, Metric, Page, Problem

DEFAULT_URL = "http://127.0.0.1:8000"
PATIENCE_SECONDS = 30.0
POLL_SECONDS = 0.5
SUBMIT_PAUSES_SECONDS = (0.5, 1.0, 2.0)
_EVENTS_A_PAGE = 500

T = TypeVar("T")
_Query = list[tuple[str, str | int | float | bool | None]]


class ServiceError(Exception):
    """Base of what `Client` raises; `str(error)` is one sentence for a person."""


class ServiceUnreachable(ServiceError):
    pass


class NotTheService(ServiceError):
    pass


class Refused(ServiceError):
    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.detail or problem.title or f"HTTP {problem.status}")
        self.problem = problem


class NotAllowed(Refused):
    pass


class Missing(Refused):
    pass


class Conflicting(Refused):
    pass


class Invalid(Refused):
    pass


class ServiceBroken(Refused):
    pass


_REFUSALS: Mapping[int, type[Refused]] = {
    401: NotAllowed,
    403: NotAllowed,
    404: Missing,
    409: Conflicting,
    422: Invalid,
}


class Client:
    """One connection pool to one service. A context manager; `timeout` in seconds, for each request."""

    def __init__(
        self, url: str = DEFAULT_URL, *, timeout: float = 30.0, transport: httpx2.BaseTransport | None = None
    ) -> None:
        self.url = url.rstrip("/")
        try:
            # a proxy named in the environment is not meant for a service on this machine
            local = urlsplit(self.url).hostname in ("127.0.0.1", "::1", "localhost")
            self._http = httpx2.Client(base_url=self.url, timeout=timeout, transport=transport, trust_env=not local)
        except (httpx2.InvalidURL, ValueError) as error:
            raise ServiceUnreachable(f"{url!r} is not an address: {error}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def submit(self, request: Mapping[str, object], *, idempotency_key: str | None = None) -> Job:
        """`POST /jobs`; the fields of `request` are those of the HTTP reference.

        With a key (1 to 255 visible ASCII characters, one for each job) it is sent again when nothing answers or the
        service fails: the same job comes back, whichever of the tries made it.
        """
        if idempotency_key is None:
            return self._ask(Job, "POST", "/jobs", body=request)
        headers = {"Idempotency-Key": idempotency_key}
        for pause in SUBMIT_PAUSES_SECONDS:
            try:
                return self._ask(Job, "POST", "/jobs", body=request, headers=headers)
            except (ServiceUnreachable, ServiceBroken):
                time.sleep(pause)
        return self._ask(Job, "POST", "/jobs", body=request, headers=headers)

    def job(self, job_id: str) -> Job:
        return self._ask(Job, "GET", f"/jobs/{_part(job_id)}")

    def jobs(
        self,
        *,
        status: str | None = None,
        labels: Mapping[str, str] | None = None,
        limit: int | None = None,
        cursor: str | None = None,
    ) -> Page[Job]:
        """Newest first."""
        query: _Query = [
            *(
                (name, str(value))
                for name, value in {"status": status, "limit": limit, "cursor": cursor}.items()
                if value
            ),
            *(("label", f"{name}={value}") for name, value in (labels or {}).items()),
        ]
        return self._ask(Page[Job], "GET", "/jobs", query=query)

    def cancel(self, job_id: str) -> Job:
        return self._ask(Job, "POST", f"/jobs/{_part(job_id)}/cancel")

    def events(self, job_id: str, *, after: int = 0, limit: int = _EVENTS_A_PAGE) -> Page[JobEvent]:
        """Oldest first, those with a `seq` above `after`."""
        query: _Query = [("after", after), ("limit", limit)]
        return self._ask(Page[JobEvent], "GET", f"/jobs/{_part(job_id)}/events", query=query)

    def history(self, job_id: str) -> Iterator[JobEvent]:
        """All events so far, oldest first."""
        after = 0
        while (page := self.events(job_id, after=after)).items:
            yield from page.items
            if page.next_cursor is None:
                return
            after = page.items[-1].seq

    def metrics(self, job_id: str) -> tuple[Metric, ...]:
        return self._ask(Page[Metric], "GET", f"/jobs/{_part(job_id)}/metrics").items

    def report(self, job_id: str) -> dict[str, object]:
        """The content of `replaceme.json` of a job that succeeded."""
        answer = self._request("GET", f"/jobs/{_part(job_id)}/report")
        return self._read(TypeAdapter(dict[str, object]), answer)

    def families(self) -> tuple[Family, ...]:
        """The families of models that the service can compress."""
        return self._ask(Page[Family], "GET", "/families").items

    def watch(self, job_id: str, *, timeout: float | None = None) -> Iterator[Job]:
        """The job again and again until it has ended; the last one is terminal. Raises `TimeoutError`.

        A service that is away for less than `PATIENCE_SECONDS` (a restart) is waited for.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            job = _patiently(partial(self.job, job_id), until=deadline)
            yield job
            if job.is_terminal:
                return
            left = POLL_SECONDS if deadline is None else deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError(f"job {job_id} is still {job.status} after {timeout:g} seconds")
            time.sleep(min(POLL_SECONDS, left))

    def wait(self, job_id: str, *, timeout: float | None = None) -> Job:
        """The job once it has ended. Raises `TimeoutError`; the job goes on."""
        *_, last = self.watch(job_id, timeout=timeout)
        return last

    def follow(self, job_id: str, *, after: int = 0) -> Iterator[JobEvent]:
        """Events as they come, until the job has ended."""
        while True:
            page = _patiently(partial(self.events, job_id, after=after))
            yield from page.items
            if page.items:
                after = page.items[-1].seq
                if page.items[-1].type in TERMINAL:
                    return
            else:
                time.sleep(POLL_SECONDS)

    def _ask(
        self,
        shape: type[T],
        method: str,
        path: str,
        *,
        body: Mapping[str, object] | None = None,
        query: _Query | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> T:
        return self._read(TypeAdapter(shape), self._request(method, path, body=body, query=query, headers=headers))

    def _request(
        self,
        method: str,
        path: str,
        *,
        body: Mapping[str, object] | None = None,
        query: _Query | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> httpx2.Response:
        try:
            answer = self._http.request(method, path, json=body, params=query, headers=headers)
        except httpx2.TimeoutException as error:
            raise ServiceUnreachable(f"the service at {self.url} did not answer in time") from error
        except (httpx2.TransportError, httpx2.InvalidURL) as error:
            raise ServiceUnreachable(f"no service answers at {self.url}: {error}") from error
        if not answer.is_success:
            raise self._refusal(answer)
        return answer

    def _read(self, shape: TypeAdapter[T], answer: httpx2.Response) -> T:
        try:
            return shape.validate_json(answer.content)
        except ValidationError as error:
            first = error.errors()[0]
            raise NotTheService(
                f"{self.url} answered {answer.request.method} {answer.request.url.path} with something else than "
                f"this service does: {first['msg']}"
            ) from error

    def _refusal(self, answer: httpx2.Response) -> ServiceError:
        kind = ServiceBroken if answer.is_server_error else _REFUSALS.get(answer.status_code, Refused)
        try:
            problem = Problem.model_validate_json(answer.content)
        except ValidationError:
            problem = Problem(title=f"HTTP {answer.status_code} {answer.reason_phrase}".strip())
        return kind(problem.model_copy(update={"status": answer.status_code}))


def _part(text: str) -> str:
    return quote(text, safe="")


def _patiently(ask: Callable[[], T], *, until: float | None = None) -> T:
    """Repeat a question (never an order) while the service is away."""
    give_up = time.monotonic() + PATIENCE_SECONDS
    if until is not None:
        give_up = min(give_up, max(until, time.monotonic()))
    while True:
        try:
            return ask()
        except (ServiceUnreachable, ServiceBroken):
            if time.monotonic() >= give_up:
                raise
            time.sleep(POLL_SECONDS)
