"""Requests about jobs and what belongs to them."""

from collections.abc import Mapping, Sequence
from datetime import datetime

from api.client.models import (
    CancelledJobs,
    Family,
    Job,
    JobEvent,
    LogLine,
    Metric,
    Page,
    Worker,
)
from api.client.requests.request import Request, Value, path_of
from api.client.responses.plan import Plan

EVENTS_PER_PAGE = 500
_KEY = "Idempotency-Key"


def submit(request: Mapping[str, object], *, idempotency_key: str | None) -> Request[Job]:
    return _made("/jobs", key=idempotency_key, body=request)


def retry(job_id: str, *, idempotency_key: str | None) -> Request[Job]:
    return _made(path_of("jobs", job_id, "retry"), key=idempotency_key)


def _made(path: str, *, key: str | None, body: Mapping[str, object] | None = None) -> Request[Job]:
    """With a key all repetitions return the same job, whichever of them created it."""
    headers = {} if key is None else {_KEY: key}
    return Request.of(Job, "POST", path, body=body, headers=headers, is_repeatable=key is not None)


def plan(request: Mapping[str, object]) -> Request[Plan]:
    return Request.of(Plan, "POST", "/plans", body=request, is_repeatable=True)


def validate(request: Mapping[str, object]) -> Request[Plan]:
    return Request.of(Plan, "POST", "/jobs", body={**request, "validate_only": True}, is_repeatable=True)


def job(job_id: str, *, tag: str = "") -> Request[Job]:
    """With the tag of the version that is known, the answer is empty until there is another."""
    return Request.of(Job, "GET", path_of("jobs", job_id), headers={"If-None-Match": tag} if tag else {})


def jobs(
    *,
    status: str | Sequence[str],
    labels: Mapping[str, str] | None,
    model: str | None,
    created_after: datetime | None,
    created_before: datetime | None,
    sort: str | None,
    limit: int | None,
    cursor: str | None,
) -> Request[Page[Job]]:
    query: list[tuple[str, Value]] = [("status", one) for one in ([status] if isinstance(status, str) else status)]
    query += [("model", model), ("created_after", _time(created_after)), ("created_before", _time(created_before))]
    query += [("sort", sort), ("limit", limit), ("cursor", cursor)]
    query += [("label", f"{name}={value}") for name, value in (labels or {}).items()]
    return Request.of(Page[Job], "GET", "/jobs", query=query)


def _time(at: datetime | None) -> str | None:
    return None if at is None else at.astimezone().isoformat()


def cancel(job_id: str) -> Request[Job]:
    return Request.of(Job, "POST", path_of("jobs", job_id, "cancel"), is_repeatable=True)


def cancel_matching(filters: Mapping[str, object]) -> Request[CancelledJobs]:
    return Request.of(CancelledJobs, "POST", "/jobs/cancel", body=filters, is_repeatable=True)


def delete(job_id: str) -> Request[None]:
    return Request.of(None, "DELETE", path_of("jobs", job_id))


def events(job_id: str, *, after: int | str, limit: int = EVENTS_PER_PAGE) -> Request[Page[JobEvent]]:
    query: list[tuple[str, Value]] = [("after", after), ("limit", limit)]
    return Request.of(Page[JobEvent], "GET", path_of("jobs", job_id, "events"), query=query)


def stream(job_id: str | None, *, last: str) -> Request[None]:
    """Server-sent events behind the one with the id `last`; of all jobs without one: from now on."""
    path = "/events" if job_id is None else path_of("jobs", job_id, "events")
    resume = {"Last-Event-ID": last} if last else {}
    return Request.of(None, "GET", path, headers={"Accept": "text/event-stream", **resume})


def log(job_id: str, *, after: int | str) -> Request[Page[LogLine]]:
    return Request.of(Page[LogLine], "GET", path_of("jobs", job_id, "logs"), query=[("after", after)])


def metrics(job_id: str) -> Request[Page[Metric]]:
    return Request.of(Page[Metric], "GET", path_of("jobs", job_id, "metrics"))


def report(job_id: str) -> Request[dict[str, object]]:
    return Request.of(dict[str, object], "GET", path_of("jobs", job_id, "report"))


def workers() -> Request[Page[Worker]]:
    return Request.of(Page[Worker], "GET", "/workers")


def families() -> Request[Page[Family]]:
    return Request.of(Page[Family], "GET", "/families")
