"""What clients ask of jobs that exist: cancel, retry, delete."""

from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Body, Request, Response

from api.deps import CallerDep, FeedDep, IdempotencyKeyDep, ReaderDep, SessionDep, SubmitterDep
from api.http.problems import MethodRefused
from api.http.requests import StrictRoute
from api.routes.jobs import accepted, root_of
from api.schemas.jobs import JobBody
from api.schemas.lists import CancelledBody, CancelledJobsBody, CancelRequest
from api.schemas.submission import SubmittedJobBody
from replaceme_core.ledger import changes
from replaceme_core.ledger.states import JobStatus

router = APIRouter(tags=["jobs"], route_class=StrictRoute)

_NOT_OF_A_CANCEL = ["GET", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"]
MOST_CANCELLED = 500
"""In one transaction, which holds the rows of all of them."""


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
    done = changes.cancel_matching(session, owner=caller, filters=body.filters(), limit=MOST_CANCELLED)
    items = [CancelledBody(id=job_id, status=status) for job_id, status in done.statuses.items()]
    return CancelledJobsBody(items=items, more=done.more)


@router.post("/jobs/{job_id}/cancel", responses={HTTPStatus.ACCEPTED: {"model": JobBody}})
def cancel_job(job_id: str, session: SessionDep, caller: CallerDep, request: Request, response: Response) -> JobBody:
    """Cancel a job. 202 while a running job is being stopped, 200 once it is cancelled. May be repeated."""
    job = changes.request_cancel(session, job_id, owner=caller)
    if job.status is not JobStatus.CANCELLED:
        response.status_code = HTTPStatus.ACCEPTED
    return JobBody.of(job, root=root_of(request))


@router.post("/jobs/{job_id}/retry", status_code=HTTPStatus.ACCEPTED, response_model=SubmittedJobBody)
async def retry_job(
    job_id: str,
    key: IdempotencyKeyDep,
    submitter: SubmitterDep,
    reader: ReaderDep,
    feed: FeedDep,
    caller: CallerDep,
    request: Request,
) -> Response:
    """Submit a new job with the stored specification of one that has finished. Each names the other."""
    submitted = await submitter.retry(job_id, key=key, owner=caller, scope=request.scope)
    return await accepted(submitted, request=request, reader=reader, feed=feed)


@router.delete("/jobs/{job_id}", status_code=HTTPStatus.NO_CONTENT)
def delete_job(job_id: str, session: SessionDep, caller: CallerDep) -> None:
    """Delete a job that has finished, with its events, metrics, log and report. Its result stays on the Hub."""
    changes.delete_job(session, job_id, owner=caller)
