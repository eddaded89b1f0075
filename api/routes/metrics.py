"""Metrics of a job."""

from fastapi import APIRouter

from api.deps import CallerDep, ReadingSessionDep
from api.schemas.body import ListBody
from api.schemas.metrics import MetricBody
from replaceme_core.ledger import reading

router = APIRouter(tags=["history"])


@router.get("/jobs/{job_id}/metrics")
def list_metrics(job_id: str, session: ReadingSessionDep, caller: CallerDep) -> ListBody[MetricBody]:
    """The values that the current attempt measured, oldest first."""
    return ListBody(items=[MetricBody.of(metric) for metric in reading.metrics(session, job_id, owner=caller)])
