"""Metrics of a job."""

from fastapi import APIRouter

from api.deps import CallerDep, JobsToReadDep
from api.schemas.body import ListBody
from api.schemas.metrics import MetricBody

router = APIRouter(tags=["history"])


@router.get("/jobs/{job_id}/metrics")
def list_metrics(job_id: str, jobs: JobsToReadDep, caller: CallerDep) -> ListBody[MetricBody]:
    """The values that the current attempt measured, oldest first."""
    jobs.get(job_id, owner=caller)
    return ListBody(items=[MetricBody.of(metric) for metric in jobs.metrics(job_id)])
