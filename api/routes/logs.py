"""The log of a job."""

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from api.deps import CallerDep, ReadingSessionDep
from api.http.responses import UNCHANGED, json_response, next_page
from api.schemas.body import ListBody
from api.schemas.logs import LogLineBody, LogsQuery
from replaceme_core.ledger import reading

router = APIRouter(tags=["history"])


@router.get("/jobs/{job_id}/logs", response_model=ListBody[LogLineBody], responses={**UNCHANGED})
def list_log_lines(
    job_id: str, query: Annotated[LogsQuery, Query()], session: ReadingSessionDep, caller: CallerDep, request: Request
) -> Response:
    """The last lines that the runners of a job wrote, oldest first. `next_cursor` is the `after` of the next page."""
    page = reading.log(session, job_id, after=query.after, limit=query.limit, owner=caller)
    body = ListBody[LogLineBody](items=[LogLineBody.of(line) for line in page.items], next_cursor=page.next_cursor)
    headers = {} if page.next_cursor is None else {"Link": next_page(request, cursor=page.next_cursor, name="after")}
    return json_response(body.model_dump_json(), request=request, headers=headers)
