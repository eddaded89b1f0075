"""The list of jobs, with filters, and live."""

from http import HTTPStatus
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from pydantic import ValidationError

from api.deps import CallerDep, FeedDep, JobsToReadDep, ReaderDep
from api.http.validation import parameter_problem
from api.schemas.jobs import JobBody
from api.schemas.lists import JobId, JobsQuery
from api.web.forms import PageRoute
from api.web.live import changes, resume_after, stream
from api.web.rendering import page, root_of
from replaceme_core.errors import InvalidInput
from replaceme_core.jobs.repository import Jobs
from replaceme_core.jobs.states import JobStatus

router = APIRouter(route_class=PageRoute, include_in_schema=False)

JOBS_ON_A_PAGE = 50
_LONGEST_FILTER = 1000
Text = Annotated[str, Query(max_length=_LONGEST_FILTER)]
Statuses = Annotated[list[str], Query(max_length=len(JobStatus))]


@router.get("/ui/jobs")
def list_jobs(
    jobs: JobsToReadDep,
    caller: CallerDep,
    request: Request,
    status: Statuses = [],  # noqa: B006  # the framework copies it
    label: Text = "",
    model: Text = "",
    cursor: Text = "",
) -> Response:
    """The page. Filters that are not valid are shown with what would be right, and match nothing."""
    given = {"status": status, "label": label, "model": model, "cursor": cursor}
    return _listed("jobs.html", jobs, caller, request, given)


@router.get("/ui/job-rows")
def list_rows(
    jobs: JobsToReadDep,
    caller: CallerDep,
    request: Request,
    status: Statuses = [],  # noqa: B006
    label: Text = "",
    model: Text = "",
    cursor: Text = "",
) -> Response:
    """The part of the page that changes."""
    given = {"status": status, "label": label, "model": model, "cursor": cursor}
    return _listed("jobs_rows.html", jobs, caller, request, given)


@router.get("/ui/job-changes")
async def stream_changes(
    caller: CallerDep,
    request: Request,
    feed: FeedDep,
    reader: ReaderDep,
    running: Annotated[list[JobId], Query(max_length=JOBS_ON_A_PAGE)] = [],  # noqa: B006
) -> Response:
    """A stream that says when a job of the caller has changed; `running` are those whose progress is shown."""
    messages = feed.of_owner(caller, after=resume_after(request, default=None))
    return stream(changes(messages, running=running, owner=caller, reader=reader, of_job=False))


def _listed(template: str, jobs: Jobs, caller: str, request: Request, given: dict[str, Any]) -> Response:
    errors: dict[str, str] = {}
    items: list[JobBody] = []
    next_cursor = None
    try:
        query = _query(given)
        found = jobs.page(
            owner=caller, filters=query.filters(), sort=query.sort, limit=JOBS_ON_A_PAGE, cursor=query.cursor
        )
        items = [JobBody.of(snapshot.job(), root=root_of(request.scope)) for snapshot in found.items]
        next_cursor = found.next_cursor
    except ValidationError as error:
        for raw in error.errors():
            problem = parameter_problem(raw, default="model")
            errors.setdefault(problem["field"].partition(".")[0], problem["message"])
    except InvalidInput as error:  # a cursor of another list
        errors[error.field or "model"] = error.message
    return page(
        template,
        request.scope,
        status=HTTPStatus.UNPROCESSABLE_ENTITY if errors else HTTPStatus.OK,
        jobs=items,
        next_cursor=next_cursor,
        given=given,
        errors=errors,
        statuses=list(JobStatus),
        is_filtered=any(given[name] for name in ("status", "label", "model")),
        running=[job.id for job in items if job.status is JobStatus.RUNNING],
        counts={one: sum(job.status is one for job in items) for one in JobStatus},
    )


def _query(given: dict[str, Any]) -> JobsQuery:
    """The filters as the API takes them. Raises `ValidationError`."""
    fields = {
        "status": given["status"],
        "label": given["label"].replace(",", " ").split(),
        "model": given["model"].strip() or None,
        "cursor": given["cursor"] or None,
    }
    return JobsQuery.model_validate({name: value for name, value in fields.items() if value})
