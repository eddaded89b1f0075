"""Jobs: submit, look at, list, cancel."""

from http import HTTPStatus
from typing import Annotated
from uuid import uuid4

import structlog
from fastapi import APIRouter, Body, Depends, Query, Request, Response

from api.bodies import StrictRoute
from api.deps import (
    CallerDep,
    DatabaseDep,
    HubDep,
    IdempotencyKeyDep,
    JobsDep,
    JobsToReadDep,
    QueueDep,
    ReaderDep,
    SessionDep,
    SettingsDep,
)
from api.queue import Queue
from api.schemas import JobBody, JobsQuery, ListBody, QueuedJobBody
from replaceme_core.errors import QueueUnreachable
from replaceme_core.intake import resolve_request
from replaceme_core.jobs.repository import Job, Jobs, Once
from replaceme_core.jobs.states import JobStatus
from replaceme_core.spec import CompressionRequest, CompressionSpec

router = APIRouter(tags=["jobs"], route_class=StrictRoute)

_EXAMPLE = {"model": "HuggingFaceTB/SmolLM2-135M-Instruct", "ratio": 0.25, "calibration": "builtin:pydoc-topics"}

_log = structlog.get_logger(__name__)


class Submission:
    """A new job's id and what it is to do; or the job that this request, sent before, has made.

    For a request that was sent before the Hub is not asked. It may be down by now, or hold something else.
    """

    def __init__(
        self,
        body: Annotated[CompressionRequest, Body(examples=[_EXAMPLE])],
        key: IdempotencyKeyDep,
        database: DatabaseDep,
        hub: HubDep,
        settings: SettingsDep,
        caller: CallerDep,
    ) -> None:
        self.job_id = str(uuid4())
        self.once: Once | None = None
        self.earlier: Job | None = None
        self.spec: CompressionSpec | None = None
        self._default_route = settings.default_route
        if key is not None:
            self.once = Once(key=key, fingerprint=body.fingerprint(), keep_seconds=settings.idempotency_seconds)
            with database.session(read_only=True) as session:
                self.earlier = Jobs(session).submitted_before(self.once, owner=caller)
        if self.earlier is None:
            self.spec = resolve_request(
                body, hub, calibration_root=settings.calibration_root, job_id=self.job_id
            ).with_limits(
                max_queue_seconds=settings.max_queue_seconds, max_runtime_seconds=settings.max_runtime_seconds
            )

    def made(self, jobs: Jobs, *, owner: str) -> Job:
        """The new job, or the one that was made before."""
        if self.spec is None:
            assert self.earlier is not None
            return self.earlier
        return jobs.add(
            spec=self.spec,
            owner=owner,
            job_id=self.job_id,
            once=self.once,
            default_route=self._default_route,
        )


@router.post("/jobs", status_code=HTTPStatus.ACCEPTED)
def submit(
    # Dependencies are resolved in this order: the Hub has answered before the transaction begins.
    submission: Annotated[Submission, Depends()],
    session: SessionDep,
    jobs: JobsDep,
    queue: QueueDep,
    caller: CallerDep,
    request: Request,
    response: Response,
) -> JobBody:
    """Ask for a model to be compressed. With an `Idempotency-Key` it may be asked again, and is done once."""
    job = submission.made(jobs, owner=caller)
    if job.id == submission.job_id:
        session.after_commit(lambda: _ring(queue, job))
    body = JobBody.of(job, root=_root(request))
    response.headers["Location"] = body.links.self
    return body


def _ring(queue: Queue, job: Job) -> None:
    try:
        queue.enqueue(job.id, route=job.route)
    except QueueUnreachable as error:
        _log.warning("job accepted, the sweep will ring for it", job_id=job.id, error=error.message)
    else:
        _log.info("job accepted", job_id=job.id)


@router.get("/jobs")
def list_jobs(
    query: Annotated[JobsQuery, Query()], jobs: JobsToReadDep, caller: CallerDep, request: Request
) -> ListBody[JobBody]:
    """Newest first."""
    page = jobs.page(owner=caller, status=query.status, labels=query.labels(), limit=query.limit, cursor=query.cursor)
    return ListBody(items=[JobBody.of(job, root=_root(request)) for job in page.items], next_cursor=page.next_cursor)


@router.get("/jobs/{job_id}")
async def get_job(job_id: str, reader: ReaderDep, caller: CallerDep, request: Request) -> QueuedJobBody:
    """The job, and its place in the queue while it waits."""
    job, place = await reader.read(job_id, owner=caller)
    return QueuedJobBody.at(place, job, root=_root(request))


@router.post("/jobs/{job_id}/cancel", responses={HTTPStatus.ACCEPTED: {"model": JobBody}})
def cancel(job_id: str, jobs: JobsDep, caller: CallerDep, request: Request, response: Response) -> JobBody:
    """202 while a running job is being stopped, 200 once it is cancelled. Asking again changes nothing."""
    job = jobs.request_cancel(job_id, owner=caller)
    if job.status is not JobStatus.CANCELLED:
        response.status_code = HTTPStatus.ACCEPTED
    return JobBody.of(job, root=_root(request))


def _root(request: Request) -> str:
    root: str = request.scope.get("root_path", "")
    return root.rstrip("/")
