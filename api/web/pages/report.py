"""The report of a job: its page, its JSON, and its plots."""

from typing import Annotated

from fastapi import APIRouter, Path, Response
from fastapi.responses import JSONResponse
from starlette.concurrency import run_in_threadpool

from api.deps import CallerDep, DatabaseDep, ReportPagesDep
from api.routes.reports import page_response, read_report
from api.web.forms import PageRoute
from replaceme_core.errors import NotFound
from replaceme_core.report.plots.style import Format

router = APIRouter(route_class=PageRoute, include_in_schema=False)

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
