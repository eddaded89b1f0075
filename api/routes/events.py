"""Events of a job."""

from typing import Annotated

from fastapi import APIRouter, Query

from api.deps import CallerDep, JobsToReadDep
from api.schemas.body import ListBody
from api.schemas.events import EventBody, EventsQuery

router = APIRouter(tags=["history"])


@router.get("/jobs/{job_id}/events")
def list_events(
    job_id: str, query: Annotated[EventsQuery, Query()], jobs: JobsToReadDep, caller: CallerDep
) -> ListBody[EventBody]:
    """The events of a job with a `seq` above `after`, oldest first. `next_cursor` is the `after` of the next page."""
    jobs.get(job_id, owner=caller)
    page = jobs.events(job_id, after=query.after, limit=query.limit)
    return ListBody(items=[EventBody.of(event) for event in page.items], next_cursor=page.next_cursor)
