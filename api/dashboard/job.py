"""One job: its state, live; its history, measurements and report; cancelling and retrying; several side by side."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request, Response
from fastapi.responses import JSONResponse
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool
from starlette.responses import RedirectResponse

from api.bodies import EventBody, WholeJobBody
from api.dashboard import live
from api.dashboard.middleware import FormDep, PageRoute, key_of
from api.dashboard.rendering import page, root_of
from api.routes.deps import CallerDep, ServicesDep, SessionDep
from api.routes.event_feed import last_event_id, stream
from api.routes.jobs import JobId, MetricBody, page_response, read_report, whole_body
from api.routes.reading import BatchedReader
from api.routes.webhooks import WebhookBody, WebhookLinks
from replaceme_core.errors import NotFound
from replaceme_core.ledger import changes, reading, webhooks
from replaceme_core.ledger.attempts import KEPT_LINES
from replaceme_core.ledger.database import Database
from replaceme_core.ledger.states import TERMINAL
from replaceme_core.report import view
from replaceme_core.report.page import plots_of
from replaceme_core.report.plots import Format, can_draw
from replaceme_core.report.reading import Report
from replaceme_core.request.fields import ending_of

router = APIRouter(route_class=PageRoute, include_in_schema=False)

_SIDES = ("before", "after")
_COMPARED = (view.both_models, view.texts, view.tasks)
_MARKS = ("chosen", "estimated", "tokens")
_OF_A_TEXT = {
    "text_ratio_low": "ratio_low",
    "text_ratio_high": "ratio_high",
    "text_divergence": "divergence",
    "text_agreement": "agreement",
}
_QUANTITIES = {one.name: one for one in view.QUANTITIES}
_TYPES: dict[Format, str] = {"svg": "image/svg+xml", "png": "image/png"}
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"
"""Of a picture that is opened by itself: an SVG has its styles within it, and nothing else is allowed."""
PlotName = Annotated[str, Path(max_length=40)]
SHOWN_LINES = 200
_MOST_EVENTS = 1000
_MOST_WEBHOOKS = 50
Seq = Annotated[int, Query(ge=0, le=2**31 - 1)]
FEWEST, MOST = 2, 5
_MOST_GIVEN = 200


def as_report(metrics: Sequence[MetricBody]) -> tuple[Report, list[MetricBody]]:
    """The metrics of a job in the places that they have in a report, and those that have none."""
    sides: dict[str, dict[str, object]] = {side: {} for side in _SIDES}
    texts, tasks, cuts = (defaultdict[str, dict[str, object]](dict) for _ in range(3))
    others = []
    for metric in metrics:
        side, _, name = metric.name.rpartition(".")
        value, of = metric.value, metric.candidate or ""
        if side in _SIDES and name in _QUANTITIES and not of:
            *outer, last = _QUANTITIES[name].path
            place = sides[side]
            for step in outer:
                place = place.setdefault(step, {})  # type: ignore[assignment]
            place[last] = value
        elif side in _SIDES and name == "text_perplexity":
            texts[of][side] = value
        elif side in _SIDES and name == "task_accuracy":
            tasks[of][side] = {"accuracy": value}
        elif name in _OF_A_TEXT:
            texts[of][_OF_A_TEXT[name]] = value
        elif name == "task_kept":
            tasks[of]["kept"] = value
        elif of and name in (*view.CANDIDATE_MEASURES, *_MARKS):
            cuts[of][name] = value if name in (*view.CANDIDATE_MEASURES, "tokens") else bool(value)
        else:
            others.append(metric)
    for text in texts.values():
        before, after = text.get("before"), text.get("after")
        if isinstance(before, float) and isinstance(after, float) and before:
            text["ratio"] = after / before
    named = (("texts", texts), ("tasks", tasks), ("candidates", cuts))
    lists = {key: [{"name": name, **values} for name, values in found.items()] for key, found in named}
    return Report({**sides, **lists}), others


@router.get("/ui/jobs/{job_id}")
async def show_job(job_id: str, services: ServicesDep, caller: CallerDep, request: Request) -> Response:
    return await _shown("job.html", job_id, services.reader, services.database, caller, request)


@router.get("/ui/jobs/{job_id}/live")
async def show_live_part(job_id: str, services: ServicesDep, caller: CallerDep, request: Request) -> Response:
    """The part of the page that changes."""
    return await _shown("job_live.html", job_id, services.reader, services.database, caller, request)


@router.get("/ui/jobs/{job_id}/changes")
async def stream_changes(
    job_id: str, services: ServicesDep, caller: CallerDep, request: Request, after: Seq = 0
) -> Response:
    """A stream that says when the job has changed; `after` is the last event that the page shows."""
    found = await services.reader.read_status(job_id, owner=caller)
    if found.status in TERMINAL:
        return stream(live.changed_and_ended(), request)
    last = last_event_id(request)
    messages = services.feed.of_job(job_id, owner=caller, after=after if last is None else last)
    return stream(live.changes(messages, running=[job_id], owner=caller, reader=services.reader, of_job=True), request)


@router.post("/ui/jobs/{job_id}/cancel")
def cancel_job(job_id: str, session: SessionDep, caller: CallerDep, request: Request) -> Response:
    changes.request_cancel(session, job_id, owner=caller)
    return _see(job_id, request)


@router.post("/ui/jobs/{job_id}/retry")
async def retry_job(job_id: str, form: FormDep, services: ServicesDep, caller: CallerDep, request: Request) -> Response:
    """A new job like this one. A form that is sent twice makes one job."""
    submitted = await services.submitter.retry(job_id, key=key_of(form), scope=request.scope)
    return _see(submitted.job.id, request)


async def _shown(
    template: str, job_id: str, reader: BatchedReader, database: Database, owner: str, request: Request
) -> Response:
    seen = (await reader.read(job_id, owner=owner)).seen
    assert seen is not None, "no version was given as known"
    job = whole_body(seen, request)
    gate = None if job.gate is None else job.gate.model_dump(mode="json")
    judged = Report({"gate": gate, "removed_blocks": [] if job.result is None else list(job.result.removed_blocks)})
    history = await run_in_threadpool(_history, database, job_id, owner, root_of(request.scope))
    return await run_in_threadpool(
        page,
        template,
        request.scope,
        job=job,
        **history,
        gate=view.gate(judged),
        trials=view.trials(judged),
        is_finished=job.status in TERMINAL,
        is_named_after_job=(seen.job.spec.output.repo_id or "").endswith(ending_of(job.id)),
        # of the present state: a retry is another job
        cancel_requested=seen.job.cancel_requested and job.status not in TERMINAL,
        retry_key=f"retry-{job.id}-{job.retried_as or ''}",
    )


def _history(database: Database, job_id: str, owner: str, root: str) -> dict[str, Any]:
    """What the pages of a job show beside its state."""
    with database.session(read_only=True) as session:
        events = [
            EventBody.of(event) for event in reading.events(session, job_id, limit=_MOST_EVENTS, owner=owner).items
        ]
        log = list(reading.log(session, job_id, limit=KEPT_LINES, owner=owner).items)
        metrics = [MetricBody.of(metric) for metric in reading.metrics(session, job_id, owner=owner)]
        report = _report(session, job_id, owner)
        receivers = webhooks.page(session, owner=owner, job_id=job_id, limit=_MOST_WEBHOOKS).items
    measured, others = as_report(metrics)
    return {
        "events": events,
        "last_seq": events[-1].seq if events else 0,
        "log": log[-SHOWN_LINES:],
        "log_lines": len(log),
        "compared": [table for make in _COMPARED if (table := make(measured)) is not None],
        "candidates": view.candidates(measured),
        "others": others,
        "has_report": report is not None,
        "plots": plots_of(report) if report is not None and can_draw() else [],
        "webhooks": [WebhookBody.of(one, links=WebhookLinks.at(root, one.id)) for one in receivers],
    }


def _report(session: Session, job_id: str, owner: str) -> dict[str, object] | None:
    """The content of `replaceme.json`, where there is one."""
    try:
        return reading.report(session, job_id, owner=owner)
    except NotFound:
        return None


def _see(job_id: str, request: Request) -> Response:
    return RedirectResponse(f"{root_of(request.scope)}/ui/jobs/{job_id}", status_code=HTTPStatus.SEE_OTHER)


@router.get("/ui/jobs/{job_id}/report")
async def show_report(job_id: str, services: ServicesDep, caller: CallerDep) -> Response:
    report = await run_in_threadpool(read_report, services.database, job_id, owner=caller)
    return page_response(await services.report_pages.page(report))


@router.get("/ui/jobs/{job_id}/report.json")
def show_json(job_id: str, services: ServicesDep, caller: CallerDep) -> Response:
    """The content of `replaceme.json`, as a file."""
    headers = {"Content-Disposition": 'inline; filename="replaceme.json"'}
    return JSONResponse(read_report(services.database, job_id, owner=caller), headers=headers)


@router.get("/ui/jobs/{job_id}/plots/{name}.{kind}")
async def show_plot(job_id: str, name: PlotName, kind: Format, services: ServicesDep, caller: CallerDep) -> Response:
    report = await run_in_threadpool(read_report, services.database, job_id, owner=caller)
    plot = await services.report_pages.plot(report, name, kind)
    if plot is None:
        raise NotFound(f"the report of job {job_id!r} has no plot {name!r}")
    return Response(plot, media_type=_TYPES[kind], headers={"Content-Security-Policy": _POLICY})


@router.get("/ui/compare")
async def compare(
    services: ServicesDep,
    caller: CallerDep,
    request: Request,
    id: Annotated[list[JobId], Query(max_length=_MOST_GIVEN)] = [],  # noqa: B006  # the framework copies it
) -> Response:
    """The page. Another number of jobs is refused with what would be right."""
    ids = list(dict.fromkeys(id))
    if not FEWEST <= len(ids) <= MOST:
        status = HTTPStatus.UNPROCESSABLE_ENTITY
        return page("compare.html", request.scope, status=status, jobs=[], given=len(ids), fewest=FEWEST, most=MOST)
    reads = [await services.reader.read(job_id, owner=caller) for job_id in ids]
    jobs = [whole_body(one, request) for one in (read.seen for read in reads) if one is not None]
    found = await run_in_threadpool(_measured, services.database, ids, caller)
    return await run_in_threadpool(
        page,
        "compare.html",
        request.scope,
        jobs=jobs,
        given=len(ids),
        fewest=FEWEST,
        most=MOST,
        rows=_rows(jobs, found),
        stages=list(dict.fromkeys(stage.name for job in jobs for stage in job.stages)),
    )


def _measured(database: Database, ids: Sequence[str], owner: str) -> dict[str, dict[str, view.Row]]:
    """The rows of each job, by their labels."""
    with database.session(read_only=True) as session:
        metrics = {job_id: reading.metrics(session, job_id, owner=owner) for job_id in ids}
    reports = {job_id: as_report([MetricBody.of(one) for one in found])[0] for job_id, found in metrics.items()}
    return {job_id: {row.label: row for row in _rows_of(report)} for job_id, report in reports.items()}


def _rows_of(report: Report) -> list[view.Row]:
    texts = view.texts(report)
    of_texts = [] if texts is None else texts.only("name", "before", "after", "ratio").rows
    return [
        *view.compared(report),
        *(
            view.Row(label=f"Perplexity on {view.plain(name)}", before=before, after=after, change=(*ratio, " times"))
            for name, before, after, ratio in of_texts
        ),
    ]


def _rows(
    jobs: Sequence[WholeJobBody], found: Mapping[str, Mapping[str, view.Row]]
) -> list[tuple[str, list[view.Row | None]]]:
    """Each measured quantity, with what every job has of it."""
    labels = dict.fromkeys(label for job in jobs for label in found[job.id])
    return [(label, [found[job.id].get(label) for job in jobs]) for label in labels]
