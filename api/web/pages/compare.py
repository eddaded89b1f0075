"""Two to five jobs side by side."""

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from starlette.concurrency import run_in_threadpool

from api.deps import CallerDep, DatabaseDep, ReaderDep
from api.schemas.jobs import WholeJobBody
from api.schemas.lists import JobId
from api.schemas.metrics import MetricBody
from api.web.forms import PageRoute
from api.web.measurements import Compared, Measurements, measurements
from api.web.rendering import page, root_of
from replaceme_core.ledger.repository import Jobs
from replaceme_core.ledger.session import Database

router = APIRouter(route_class=PageRoute, include_in_schema=False)

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
    found = await run_in_threadpool(_measured, database, ids)
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


def _measured(database: Database, ids: Sequence[str]) -> dict[str, Measurements]:
    with database.session(read_only=True) as session:
        jobs = Jobs(session)
        return {job_id: measurements([MetricBody.of(metric) for metric in jobs.metrics(job_id)]) for job_id in ids}


def _rows(jobs: Sequence[WholeJobBody], found: Mapping[str, Measurements]) -> list[tuple[str, list[Compared | None]]]:
    """Each measured quantity, with what every job has of it."""
    by_job = [{row.name: row for row in found[job.id].compared} for job in jobs]
    names = dict.fromkeys(name for rows in by_job for name in rows)
    return [(name, [rows.get(name) for rows in by_job]) for name in names]
