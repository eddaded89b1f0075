"""One job: its state, live; its history, measurements and report; cancelling and retrying; several side by side."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request, Response
from fastapi.responses import JSONResponse
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool
from starlette.responses import RedirectResponse

from api.dashboard import live
from api.dashboard.middleware import FormDep, PageRoute, key_of
from api.dashboard.rendering import page, root_of
from api.deps import (
    CallerDep,
    DatabaseDep,
    FeedDep,
    ReaderDep,
    ReportPagesDep,
    SessionDep,
    SubmitterDep,
)
from api.jobs.batched_reader import BatchedReader
from api.jobs.event_message import last_event_id, stream
from api.routes.reports import page_response, read_report
from api.schemas.events import EventBody
from api.schemas.jobs import WholeJobBody
from api.schemas.lists import JobId
from api.schemas.logs import LogLineBody
from api.schemas.metrics import MetricBody
from api.schemas.webhooks import WebhookBody
from replaceme_core.errors import NotFound
from replaceme_core.ledger import changes, reading, webhooks
from replaceme_core.ledger.attempts import KEPT_LINES
from replaceme_core.ledger.database import Database
from replaceme_core.ledger.states import TERMINAL
from replaceme_core.report.page import plots_of
from replaceme_core.report.plots.style import Format, can_draw
from replaceme_core.request.fields import ending_of

router = APIRouter(route_class=PageRoute, include_in_schema=False)

_BEFORE, _AFTER = "before.", "after."
_COLUMNS = {
    "distance": "distance before the fit",
    "influence": "influence",
    "residual": "residual after the fit",
    "held_out_loss": "loss on held-out tokens",
    "held_out_score": "score on held-out tokens",
}
_MARKS = ("chosen", "estimated", "tokens")
_ROWS = {
    "perplexity": "perplexity",
    "text_perplexity": "perplexity on",
    "blocks": "blocks",
    "parameters": "parameters",
    "bytes": "size on disk",
    "tokens_per_second": "speed",
    "looping_answers": "answers that end in a repetition",
    "distinct_4grams": "different runs of four tokens",
}
"""Names for people, in the order in which they are shown; what has none here comes last, under its own name."""


@dataclass(frozen=True, kw_only=True)
class Compared:
    """A quantity of the original model and of the result; `None`: not measured. Values are as they are stored."""

    name: str
    unit: str
    before: float | None
    after: float | None


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A cut that was looked at; `values` by the name of the metric."""

    blocks: str
    values: dict[str, float] = field(default_factory=dict)

    @property
    def is_chosen(self) -> bool:
        return bool(self.values.get("chosen"))

    @property
    def is_estimated(self) -> bool:
        """Whether its loss is an estimate from some of the held-out tokens."""
        return bool(self.values.get("estimated"))


@dataclass(frozen=True, kw_only=True)
class Measurements:
    """The tables. `columns` are pairs of metric and heading that the candidates have, with the unit of each."""

    compared: tuple[Compared, ...]
    candidates: tuple[Candidate, ...]
    columns: tuple[tuple[str, str, str], ...]
    others: tuple[MetricBody, ...]


def measurements(metrics: Sequence[MetricBody]) -> Measurements:
    """The tables of a job with these metrics, which are in the order in which they were written."""
    compared: dict[tuple[str, str | None], dict[str, MetricBody]] = {}
    candidates: dict[str, Candidate] = {}
    units: dict[str, str] = {}
    others = []
    for metric in metrics:
        side = next((side for side in (_BEFORE, _AFTER) if metric.name.startswith(side)), None)
        if side is not None:
            compared.setdefault((metric.name.removeprefix(side), metric.candidate), {})[side] = metric
        elif metric.candidate is not None and metric.name in (*_COLUMNS, *_MARKS):
            candidate = candidates.setdefault(metric.candidate, Candidate(blocks=metric.candidate))
            candidate.values[metric.name] = metric.value
            units.setdefault(metric.name, metric.unit)
        else:
            others.append(metric)
    return Measurements(
        compared=tuple(
            _compared(*key, sides) for key, sides in sorted(compared.items(), key=lambda one: _place(one[0]))
        ),
        candidates=tuple(sorted(candidates.values(), key=_rank)),
        columns=tuple((name, heading, units[name]) for name, heading in _COLUMNS.items() if name in units),
        others=tuple(others),
    )


def _compared(name: str, candidate: str | None, sides: dict[str, MetricBody]) -> Compared:
    shown = _ROWS.get(name, name.replace("_", " "))
    unit = next(iter(sides.values())).unit
    before, after = (sides[side].value if side in sides else None for side in (_BEFORE, _AFTER))
    return Compared(
        name=shown if candidate is None else f"{shown} {candidate}",
        # a number of parameters, in the row of that name, needs no unit
        unit="" if unit == shown else unit,
        before=before,
        after=after,
    )


def _place(key: tuple[str, str | None]) -> tuple[int, str]:
    names = list(_ROWS)
    name, candidate = key
    return (names.index(name) if name in names else len(names), candidate or "")


def _rank(candidate: Candidate) -> tuple[bool, float, float]:
    """The chosen ones first, then by loss; most candidates have none."""
    values = candidate.values
    loss = values.get("held_out_loss", values.get("held_out_score", math.inf))
    return not candidate.is_chosen, loss, values.get("residual", math.inf)


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
        return stream(live.changed_and_ended(), request)
    last = last_event_id(request)
    messages = feed.of_job(job_id, owner=caller, after=after if last is None else last)
    return stream(live.changes(messages, running=[job_id], owner=caller, reader=reader, of_job=True), request)


@router.post("/ui/jobs/{job_id}/cancel")
def cancel_job(job_id: str, session: SessionDep, caller: CallerDep, request: Request) -> Response:
    changes.request_cancel(session, job_id, owner=caller)
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
        events = [
            EventBody.of(event) for event in reading.events(session, job_id, limit=_MOST_EVENTS, owner=owner).items
        ]
        log = [LogLineBody.of(line) for line in reading.log(session, job_id, limit=KEPT_LINES, owner=owner).items]
        metrics = [MetricBody.of(metric) for metric in reading.metrics(session, job_id, owner=owner)]
        report = _report(session, job_id, owner)
        receivers = webhooks.page(session, owner=owner, job_id=job_id, limit=_MOST_WEBHOOKS).items
    return {
        "events": events,
        "last_seq": events[-1].seq if events else 0,
        "log": log[-SHOWN_LINES:],
        "log_lines": len(log),
        "measured": measurements(metrics),
        "has_report": report is not None,
        "plots": plots_of(report) if report is not None and can_draw() else [],
        "webhooks": [WebhookBody.of(webhook, root=root) for webhook in receivers],
    }


def _report(session: Session, job_id: str, owner: str) -> dict[str, object] | None:
    """The content of `replaceme.json`, where there is one."""
    try:
        return reading.report(session, job_id, owner=owner)
    except NotFound:
        return None


def _see(job_id: str, request: Request) -> Response:
    return RedirectResponse(f"{root_of(request.scope)}/ui/jobs/{job_id}", status_code=HTTPStatus.SEE_OTHER)


_TYPES: dict[Format, str] = {"svg": "image/svg+xml", "png": "image/png"}
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"
"""Of a picture that is opened by itself: an SVG has its styles within it, and nothing else is allowed."""
PlotName = Annotated[str, Path(max_length=40)]


@router.get("/ui/jobs/{job_id}/report")
async def show_report(job_id: str, database: DatabaseDep, pages: ReportPagesDep, caller: CallerDep) -> Response:
    report = await run_in_threadpool(read_report, database, job_id, owner=caller)
    return page_response(await pages.page(report))


@router.get("/ui/jobs/{job_id}/report.json")
def show_json(job_id: str, database: DatabaseDep, caller: CallerDep) -> Response:
    """The content of `replaceme.json`, as a file."""
    headers = {"Content-Disposition": 'inline; filename="replaceme.json"'}
    return JSONResponse(read_report(database, job_id, owner=caller), headers=headers)


@router.get("/ui/jobs/{job_id}/plots/{name}.{kind}")
async def show_plot(
    job_id: str, name: PlotName, kind: Format, database: DatabaseDep, pages: ReportPagesDep, caller: CallerDep
) -> Response:
    report = await run_in_threadpool(read_report, database, job_id, owner=caller)
    plot = await pages.plot(report, name, kind)
    if plot is None:
        raise NotFound(f"the report of job {job_id!r} has no plot {name!r}")
    return Response(plot, media_type=_TYPES[kind], headers={"Content-Security-Policy": _POLICY})


FEWEST, MOST = 2, 5
_MOST_GIVEN = 200


@router.get("/ui/compare")
async def compare(
    reader: ReaderDep,
    database: DatabaseDep,
    caller: CallerDep,
    request: Request,
    id: Annotated[list[JobId], Query(max_length=_MOST_GIVEN)] = [],  # noqa: B006  # the framework copies it
) -> Response:
    """The page. Another number of jobs is refused with what would be right."""
    ids = list(dict.fromkeys(id))
    if not FEWEST <= len(ids) <= MOST:
        status = HTTPStatus.UNPROCESSABLE_ENTITY
        return page("compare.html", request.scope, status=status, jobs=[], given=len(ids), fewest=FEWEST, most=MOST)
    reads = [await reader.read(job_id, owner=caller) for job_id in ids]
    jobs = [
        WholeJobBody.at(one.position, one.job, one.timeline, root=root_of(request.scope))
        for one in (read.seen for read in reads)
        if one is not None
    ]
    found = await run_in_threadpool(_measured, database, ids, caller)
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


def _measured(database: Database, ids: Sequence[str], owner: str) -> dict[str, Measurements]:
    with database.session(read_only=True) as session:
        return {
            job_id: measurements([MetricBody.of(metric) for metric in reading.metrics(session, job_id, owner=owner)])
            for job_id in ids
        }


def _rows(jobs: Sequence[WholeJobBody], found: Mapping[str, Measurements]) -> list[tuple[str, list[Compared | None]]]:
    """Each measured quantity, with what every job has of it."""
    by_job = [{row.name: row for row in found[job.id].compared} for job in jobs]
    names = dict.fromkeys(name for rows in by_job for name in rows)
    return [(name, [rows.get(name) for rows in by_job]) for name in names]
