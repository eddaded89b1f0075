"""Workers."""

from fastapi import APIRouter, Request, Response

from api.deps import CallerDep, JobsToReadDep
from api.http.responses import UNCHANGED, json_response
from api.schemas.body import ListBody
from api.schemas.workers import WorkerBody

router = APIRouter(tags=["workers"])


@router.get("/workers", response_model=ListBody[WorkerBody], responses={**UNCHANGED})
def list_workers(jobs: JobsToReadDep, caller: CallerDep, request: Request) -> Response:
    """The workers by name: those that are alive, and those that were lost within the last hour."""
    body = ListBody[WorkerBody](items=[WorkerBody.of(worker, caller=caller) for worker in jobs.workers.list()])
    return json_response(body.model_dump_json(), request=request)
