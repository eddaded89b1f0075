"""Workers."""

from fastapi import APIRouter, Request, Response

from api.deps import CallerDep, ReadingSessionDep
from api.http.responses import UNCHANGED, json_response
from api.schemas.body import ListBody
from api.schemas.workers import WorkerBody
from replaceme_core.ledger.watching import Workers

router = APIRouter(tags=["workers"])


@router.get("/workers", response_model=ListBody[WorkerBody], responses={**UNCHANGED})
def list_workers(session: ReadingSessionDep, caller: CallerDep, request: Request) -> Response:
    """The workers by name: those that are alive, and those that were lost within the last hour."""
    body = ListBody[WorkerBody](items=[WorkerBody.of(worker, caller=caller) for worker in Workers(session).list()])
    return json_response(body.model_dump_json(), request=request)
