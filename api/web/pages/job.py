"""One job: its state, live; its history and measurements; cancelling and retrying it."""

from http import HTTPStatus
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from starlette.concurrency import run_in_threadpool
from starlette.responses import RedirectResponse

from api.deps import (
    CallerDep,
    DatabaseDep,
    FeedDep,
    JobsDep,
    ReaderDep,
    SubmitterDep,
)
from api.jobs.batched_reader import BatchedReader
from api.jobs.event_message import last_event_id, stream
from api.schemas.events import EventBody
from api.schemas.jobs import WholeJobBody
from api.schemas.logs import LogLineBody
from api.schemas.metrics import MetricBody
from api.schemas.webhooks import WebhookBody
from api.web.forms import FormDep, PageRoute, key_of
from api.web.live import changed_and_ended, changes
from api.web.measurements import measurements
from api.web.rendering import page, root_of
from replaceme_core.errors import NotFound
from replaceme_core.ledger.repository import Jobs
from replaceme_core.ledger.session import Database
from replaceme_core.ledger.states import TERMINAL
from replaceme_core.ledger.watching.logs import KEPT_LINES
from replaceme_core.ledger.webhooks.repository import Webhooks
from replaceme_core.report.page import plots_of
from replaceme_core.report.plots.style import can_draw
from replaceme_core.request.fields import ending_of

router = APIRouter(route_class=PageRoute, include_in_schema=False)

SHOWN_LINES = 200
_MOST_EVENTS = 1000
_MOST_WEBHOOKS = 50
Seq = Annotated[int, Query(ge=0, le=2**31 - 1)]


@router.get("/ui/jobs/{job_id}")
async def show_job(
    job_id: str, reader: ReaderDep, database: DatabaseDep, caller: CallerDep, request: Request
) -> Response:
    return await _shown("job.html", job_id, reader, database, caller, request)


@router.get("/ui/jobs/{job_id}/live")
async def show_live_part(
    job_id: str, reader: ReaderDep, database: DatabaseDep, caller: CallerDep, request: Request
) -> Response:
    """The part of the page that changes."""
    return await _shown("job_live.html", job_id, reader, database, caller, request)


@router.get("/ui/jobs/{job_id}/changes")
async def stream_changes(
    job_id: str, reader: ReaderDep, feed: FeedDep, caller: CallerDep, request: Request, after: Seq = 0
) -> Response:
    """A stream that says when the job has changed; `after` is the last event that the page shows."""
    found = await reader.read_status(job_id, owner=caller)
    if found.status in TERMINAL:
        return stream(changed_and_ended(), request)
    last = last_event_id(request)
    messages = feed.of_job(job_id, owner=caller, after=after if last is None else last)
    return stream(changes(messages, running=[job_id], owner=caller, reader=reader, of_job=True), request)


@router.post("/ui/jobs/{job_id}/cancel")
def cancel_job(job_id: str, jobs: JobsDep, caller: CallerDep, request: Request) -> Response:
    jobs.request_cancel(job_id, owner=caller)
    return _see(job_id, request)


@router.post("/ui/jobs/{job_id}/retry")
async def retry_job(
    job_id: str, form: FormDep, submitter: SubmitterDep, caller: CallerDep, request: Request
) -> Response:
    """A new job like this one. A form that is sent twice makes one job."""
    submitted = await submitter.retry(job_id, key=key_of(form), owner=caller, scope=request.scope)
    return _see(submitted.job.id, request)


async def _shown(
    template: str, job_id: str, reader: BatchedReader, database: Database, owner: str, request: Request
) -> Response:
    seen = (await reader.read(job_id, owner=owner)).seen
    assert seen is not None, "no version was given as known"
    job = WholeJobBody.at(seen.position, seen.job, seen.timeline, root=root_of(request.scope))
    history = await run_in_threadpool(_history, database, job_id, owner, root_of(request.scope))
    return await run_in_threadpool(
        page,
        template,
        request.scope,
        job=job,
        **history,
        is_finished=job.status in TERMINAL,
        is_named_after_job=(seen.job.spec.output.repo_id or "").endswith(ending_of(job.id)),
        # of the present state: a retry is another job
        cancel_requested=seen.job.cancel_requested and job.status not in TERMINAL,
        retry_key=f"retry-{job.id}-{job.retried_as or ''}",
    )


def _history(database: Database, job_id: str, owner: str, root: str) -> dict[str, Any]:
    """What the pages of a job show beside its state."""
    with database.session(read_only=True) as session:
        jobs = Jobs(session)
        events = [EventBody.of(event) for event in jobs.events(job_id, limit=_MOST_EVENTS).items]
        log = [LogLineBody.of(line) for line in jobs.logs.page(job_id, limit=KEPT_LINES).items]
        metrics = [MetricBody.of(metric) for metric in jobs.metrics(job_id)]
        report = _report(jobs, job_id)
        webhooks = Webhooks(session).page(owner=owner, job_id=job_id, limit=_MOST_WEBHOOKS).items
    return {
        "events": events,
        "last_seq": events[-1].seq if events else 0,
        "log": log[-SHOWN_LINES:],
        "log_lines": len(log),
        "measured": measurements(metrics),
        "has_report": report is not None,
        "plots": plots_of(report) if report is not None and can_draw() else [],
        "webhooks": [WebhookBody.of(webhook, root=root) for webhook in webhooks],
    }


def _report(jobs: Jobs, job_id: str) -> dict[str, object] | None:
    """The content of `replaceme.json`, where there is one."""
    try:
        return jobs.report(job_id)
    except NotFound:
        return None


def _see(job_id: str, request: Request) -> Response:
    return RedirectResponse(f"{root_of(request.scope)}/ui/jobs/{job_id}", status_code=HTTPStatus.SEE_OTHER)
