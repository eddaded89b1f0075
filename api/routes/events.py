"""What a job has done: its events, its metrics, its report."""

from typing import Annotated

from fastapi import APIRouter, Query

from api.deps import CallerDep, JobsToReadDep
from api.schemas.jobs import EventBody, EventsQuery, ListBody, MetricBody
from replaceme_core.json_values import json_safe

router = APIRouter(prefix="/jobs/{job_id}", tags=["history"])


@router.get("/events")
def list_events(
    job_id: str, query: Annotated[EventsQuery, Query()], jobs: JobsToReadDep, caller: CallerDep
) -> ListBody[EventBody]:
    """In order, past the event `after`; `next_cursor` is the `after` of the next part."""
    jobs.get(job_id, owner=caller)
    page = jobs.events(job_id, after=query.after, limit=query.limit)
    return ListBody(items=[EventBody.of(event) for event in page.items], next_cursor=page.next_cursor)


@router.get("/metrics")
def list_metrics(job_id: str, jobs: JobsToReadDep, caller: CallerDep) -> ListBody[MetricBody]:
    """What the present attempt measured, in that order."""
    jobs.get(job_id, owner=caller)
    return ListBody(items=[MetricBody.of(metric) for metric in jobs.metrics(job_id)])


@router.get("/report")
def get_report(job_id: str, jobs: JobsToReadDep, caller: CallerDep) -> dict[str, object]:
    """The content of `replaceme.json` as it lies beside the result; 404 until the job has succeeded."""
    jobs.get(job_id, owner=caller)
    return {name: json_safe(value) for name, value in jobs.report(job_id).items()}
