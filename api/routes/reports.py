"""The report of a job."""

from fastapi import APIRouter

from api.deps import CallerDep, JobsToReadDep
from replaceme_core.json_values import json_safe

router = APIRouter(tags=["history"])


@router.get("/jobs/{job_id}/report")
def get_report(job_id: str, jobs: JobsToReadDep, caller: CallerDep) -> dict[str, object]:
    """The content of `replaceme.json`, also of a result that a gate rejected. 404 until there is one."""
    jobs.get(job_id, owner=caller)
    return {name: json_safe(value) for name, value in jobs.report(job_id).items()}
