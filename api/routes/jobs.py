"""Jobs: submit, list, get, cancel, retry, delete, and their log, metrics and report."""

import re
from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Annotated, Any, Self
from urllib.parse import urlencode

from fastapi import APIRouter, Body, Query, Request, Response
from fastapi.responses import HTMLResponse
from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    model_validator,
)
from pydantic.main import IncEx
from starlette.concurrency import run_in_threadpool

from api.bodies import JobBody, JobPartBody, LinksBody, Parameters, WholeJobBody
from api.http import deadline
from api.http.callers import Caller, caller_of
from api.http.hosts import root_of
from api.http.problems import MethodRefused
from api.http.requests import StrictRoute, wait_seconds
from api.http.responses import (
    CHECKED,
    NO_STORE,
    UNCHANGED,
    is_known,
    known_tags,
    link_to_next,
    listed,
    not_modified,
    tag_of,
    tagged,
)
from api.request_bodies import SWEEP, JobRequest
from api.routes.deps import CallerDep, IdempotencyKeyDep, ReadingSessionDep, Services, ServicesDep, SessionDep
from api.routes.plans import DEEPEST, ONE_TEXT, PlanBody
from api.routes.reading import JobSeen, headers_of, retry_after
from api.routes.submission import Submitted
from api.routes.webhooks import WebhookLinks, WebhookWithSecretBody
from replaceme_core import shapes
from replaceme_core.ledger import changes, reading
from replaceme_core.ledger.attempts import KEPT_LINES
from replaceme_core.ledger.database import Database
from replaceme_core.ledger.reading import CURSOR_PATTERN, JobFilters, Sort
from replaceme_core.ledger.records import Job
from replaceme_core.ledger.states import JobStatus
from replaceme_core.report.page import policy
from replaceme_core.request.fields import Labels, LabelText, Name, one_of, wrong
from replaceme_core.runner.messages import Stage
from replaceme_core.shapes import BEGINNING_OF_ID, LogLine, Page
from replaceme_core.wording import json_safe

router = APIRouter(tags=["jobs"], route_class=StrictRoute)
history = APIRouter(tags=["history"])
_HIGHEST_NUMBER = 2**31 - 1


# Bodies and query parameters

MOST_JOBS = 500
MOST_IDS = 200
_LABEL_TEXT: TypeAdapter[str] = TypeAdapter(LabelText)
_RFC_3339 = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)")


def _written_out(value: object) -> object:
    """Pydantic would take a number for seconds since 1970."""
    if not isinstance(value, str) or not _RFC_3339.fullmatch(value):
        raise ValueError("expected a time with its zone, such as 2026-11-27T03:33:56Z")
    return value


def _in_utc(value: datetime) -> datetime:
    """As the database stores it."""
    try:
        return value.astimezone(UTC)
    except OverflowError:
        raise ValueError("expected a time in one of the years 1 to 9999, in UTC too") from None


Time = Annotated[AwareDatetime, BeforeValidator(_written_out), AfterValidator(_in_utc), Field(strict=False)]
JobId = Annotated[str, Field(pattern="^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$")]


class _Filters(BaseModel):
    """What a list and a bulk cancel filter by in the same way."""

    model: Name | None = Field(default=None, description="the repository of the original model, `org/name`")
    created_after: Time | None = Field(default=None, description="jobs submitted after this time")
    created_before: Time | None = Field(default=None, description="jobs submitted before this time")

    def _with(self, **more: Any) -> JobFilters:
        return JobFilters(
            model=self.model, created_after=self.created_after, created_before=self.created_before, **more
        )


class JobsQuery(_Filters, Parameters):
    """Filters, order, page and fields. All filters must match; of a repeated one, except `label`, any value."""

    limit: Annotated[int, Field(ge=1, le=MOST_JOBS)] = 50
    cursor: Annotated[str, Field(pattern=CURSOR_PATTERN)] | None = Field(
        default=None, description="opaque: the `next_cursor` of the page before"
    )
    sort: Sort = Field(
        default=Sort.NEWEST, description="`-` is descending; by `finished_at`, only finished jobs are listed"
    )
    status: list[JobStatus] = Field(default=[], max_length=len(JobStatus), description="repeat it for several")
    label: list[str] = Field(default=[], max_length=32, description="KEY=VALUE; a job must have all that are given")
    id: list[JobId] = Field(default=[], max_length=MOST_IDS, description="repeat it for several")
    id_prefix: Annotated[str, Field(pattern=f"^{BEGINNING_OF_ID}$")] | None = Field(
        default=None, description="the beginning of an id, four characters or more"
    )
    fields: list[str] = Field(
        default=[], max_length=64, description="names of fields, with commas or repeated; the answer has only these"
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        self.filters()
        self.shown()
        return self

    def filters(self) -> JobFilters:
        return self._with(statuses=self.status, labels=_labels(self.label), ids=self.id, id_prefix=self.id_prefix)

    def shown(self) -> list[str] | None:
        """The fields that are wanted, sorted, since an entity tag is made of them; `None`: all."""
        names = [name.strip() for part in self.fields for name in part.split(",") if name.strip()]
        for name in names:
            if name not in JobBody.model_fields:
                known = ", ".join(JobBody.model_fields)
                raise wrong("fields", f"there is no field {name[:40]!r}; the fields are {known}")
        return sorted(set(names)) or None


class CancelRequest(_Filters):
    """Which jobs to cancel: those that match all that is given, of each list any value. Something must be given."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True)

    status: Annotated[list[Annotated[JobStatus, one_of(JobStatus)]], Field(max_length=2)] = []
    """queued, running or both."""
    labels: Labels = {}
    """Jobs with all of these labels."""
    ids: Annotated[list[JobId], Field(max_length=MOST_IDS)] = []
    """Jobs with one of these ids."""
    all: bool = Field(default=False, description="true: all of your queued and running jobs")

    @model_validator(mode="after")
    def _check(self) -> Self:
        given = self.model_dump(exclude={"all"}, exclude_defaults=True)
        if bool(given) is self.all:
            raise wrong("all", "expected at least one filter, or all: true and no filter")
        return self

    def filters(self) -> JobFilters:
        return self._with(statuses=self.status, labels=self.labels, ids=self.ids)


class CancelledBody(shapes.CancelledJob):
    status: JobStatus


class CancelledJobsBody(shapes.CancelledJobs):
    items: tuple[CancelledBody, ...]


def _labels(texts: Iterable[str]) -> dict[str, str]:
    """The labels to filter by, name to value."""
    found: dict[str, str] = {}
    for text in texts:
        name, *rest = re.split("[=:]", text, maxsplit=1)
        try:
            value = _LABEL_TEXT.validate_python("".join(rest))
            name = _LABEL_TEXT.validate_python(name)
        except ValidationError:
            raise wrong("label", "expected KEY=VALUE, each of 1 to 63 letters, digits, '.', '_', '/', '-'") from None
        if found.setdefault(name, value) != value:
            raise wrong("label", "two values for one label match no job, since a job has one value for each label")
    return found


class SubmittedJobBody(JobBody):
    """The answer to a submission."""

    notice: str | None
    """Said where the request is a repeated one and its job has not succeeded."""
    webhook: WebhookWithSecretBody | None = Field(default=None, exclude_if=lambda found: found is None)
    """The one that was asked for; without one the field is absent."""

    @classmethod
    def after(cls, submitted: Submitted, *, root: str) -> Self:
        job, webhook, notice, shown = submitted.job, submitted.webhook, None, None
        if submitted.repeated and job.status in (JobStatus.FAILED, JobStatus.CANCELLED):
            notice = (
                f"this Idempotency-Key made this job before, and it is {job.status}; to run it again, "
                f"POST {root}/jobs/{job.id}/retry, or send the request with a new key"
            )
        if webhook is not None:
            links = WebhookLinks.at(root, webhook.id)
            shown = WebhookWithSecretBody.of(webhook, links=links, secret=submitted.secret)
        return cls.of(job, links=LinksBody.at(root, job.id), notice=notice, webhook=shown)


class LogsQuery(Parameters):
    after: Annotated[int, Field(ge=0, le=_HIGHEST_NUMBER, description="a `number`")] = 0
    limit: Annotated[int, Field(ge=1, le=KEPT_LINES)] = KEPT_LINES


class MetricBody(shapes.Metric):
    """One measured value of a job's current attempt."""

    stage: Stage


# Routes

_SEVERAL_SOURCES = {
    **ONE_TEXT,
    "calibration": [
        {"dataset": "Salesforce/wikitext", "config": "wikitext-2-raw-v1", "share": 0.5},
        {"dataset": "builtin:dialogue", "share": 0.25},
        {"self_generated": True, "share": 0.25},
    ],
}
_SWEEP = {**ONE_TEXT, "ratio": [0.125, 0.25, 0.375, 0.5], "labels": {"sweep": "smollm2-depth"}}
_WITH_WEBHOOK = {**ONE_TEXT, "webhook": {"url": "https://hooks.example.com/replaceme", "events": ["succeeded"]}}
_REPORT: dict[int | str, dict[str, Any]] = {
    HTTPStatus.OK.value: {
        "description": "The content of `replaceme.json`; with `Accept: text/html` a page that shows it",
        "content": {"text/html": {"schema": {"type": "string"}}},
    }
}
_PREFER = {
    "name": "Prefer",
    "in": "header",
    "required": False,
    "schema": {"type": "string", "examples": ["wait=30"]},
    "description": "`wait=N`: hold the answer until the job has ended, at most N seconds and at most 60.",
}
_NOT_OF_A_CANCEL = ["GET", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"]
MOST_CANCELLED, CANCEL_SECONDS = 500, 5.0
"""In one transaction, which holds the rows of all of them."""


@router.post(
    "/jobs",
    status_code=HTTPStatus.ACCEPTED,
    response_model=SubmittedJobBody | Page[SubmittedJobBody],
    responses={HTTPStatus.OK: {"model": PlanBody | Page[PlanBody], "description": "The plan, with `validate_only`"}},
    openapi_extra={"parameters": [_PREFER]},
)
async def submit_job(
    body: Annotated[JobRequest, Body(examples=[ONE_TEXT, _SEVERAL_SOURCES, DEEPEST, _SWEEP, _WITH_WEBHOOK])],
    key: IdempotencyKeyDep,
    services: ServicesDep,
    request: Request,
) -> Response:
    """Submit a job that compresses a model. With an `Idempotency-Key`, a repeated request creates no second job.

    A list as `ratio` submits a sweep: one job per ratio, all or none, with the label `sweep` in common. The response is
    the list of them. With `validate_only` nothing is queued: the response is the plan, or the error that the submission
    would get.
    """
    if body.validate_only:
        plans = await services.submitter.validate(body, caller=caller_of(request.scope))
        shown = tuple(map(PlanBody.from_plan, plans))
        return tagged((Page(items=shown) if body.is_sweep else shown[0]).model_dump_json(), request=request)
    submitted = await services.submitter.submit(body, key=key, scope=request.scope)
    if not body.is_sweep:
        return await accepted(submitted[0], request=request, services=services)
    root, first = root_of(request.scope), submitted[0]
    label = urlencode({"label": f"{SWEEP}={first.job.labels[SWEEP]}"})
    jobs = Page(items=tuple(SubmittedJobBody.after(one, root=root) for one in submitted))
    headers = _of_submission(first) | {"Location": f"{root}/jobs?{label}"}
    return Response(
        jobs.model_dump_json(), status_code=HTTPStatus.ACCEPTED, headers=headers, media_type="application/json"
    )


@router.get("/jobs", response_model=Page[JobPartBody], responses=UNCHANGED)
def list_jobs(
    query: Annotated[JobsQuery, Query()], session: ReadingSessionDep, caller: CallerDep, request: Request
) -> Response:
    """Your jobs, newest first, or as `sort` says."""
    page = reading.page(
        session, owner=caller, filters=query.filters(), sort=query.sort, limit=query.limit, cursor=query.cursor
    )
    headers = link_to_next(page.next_cursor, request=request)
    shown = query.shown()
    # before the records are made, which takes most of the time
    tag = tag_of(*((snapshot.id, snapshot.version) for snapshot in page.items), shown, page.next_cursor)
    if is_known(tag, known_tags(request)):
        return not_modified(tag, headers=headers)
    bodies = tuple(job_body(snapshot.job(), request) for snapshot in page.items)
    body = Page[JobBody](items=bodies, next_cursor=page.next_cursor)
    include: IncEx | None = None
    if shown is not None:
        items: IncEx = {"__all__": set(shown)}
        include = {"items": items, "next_cursor": True}
    return tagged(body.model_dump_json(include=include), request=request, tag=tag, headers=headers)


@router.api_route("/jobs/cancel", methods=_NOT_OF_A_CANCEL, include_in_schema=False)
def refuse() -> None:
    """`cancel` is no id of a job, so that `GET` is not 404."""
    raise MethodRefused("POST")


@router.post("/jobs/cancel")
def cancel_jobs(
    body: Annotated[CancelRequest, Body(examples=[{"labels": {"team": "nlp"}}, {"all": True}])],
    session: SessionDep,
    caller: CallerDep,
) -> CancelledJobsBody:
    """Cancel all of your queued and running jobs that match. At most 500 at a time; `more` says whether to repeat."""
    done = changes.cancel_matching(
        session, owner=caller, filters=body.filters(), limit=MOST_CANCELLED, seconds=CANCEL_SECONDS
    )
    return CancelledJobsBody.of(done)


@router.get("/jobs/{job_id}", response_model=WholeJobBody, responses=UNCHANGED)
async def get_job(job_id: str, services: ServicesDep, caller: CallerDep, request: Request) -> Response:
    """A job with its stages, its attempts and, while it is queued, its queue position."""
    known = known_tags(request)
    found = await services.reader.read(job_id, owner=caller, known=known)
    headers = headers_of(found)
    if found.seen is None or is_known(found.tag, known):
        return not_modified(found.tag, headers=headers)
    whole = whole_body(found.seen, request)
    return tagged(whole.model_dump_json(), request=request, tag=found.tag, headers=headers)


@router.post("/jobs/{job_id}/cancel", responses={HTTPStatus.ACCEPTED: {"model": JobBody}})
def cancel_job(job_id: str, session: SessionDep, caller: CallerDep, request: Request, response: Response) -> JobBody:
    """Cancel a job. 202 while a running job is being stopped, 200 once it is cancelled. May be repeated."""
    job = changes.request_cancel(session, job_id, owner=caller)
    if job.status is not JobStatus.CANCELLED:
        response.status_code = HTTPStatus.ACCEPTED
    return job_body(job, request)


@router.post(
    "/jobs/{job_id}/retry",
    status_code=HTTPStatus.ACCEPTED,
    response_model=SubmittedJobBody,
    openapi_extra={"parameters": [_PREFER]},
)
async def retry_job(job_id: str, key: IdempotencyKeyDep, services: ServicesDep, request: Request) -> Response:
    """Submit a new job with the stored specification of one that has finished. Each names the other."""
    submitted = await services.submitter.retry(job_id, key=key, scope=request.scope)
    return await accepted(submitted, request=request, services=services)


@router.delete("/jobs/{job_id}", status_code=HTTPStatus.NO_CONTENT)
def delete_job(job_id: str, session: SessionDep, caller: CallerDep) -> None:
    """Delete a job that has finished, with its events, metrics, log and report. Its result stays on the Hub."""
    changes.delete_job(session, job_id, owner=caller)


@history.get("/jobs/{job_id}/logs", response_model=Page[LogLine], responses=UNCHANGED)
def list_log_lines(
    job_id: str, query: Annotated[LogsQuery, Query()], session: ReadingSessionDep, caller: CallerDep, request: Request
) -> Response:
    """The last lines that the runners of a job wrote, oldest first. `next_cursor` is the `after` of the next page."""
    page = reading.log(session, job_id, after=query.after, limit=query.limit, owner=caller)
    return listed(Page[LogLine].of(page), request=request, name="after")


@history.get("/jobs/{job_id}/metrics", response_model=Page[MetricBody], responses=UNCHANGED)
def list_metrics(job_id: str, session: ReadingSessionDep, caller: CallerDep, request: Request) -> Response:
    """The values that the current attempt measured, oldest first."""
    found = reading.metrics(session, job_id, owner=caller)
    return listed(Page(items=tuple(map(MetricBody.of, found))), request=request)


@history.get("/jobs/{job_id}/report", response_model=dict[str, object], responses=_REPORT)
async def get_report(
    job_id: str, services: ServicesDep, caller: CallerDep, request: Request, response: Response
) -> object:
    """The content of `replaceme.json`, also of a result that a gate rejected. 404 until there is one.

    With `Accept: text/html` it is one HTML page with tables and plots, which needs nothing else.
    """
    report = await run_in_threadpool(read_report, services.database, job_id, owner=caller)
    if request.headers.get("accept", "").lstrip().startswith("text/html"):  # as browsers do
        return page_response(await services.report_pages.page(report))
    response.headers["Vary"] = "Accept"
    return report


def read_report(database: Database, job_id: str, *, owner: str) -> dict[str, object]:
    """As JSON can carry it. Raises `JobNotFound`, and `NotFound` for a job that has none yet."""
    with database.session(read_only=True) as session:
        return {name: json_safe(value) for name, value in reading.report(session, job_id, owner=owner).items()}


def page_response(page: bytes) -> HTMLResponse:
    """With a policy that allows nothing but the page's own style and pictures."""
    headers = {
        "Content-Security-Policy": policy(header=True),
        "Cache-Control": NO_STORE,
        "Vary": "Accept",
        "Referrer-Policy": "no-referrer",
    }
    return HTMLResponse(page, headers=headers)


def job_body(job: Job, request: Request) -> JobBody:
    return JobBody.of(job, links=LinksBody.at(root_of(request.scope), job.id))


def whole_body(seen: JobSeen, request: Request) -> WholeJobBody:
    job, timeline = seen.job, seen.timeline
    links = LinksBody.at(root_of(request.scope), job.id)
    return WholeJobBody.of(job, links=links, queue=seen.position, stages=timeline.stages, attempts=timeline.attempts)


async def accepted(submitted: Submitted, *, request: Request, services: Services) -> Response:
    """202 with the job; after it has ended, or has been waited for as long as the client prefers."""
    job, headers = submitted.job, _of_submission(submitted)
    seconds = wait_seconds(request)
    if seconds:
        headers["Preference-Applied"] = f"wait={seconds}"
        if not job.is_terminal:
            deadline.extend(request.scope, seconds)
            await services.feed.wait_for_end(job.id, owner=job.owner, seconds=seconds)
            if isinstance(await services.callers.identify(request.scope), Caller):  # it may have been revoked meanwhile
                found = await services.reader.read(job.id, owner=job.owner)
                job = job if found.seen is None else found.seen.job
    body = SubmittedJobBody.after(replace(submitted, job=job), root=root_of(request.scope))
    headers["Location"] = body.links.self
    if not job.is_terminal:
        headers["Retry-After"] = retry_after(job.status, job.progress.eta_seconds)
    # already validated, and the framework would validate it again
    return Response(
        body.model_dump_json(), status_code=HTTPStatus.ACCEPTED, headers=headers, media_type="application/json"
    )


def _of_submission(submitted: Submitted) -> dict[str, str]:
    headers = {"Idempotent-Replayed": "true"} if submitted.repeated else {}
    return headers | {"Cache-Control": CHECKED if submitted.secret is None else NO_STORE}
