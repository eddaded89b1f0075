"""Jobs: submit, get, list."""

from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Body, Query, Request, Response
from pydantic.main import IncEx

from api.auth.caller import caller_of
from api.deps import CallerDep, FeedDep, IdempotencyKeyDep, ReaderDep, ReadingSessionDep, SubmitterDep
from api.http import deadline
from api.http.requests import StrictRoute, wait_seconds
from api.http.responses import (
    CHECKED,
    NO_STORE,
    UNCHANGED,
    is_known,
    json_response,
    known_tags,
    next_page,
    not_modified,
    tag_of,
)
from api.jobs.batched_reader import BatchedReader
from api.jobs.event_feed import EventFeed
from api.jobs.submission import Submitted
from api.jobs.unchanged import headers_of, retry_after
from api.schemas.body import ListBody
from api.schemas.jobs import JobBody, JobPartBody, WholeJobBody
from api.schemas.lists import JobsQuery
from api.schemas.plans import PlanBody
from api.schemas.submission import JobRequest, SubmittedJobBody
from replaceme_core.ledger import reading
from replaceme_core.ledger.records import Job

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
_DEEPEST = {**_ONE_TEXT, "ratio": {"max": 0.5}, "gate": {"perplexity_ratio": {"max": 1.6}}}
_WITH_WEBHOOK = {**_ONE_TEXT, "webhook": {"url": "https://hooks.example.com/replaceme", "events": ["succeeded"]}}
_PREFER = {
    "name": "Prefer",
    "in": "header",
    "required": False,
    "schema": {"type": "string", "examples": ["wait=30"]},
    "description": "`wait=N`: hold the answer until the job has ended, at most N seconds and at most 60.",
}


@router.post(
    "/jobs",
    status_code=HTTPStatus.ACCEPTED,
    response_model=SubmittedJobBody,
    responses={HTTPStatus.OK: {"model": PlanBody, "description": "The plan, with `validate_only`"}},
    openapi_extra={"parameters": [_PREFER]},
)
async def submit_job(
    body: Annotated[JobRequest, Body(examples=[_ONE_TEXT, _SEVERAL_SOURCES, _DEEPEST, _WITH_WEBHOOK])],
    key: IdempotencyKeyDep,
    submitter: SubmitterDep,
    reader: ReaderDep,
    feed: FeedDep,
    caller: CallerDep,
    request: Request,
) -> Response:
    """Submit a job that compresses a model. With an `Idempotency-Key`, a repeated request creates no second job.

    With `validate_only` nothing is queued: the response is the plan, or the error that the submission would get.
    """
    if body.validate_only:
        plan = await submitter.validate(body, caller=caller_of(request.scope))
        return json_response(PlanBody.of(plan).model_dump_json(), request=request)
    submitted = await submitter.submit(body, key=key, owner=caller, scope=request.scope)
    return await accepted(submitted, request=request, reader=reader, feed=feed)


@router.get("/jobs", response_model=ListBody[JobPartBody], responses={**UNCHANGED})  # type: ignore[valid-type]
def list_jobs(
    query: Annotated[JobsQuery, Query()], session: ReadingSessionDep, caller: CallerDep, request: Request
) -> Response:
    """Your jobs, newest first, or as `sort` says."""
    page = reading.page(
        session, owner=caller, filters=query.filters(), sort=query.sort, limit=query.limit, cursor=query.cursor
    )
    headers = {} if page.next_cursor is None else {"Link": next_page(request, cursor=page.next_cursor)}
    # before the records are made, which takes most of the time
    tag = tag_of(*((snapshot.id, snapshot.version) for snapshot in page.items), query.shown(), page.next_cursor)
    if is_known(tag, known_tags(request)):
        return not_modified(tag, headers=headers)
    bodies = [JobBody.of(snapshot.job(), root=root_of(request)) for snapshot in page.items]
    listed = ListBody[JobBody](items=bodies, next_cursor=page.next_cursor)
    shown = query.shown()
    include: IncEx | None = None
    if shown is not None:
        items: IncEx = {"__all__": set(shown)}
        include = {"items": items, "next_cursor": True}
    return json_response(listed.model_dump_json(include=include), request=request, tag=tag, headers=headers)


@router.get("/jobs/{job_id}", response_model=WholeJobBody, responses={**UNCHANGED})
async def get_job(job_id: str, reader: ReaderDep, caller: CallerDep, request: Request) -> Response:
    """A job with its stages, its attempts and, while it is queued, its queue position."""
    known = known_tags(request)
    found = await reader.read(job_id, owner=caller, known=known)
    headers = headers_of(found)
    if found.seen is None or is_known(found.tag, known):
        return not_modified(found.tag, headers=headers)
    seen = found.seen
    whole = WholeJobBody.at(seen.position, seen.job, seen.timeline, root=root_of(request))
    return json_response(whole.model_dump_json(), request=request, tag=found.tag, headers=headers)


async def accepted(submitted: Submitted, *, request: Request, reader: BatchedReader, feed: EventFeed) -> Response:
    """202 with the job; after it has ended, or has been waited for as long as the client prefers."""
    job = submitted.job
    headers: dict[str, str] = {"Idempotent-Replayed": "true"} if submitted.repeated else {}
    seconds = wait_seconds(request)
    if seconds:
        headers["Preference-Applied"] = f"wait={seconds}"
        if not job.is_terminal:
            job = await _wait_for_end(job, seconds=seconds, request=request, reader=reader, feed=feed)
    body = SubmittedJobBody.after(
        job,
        repeated=submitted.repeated,
        webhook=submitted.webhook,
        secret=submitted.secret,
        root=root_of(request),
    )
    headers |= {"Location": body.links.self, "Cache-Control": CHECKED if submitted.secret is None else NO_STORE}
    if not job.is_terminal:
        headers["Retry-After"] = retry_after(job.status, job.eta_seconds)
    # already validated, and the framework would validate it again
    return Response(body.as_json(), status_code=HTTPStatus.ACCEPTED, headers=headers, media_type="application/json")


async def _wait_for_end(job: Job, *, seconds: float, request: Request, reader: BatchedReader, feed: EventFeed) -> Job:
    deadline.extend(request.scope, seconds)
    await feed.wait_for_end(job.id, owner=job.owner, seconds=seconds)
    found = await reader.read(job.id, owner=job.owner)
    return job if found.seen is None else found.seen.job


def root_of(request: Request) -> str:
    """The path under which the API is reached, usually ""."""
    root: str = request.scope.get("root_path", "")
    return root.rstrip("/")
