"""Jobs: submit, look at, list, cancel."""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Body, Query, Request, Response

from api.deps import CallerDep, IdempotencyKeyDep, JobsDep, JobsToReadDep, ReaderDep, ServicesDep
from api.http.bodies import StrictRoute
from api.schemas.jobs import JobBody, JobsQuery, ListBody, QueuedJobBody
from api.submission import Submission
from replaceme_core.jobs.states import JobStatus
from replaceme_core.spec import CompressionRequest

router = APIRouter(tags=["jobs"], route_class=StrictRoute)

_EXAMPLE = {"model": "HuggingFaceTB/SmolLM2-135M-Instruct", "ratio": 0.25, "calibration": "builtin:pydoc-topics"}


@router.post("/jobs", status_code=HTTPStatus.ACCEPTED, response_model=JobBody)
async def submit(
    body: Annotated[CompressionRequest, Body(examples=[_EXAMPLE])],
    key: IdempotencyKeyDep,
    services: ServicesDep,
    caller: CallerDep,
    request: Request,
) -> Response:
    """Ask for a model to be compressed. With an `Idempotency-Key` it may be asked again, and is done once."""
    submission = Submission(body, key=key, owner=caller, services=services, scope=request.scope)
    shown = JobBody.of(await submission.carry_out(), root=_root(request))
    return _as_it_is(shown, status=HTTPStatus.ACCEPTED, headers={"Location": shown.links.self})


@router.get("/jobs")
def list_jobs(
    query: Annotated[JobsQuery, Query()], jobs: JobsToReadDep, caller: CallerDep, request: Request
) -> ListBody[JobBody]:
    """Newest first."""
    page = jobs.page(owner=caller, status=query.status, labels=query.labels(), limit=query.limit, cursor=query.cursor)
    return ListBody(items=[JobBody.of(job, root=_root(request)) for job in page.items], next_cursor=page.next_cursor)


@router.get("/jobs/{job_id}", response_model=QueuedJobBody)
async def get_job(job_id: str, reader: ReaderDep, caller: CallerDep, request: Request) -> Response:
    """The job, and its place in the queue while it waits."""
    job, place = await reader.read(job_id, owner=caller)
    return _as_it_is(QueuedJobBody.at(place, job, root=_root(request)))


@router.post("/jobs/{job_id}/cancel", responses={HTTPStatus.ACCEPTED: {"model": JobBody}})
def cancel(job_id: str, jobs: JobsDep, caller: CallerDep, request: Request, response: Response) -> JobBody:
    """202 while a running job is being stopped, 200 once it is cancelled. Asking again changes nothing."""
    job = jobs.request_cancel(job_id, owner=caller)
    if job.status is not JobStatus.CANCELLED:
        response.status_code = HTTPStatus.ACCEPTED
    return JobBody.of(job, root=_root(request))


def _as_it_is(
    body: JobBody, *, status: HTTPStatus = HTTPStatus.OK, headers: Mapping[str, str] | None = None
) -> Response:
    """For what is asked most: the body was checked when it was made, and the framework would check it once more."""
    return Response(body.model_dump_json(), status_code=status, headers=headers, media_type="application/json")


def _root(request: Request) -> str:
    root: str = request.scope.get("root_path", "")
    return root.rstrip("/")
