"""The report of a job."""

from http import HTTPStatus
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import HTMLResponse
from starlette.concurrency import run_in_threadpool

from api.http.requests import prefers_html
from api.http.responses import NO_STORE
from api.routes.deps import CallerDep, DatabaseDep, ReportPagesDep
from replaceme_core.ledger import reading
from replaceme_core.ledger.database import Database
from replaceme_core.report.page import policy
from replaceme_core.wording import json_safe

router = APIRouter(tags=["history"])

_PAGE: dict[int | str, dict[str, Any]] = {
    HTTPStatus.OK.value: {
        "description": "The content of `replaceme.json`; with `Accept: text/html` a page that shows it",
        "content": {"text/html": {"schema": {"type": "string"}}},
    }
}


@router.get("/jobs/{job_id}/report", response_model=dict[str, object], responses=_PAGE)
async def get_report(
    job_id: str, database: DatabaseDep, pages: ReportPagesDep, caller: CallerDep, request: Request, response: Response
) -> object:
    """The content of `replaceme.json`, also of a result that a gate rejected. 404 until there is one.

    With `Accept: text/html` it is one HTML page with tables and plots, which needs nothing else.
    """
    report = await run_in_threadpool(read_report, database, job_id, owner=caller)
    if prefers_html(request.headers.get("accept", "")):
        return page_response(await pages.page(report))
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
