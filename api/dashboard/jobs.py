"""Jobs: the list, with filters, and live; and one job with its history, measurements and report."""

import re
from collections.abc import Mapping
from contextlib import suppress
from http import HTTPStatus
from typing import Annotated, Any
from urllib.parse import urlencode
from uuid import uuid4

from fastapi import APIRouter, Path, Query, Request, Response
from fastapi.responses import JSONResponse
from pydantic import Field, ValidationError
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool

from api.bodies import JobBody, Parameters
from api.dashboard.middleware import FormDep, key_of, ticked
from api.dashboard.rendering import page, see
from api.http.responses import tagged
from api.routes.deps import CallerDep, ReadingSessionDep, ServicesDep, SessionDep
from api.routes.jobs import JobsQuery, job_body, page_response, read_report, whole_body
from replaceme_core.errors import InvalidInput, JobNotFound, NotFound, StaleTransition
from replaceme_core.ledger import changes, reading, webhooks
from replaceme_core.ledger.attempts import KEPT_LINES
from replaceme_core.ledger.database import Database
from replaceme_core.ledger.states import TERMINAL, JobStatus
from replaceme_core.report import view
from replaceme_core.report.page import plots_of
from replaceme_core.report.plots import Format, can_draw
from replaceme_core.report.reading import Report, report_of
from replaceme_core.request.fields import ending_of
from replaceme_core.shapes import BEGINNING_OF_ID
from replaceme_core.validation import parameter_problem

router = APIRouter()

JOBS_ON_A_PAGE = 50
_SORTS = {
    "": "Newest first",
    "created_at": "Oldest first",
    "-finished_at": "Latest finish first",
    "finished_at": "Earliest finish first",
}
_LONGEST_FILTER = 1000
Text = Annotated[str, Field(max_length=_LONGEST_FILTER)]


class Filters(Parameters):
    """What the form of the list sends. Empty fields do not filter; labels are separated by commas."""

    status: list[str] = Field(default=[], max_length=len(JobStatus))
    label: Text = ""
    model: Text = ""
    sort: Text = ""
    cursor: Text = ""

    def query(self) -> JobsQuery:
        """The same as the API takes it. Raises `ValidationError`."""
        fields = self.model_dump() | {"label": self.label.replace(",", " ").split(), "model": self.model.strip()}
        return JobsQuery.model_validate({name: value for name, value in fields.items() if value})


FiltersDep = Annotated[Filters, Query()]


@router.get("/ui/jobs")
def list_jobs(filters: FiltersDep, session: ReadingSessionDep, caller: CallerDep, request: Request) -> Response:
    """The page. Filters that are not valid are shown with what would be right, and match nothing."""
    errors: dict[str, str] = {}
    items: list[JobBody] = []
    totals: dict[JobStatus, int] = {}
    next_cursor = None
    try:
        query = filters.query()
        found = reading.page(
            session, owner=caller, filters=query.filters(), sort=query.sort, limit=JOBS_ON_A_PAGE, cursor=query.cursor
        )
        items = [job_body(snapshot.job(), request) for snapshot in found.items]
        totals = reading.totals(session, owner=caller, filters=query.filters())
        next_cursor = found.next_cursor
    except ValidationError as error:
        for raw in error.errors():
            problem = parameter_problem(raw, default="model")
            errors.setdefault(problem["field"].partition(".")[0], problem["message"])
    except InvalidInput as error:  # a cursor of another list
        errors[error.field or "model"] = error.message
    return page(
        "jobs.html",
        request.scope,
        status=HTTPStatus.UNPROCESSABLE_ENTITY if errors else HTTPStatus.OK,
        jobs=items,
        next_cursor=next_cursor,
        given=filters.model_dump(),
        errors=errors,
        statuses=list(JobStatus),
        # an order by end has only jobs that have finished
        is_filtered=bool(filters.status or filters.label or filters.model or filters.sort.endswith("finished_at")),
        totals=totals,
        sorts=_SORTS,
        form_key=str(uuid4()),
    )


@router.post("/ui/chosen/compare")
def compare_chosen(form: FormDep, request: Request) -> Response:
    query = urlencode([("id", one) for one in _chosen(form)])
    return see(f"/ui/compare?{query}", request.scope)


@router.post("/ui/chosen/cancel")
def cancel_chosen(form: FormDep, session: SessionDep, caller: CallerDep, request: Request) -> Response:
    """Those that have ended already stay as they are."""
    if ids := _chosen(form):
        changes.cancel_matching(session, owner=caller, filters=reading.JobFilters(ids=ids), limit=len(ids))
    return see("/ui/jobs", request.scope)


@router.post("/ui/chosen/retry")
async def retry_chosen(form: FormDep, services: ServicesDep, request: Request) -> Response:
    """A new job like each that has ended, and is there yet; sent twice it makes each once, whatever else is ticked."""
    for one in _chosen(form):
        with suppress(StaleTransition, JobNotFound):
            key = key_of({"key": form.get("key", ""), "job": one})
            await services.submitter.retry(one, key=key, scope=request.scope)
    return see("/ui/jobs", request.scope)


def _chosen(form: Mapping[str, str]) -> list[str]:
    """The jobs that are ticked, those of a page at most."""
    return ticked(form, "job")[:JOBS_ON_A_PAGE]


# One job

_TYPES: dict[Format, str] = {"svg": "image/svg+xml", "png": "image/png"}
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"
"""Of a picture that is opened by itself: an SVG has its styles within it, and nothing else is allowed."""
PlotName = Annotated[str, Path(max_length=40)]
SHOWN_LINES, SHOWN_METRICS = 200, 200
_LONGEST_ANSWER = 400
_MOST_EVENTS = 1000
_MOST_WEBHOOKS = 50


@router.get("/ui/jobs/{job_id}")
async def show_job(job_id: str, services: ServicesDep, caller: CallerDep, request: Request) -> Response:
    """The page; of the beginning of an id that one job has, a redirect to it."""
    if re.fullmatch(BEGINNING_OF_ID, job_id):
        found = await run_in_threadpool(_beginning_with, services.database, job_id, caller)
        if len(found) == 1:
            return see(f"/ui/jobs/{found[0]}", request.scope)
    seen = (await services.reader.read(job_id, owner=caller)).seen
    assert seen is not None, "no version was given as known"
    job = whole_body(seen, request)
    judged = report_of(job)
    history = await run_in_threadpool(_history, services.database, job_id, caller)
    return await run_in_threadpool(
        page,
        "job.html",
        request.scope,
        job=job,
        origin=f"{request.url.scheme}://{request.url.netloc}",
        **history,
        gate=view.gate(judged),
        trials=view.trials(judged),
        is_finished=job.status in TERMINAL,
        is_named_after_job=(seen.job.spec.output.repo_id or "").endswith(ending_of(job.id)),
        # of the present state: a retry is another job
        cancel_requested=seen.job.cancel_requested and job.status not in TERMINAL,
        retry_key=f"retry-{job.id}-{job.retried_as or ''}",
    )


@router.post("/ui/jobs/{job_id}/cancel")
def cancel_job(job_id: str, session: SessionDep, caller: CallerDep, request: Request) -> Response:
    changes.request_cancel(session, job_id, owner=caller)
    return see(f"/ui/jobs/{job_id}", request.scope)


@router.post("/ui/jobs/{job_id}/delete")
def delete_job(job_id: str, session: SessionDep, caller: CallerDep, request: Request) -> Response:
    changes.delete_job(session, job_id, owner=caller)
    return see("/ui/jobs", request.scope)


@router.post("/ui/jobs/{job_id}/retry")
async def retry_job(job_id: str, form: FormDep, services: ServicesDep, request: Request) -> Response:
    """A new job like this one. A form that is sent twice makes one job."""
    submitted = await services.submitter.retry(job_id, key=key_of(form), scope=request.scope)
    return see(f"/ui/jobs/{submitted.job.id}", request.scope)


def _history(database: Database, job_id: str, owner: str) -> dict[str, Any]:
    """What the pages of a job show beside its state."""
    with database.session(read_only=True) as session:
        events = reading.events(session, job_id, limit=_MOST_EVENTS, owner=owner).items
        log = list(reading.log(session, job_id, limit=KEPT_LINES, owner=owner).items)
        stored = stored_report(session, job_id, owner)
        metrics = [] if stored is not None else reading.metrics(session, job_id, owner=owner)
        receivers = webhooks.page(session, owner=owner, job_id=job_id, limit=_MOST_WEBHOOKS).items
    measured = Report(stored or {})
    return {
        "events": events,
        "log": log[-SHOWN_LINES:],
        "log_lines": len(log),
        "headlines": view.headlines(measured),
        "answers": view.answers(measured, longest=_LONGEST_ANSWER),
        "loads_with": measured.text("auto_class"),
        "is_on_hub": bool(measured.text("hub")),
        "compared": [table for make in view.COMPARED if (table := make(measured)) is not None],
        "candidates": view.candidates(measured),
        "metrics": metrics[-SHOWN_METRICS:],
        "metric_count": len(metrics),
        "has_report": stored is not None,
        "plots": plots_of(stored) if stored is not None and can_draw() else [],
        "webhooks": receivers,
    }


def stored_report(session: Session, job_id: str, owner: str) -> dict[str, object] | None:
    """The content of `replaceme.json`, where there is one."""
    try:
        return reading.report(session, job_id, owner=owner)
    except NotFound:
        return None


def _beginning_with(database: Database, prefix: str, owner: str) -> list[str]:
    with database.session(read_only=True) as session:
        filters, sort = reading.JobFilters(id_prefix=prefix), reading.Sort.NEWEST
        found = reading.page(session, owner=owner, filters=filters, sort=sort, limit=2, cursor=None)
        return [snapshot.job().id for snapshot in found.items]


@router.get("/ui/jobs/{job_id}/report")
async def show_report(job_id: str, services: ServicesDep, caller: CallerDep) -> Response:
    report = await run_in_threadpool(read_report, services.database, job_id, owner=caller)
    return page_response(await services.report_pages.page(report, back=f"../{job_id}"))


@router.get("/ui/jobs/{job_id}/report.json")
def show_json(job_id: str, services: ServicesDep, caller: CallerDep) -> Response:
    """The content of `replaceme.json`, as a file."""
    headers = {"Content-Disposition": 'inline; filename="replaceme.json"'}
    return JSONResponse(read_report(services.database, job_id, owner=caller), headers=headers)


@router.get("/ui/jobs/{job_id}/plots/{name}.{kind}")
async def show_plot(
    job_id: str, name: PlotName, kind: Format, services: ServicesDep, caller: CallerDep, request: Request
) -> Response:
    """The picture, or 304 where the browser has it: a live page asks for all of them again."""
    report = await run_in_threadpool(read_report, services.database, job_id, owner=caller)
    plot = await services.report_pages.plot(report, name, kind)
    if plot is None:
        raise NotFound(f"the report of job {job_id!r} has no plot {name!r}")
    return tagged(plot, request=request, headers={"Content-Security-Policy": _POLICY}, media_type=_TYPES[kind])
