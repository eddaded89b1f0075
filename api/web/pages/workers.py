"""Workers and queues with their load."""

from dataclasses import dataclass

from fastapi import APIRouter, Request, Response

from api.deps import CallerDep, JobsToReadDep
from api.schemas.workers import WorkerBody
from api.web.forms import PageRoute
from api.web.rendering import page
from replaceme_core.ledger.repository import Jobs
from replaceme_core.ledger.scheduling.queue_position import MAX_COUNTED
from replaceme_core.request.worker_kind import WorkerKind

router = APIRouter(route_class=PageRoute, include_in_schema=False)


@dataclass(frozen=True, kw_only=True)
class QueueLoad:
    """The jobs that wait for workers of `kind`; `None`: for any. `busy` of the `alive` workers run a job."""

    kind: WorkerKind | None
    waiting: int
    mine: int
    alive: int
    busy: int


@router.get("/ui/workers")
def show_workers(jobs: JobsToReadDep, caller: CallerDep, request: Request) -> Response:
    return _shown("workers.html", jobs, caller, request)


@router.get("/ui/workers/live")
def show_live_part(jobs: JobsToReadDep, caller: CallerDep, request: Request) -> Response:
    """The part of the page that changes."""
    return _shown("workers_live.html", jobs, caller, request)


def _shown(template: str, jobs: Jobs, caller: str, request: Request) -> Response:
    workers = [WorkerBody.of(worker, caller=caller) for worker in jobs.workers.list()]
    queued = list(jobs.queue_snapshot().queued.values())
    loads = []
    for kind in (None, *WorkerKind):
        able = [one for one in workers if one.alive and (kind is None or kind in one.kinds)]
        waiting = [job for job in queued if job.worker_kind == kind]
        loads.append(
            QueueLoad(
                kind=kind,
                waiting=len(waiting),
                mine=sum(job.owner == caller for job in waiting),
                alive=len(able),
                busy=sum(one.busy for one in able),
            )
        )
    return page(
        template,
        request.scope,
        workers=workers,
        loads=loads,
        is_cut_off=len(queued) > MAX_COUNTED,
        most_counted=MAX_COUNTED,
        alive=sum(one.alive for one in workers),
    )
