"""The list of jobs, with filters, and live."""

from collections.abc import Mapping
from contextlib import suppress
from http import HTTPStatus
from typing import Annotated
from urllib.parse import urlencode
from uuid import uuid4

from fastapi import APIRouter, Query, Request, Response
from pydantic import Field, ValidationError

from api.bodies import JobBody, Parameters
from api.dashboard.middleware import FormDep, key_of
from api.dashboard.rendering import page, see
from api.routes.deps import CallerDep, ReadingSessionDep, ServicesDep, SessionDep
from api.routes.jobs import JobsQuery, job_body
from replaceme_core.errors import InvalidInput, JobNotFound, StaleTransition
from replaceme_core.ledger import changes, reading
from replaceme_core.ledger.states import JobStatus
from replaceme_core.validation import parameter_problem

router = APIRouter()

JOBS_ON_A_PAGE = 50
_TICK = "job-"
"""Before the id, in the name of a box that is ticked."""
_SORTS = {
    "": "Newest first",
    "created_at": "Oldest first",
    "-finished_at": "Latest finish first",
    "finished_at": "Earliest finish first",
}
_LONGEST_FILTER = 1000
Text = Annotated[str, Field(max_length=_LONGEST_FILTER)]


class Filters(Parameters):
    """What the form of the list sends. Empty fields do not filter; labels are separated by commas."""

    status: list[str] = Field(default=[], max_length=len(JobStatus))
    label: Text = ""
    model: Text = ""
    sort: Text = ""
    cursor: Text = ""

    def query(self) -> JobsQuery:
        """The same as the API takes it. Raises `ValidationError`."""
        fields = {
            "status": self.status,
            "label": self.label.replace(",", " ").split(),
            "model": self.model.strip(),
            "sort": self.sort,
            "cursor": self.cursor,
        }
        return JobsQuery.model_validate({name: value for name, value in fields.items() if value})


FiltersDep = Annotated[Filters, Query()]


@router.get("/ui/jobs")
def list_jobs(filters: FiltersDep, session: ReadingSessionDep, caller: CallerDep, request: Request) -> Response:
    """The page. Filters that are not valid are shown with what would be right, and match nothing."""
    errors: dict[str, str] = {}
    items: list[JobBody] = []
    totals: dict[JobStatus, int] = {}
    next_cursor = None
    try:
        query = filters.query()
        found = reading.page(
            session, owner=caller, filters=query.filters(), sort=query.sort, limit=JOBS_ON_A_PAGE, cursor=query.cursor
        )
        items = [job_body(snapshot.job(), request) for snapshot in found.items]
        totals = reading.totals(session, owner=caller, filters=query.filters())
        next_cursor = found.next_cursor
    except ValidationError as error:
        for raw in error.errors():
            problem = parameter_problem(raw, default="model")
            errors.setdefault(problem["field"].partition(".")[0], problem["message"])
    except InvalidInput as error:  # a cursor of another list
        errors[error.field or "model"] = error.message
    return page(
        "jobs.html",
        request.scope,
        status=HTTPStatus.UNPROCESSABLE_ENTITY if errors else HTTPStatus.OK,
        jobs=items,
        next_cursor=next_cursor,
        given=filters.model_dump(),
        errors=errors,
        statuses=list(JobStatus),
        is_filtered=bool(filters.status or filters.label or filters.model),
        totals=totals,
        sorts=_SORTS,
        form_key=str(uuid4()),
    )


@router.post("/ui/chosen/compare")
def compare_chosen(form: FormDep, request: Request) -> Response:
    query = urlencode([("id", one) for one in _chosen(form)])
    return see(f"/ui/compare?{query}", request.scope)


@router.post("/ui/chosen/cancel")
def cancel_chosen(form: FormDep, session: SessionDep, caller: CallerDep, request: Request) -> Response:
    """Those that have ended already stay as they are."""
    if ids := _chosen(form):
        changes.cancel_matching(session, owner=caller, filters=reading.JobFilters(ids=ids), limit=len(ids))
    return see("/ui/jobs", request.scope)


@router.post("/ui/chosen/retry")
async def retry_chosen(form: FormDep, services: ServicesDep, request: Request) -> Response:
    """A new job like each that has ended, and is there yet; sent twice it makes each once, whatever else is ticked."""
    for one in _chosen(form):
        with suppress(StaleTransition, JobNotFound):
            key = key_of({"key": form.get("key", ""), "job": one})
            await services.submitter.retry(one, key=key, scope=request.scope)
    return see("/ui/jobs", request.scope)


def _chosen(form: Mapping[str, str]) -> list[str]:
    """The jobs that are ticked, those of a page at most."""
    return [name.removeprefix(_TICK) for name in form if name.startswith(_TICK)][:JOBS_ON_A_PAGE]
