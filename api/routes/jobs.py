"""Jobs: submit, get, list, cancel."""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Body, Query, Request, Response

from api.deps import CallerDep, IdempotencyKeyDep, JobsDep, JobsToReadDep, ReaderDep, SubmitterDep
from api.http.bodies import StrictRoute
from api.schemas.body import ListBody
from api.schemas.jobs import JobBody, JobsQuery, QueuedJobBody
from api.schemas.webhooks import JobRequest, SubmittedJobBody, WebhookWithSecretBody
from replaceme_core.jobs.states import JobStatus

router = APIRouter(tags=["jobs"], route_class=StrictRoute)

_ONE_TEXT = {"model": "HuggingFaceTB/SmolLM2-135M-Instruct", "ratio": 0.25, "calibration": "builtin:general"}
_SEVERAL_SOURCES = {
    **_ONE_TEXT,
    "calibration": [
        {"dataset": "Salesforce/wikitext", "config": "wikitext-2-raw-v1", "share": 0.5},
        {"dataset": "builtin:dialogue", "share": 0.25},
        {"self_generated": True, "share": 0.25},
    ],
}
_WITH_WEBHOOK = {**_ONE_TEXT, "webhook": {"url": "https://hooks.example.com/replaceme", "events": ["succeeded"]}}


@router.post("/jobs", status_code=HTTPStatus.ACCEPTED, response_model=SubmittedJobBody)
async def submit(
    body: Annotated[JobRequest, Body(examples=[_ONE_TEXT, _SEVERAL_SOURCES, _WITH_WEBHOOK])],
    key: IdempotencyKeyDep,
    submitter: SubmitterDep,
    caller: CallerDep,
    request: Request,
) -> Response:
    """Submit a job that compresses a model. With an `Idempotency-Key`, a repeated request creates no second job."""
    submitted = await submitter.submit(body, key=key, owner=caller, scope=request.scope)
    root, webhook = _root(request), submitted.webhook
    if webhook is None:
        answer = JobBody.of(submitted.job, root=root)
    else:
        shown = WebhookWithSecretBody.of(webhook, root=root, secret=submitted.secret)
        answer = SubmittedJobBody.of(submitted.job, root=root, webhook=shown)
    return _unchecked(answer, status=HTTPStatus.ACCEPTED, headers={"Location": answer.links.self})


@router.get("/jobs")
def list_jobs(
    query: Annotated[JobsQuery, Query()], jobs: JobsToReadDep, caller: CallerDep, request: Request
) -> ListBody[JobBody]:
    """Your jobs, newest first."""
    page = jobs.page(owner=caller, status=query.status, labels=query.labels(), limit=query.limit, cursor=query.cursor)
    return ListBody(items=[JobBody.of(job, root=_root(request)) for job in page.items], next_cursor=page.next_cursor)


@router.get("/jobs/{job_id}", response_model=QueuedJobBody)
async def get_job(job_id: str, reader: ReaderDep, caller: CallerDep, request: Request) -> Response:
    """A job and, while it is queued, its queue position."""
    job, position = await reader.read(job_id, owner=caller)
    return _unchecked(QueuedJobBody.at(position, job, root=_root(request)))


@router.post("/jobs/{job_id}/cancel", responses={HTTPStatus.ACCEPTED: {"model": JobBody}})
def cancel(job_id: str, jobs: JobsDep, caller: CallerDep, request: Request, response: Response) -> JobBody:
    """Cancel a job. 202 while a running job is being stopped, 200 once it is cancelled. May be repeated."""
    job = jobs.request_cancel(job_id, owner=caller)
    if job.status is not JobStatus.CANCELLED:
        response.status_code = HTTPStatus.ACCEPTED
    return JobBody.of(job, root=_root(request))


def _unchecked(
    body: JobBody, *, status: HTTPStatus = HTTPStatus.OK, headers: Mapping[str, str] | None = None
) -> Response:
    """A response for the busiest routes: `body` is already validated, and the framework would validate it again."""
    return Response(body.model_dump_json(), status_code=status, headers=headers, media_type="application/json")


def _root(request: Request) -> str:
    root: str = request.scope.get("root_path", "")
    return root.rstrip("/")
