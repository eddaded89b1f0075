"""Submission of a job: first everything that is slow and needs no transaction, then one short transaction.

Each of the two steps runs in a thread once. More thread switches would slow down every client that polls, since all
threads of the process share one interpreter lock.
"""

import asyncio
from uuid import uuid4

import structlog
from starlette.concurrency import run_in_threadpool
from starlette.types import Scope

from api.http import deadline
from api.jobs.planning import Planning, check_worker_kind
from api.queue import Queue
from replaceme_core.admission.resolve_request import admit_model, find_model, resolve_request
from replaceme_core.errors import QueueUnreachable
from replaceme_core.hub.port import Hub
from replaceme_core.jobs.records import IdempotencyKey, Job
from replaceme_core.jobs.repository import Jobs
from replaceme_core.jobs.session import Database
from replaceme_core.settings import Settings
from replaceme_core.spec import CompressionRequest, CompressionSpec

_log = structlog.get_logger(__name__)


class Submitter:
    """Submits jobs. `write_slots` limits how many transactions write at the same time."""

    def __init__(
        self,
        *,
        settings: Settings,
        database: Database,
        queue: Queue,
        hub: Hub,
        planning: Planning,
        write_slots: asyncio.Semaphore,
    ) -> None:
        self._settings = settings
        self._database = database
        self._queue = queue
        self._hub = hub
        self._write_slots = write_slots
        self._planning = planning

    async def submit(self, request: CompressionRequest, *, key: str | None, owner: str, scope: Scope) -> Job:
        """The new job, committed and enqueued; or the job that the same request with the same `key` created before.

        `key` is the request's `Idempotency-Key`; `scope` is its ASGI scope, which holds its deadline. Raises as
        `resolve_request` and `Jobs.add` do, `DatabaseUnreachable`, and `Unavailable` after the deadline.
        """
        idempotency_key = None
        if key is not None:
            keep_seconds = self._settings.idempotency_seconds
            idempotency_key = IdempotencyKey(key=key, fingerprint=request.fingerprint(), keep_seconds=keep_seconds)
        job_id = str(uuid4())
        prepared = await run_in_threadpool(
            self._prepare, request, job_id=job_id, owner=owner, idempotency_key=idempotency_key
        )
        if isinstance(prepared, Job):
            return prepared
        async with self._write_slots:
            return await run_in_threadpool(
                self._store, prepared, job_id=job_id, owner=owner, idempotency_key=idempotency_key, scope=scope
            )

    def _prepare(
        self, request: CompressionRequest, *, job_id: str, owner: str, idempotency_key: IdempotencyKey | None
    ) -> Job | CompressionSpec:
        """The specification with pinned revisions; or the earlier job of a repeated request.

        A repeated request does not contact the Hub, which may be down or have changed since.
        """
        if idempotency_key is not None:
            with self._database.session(read_only=True) as session:
                earlier = Jobs(session).find_by_key(idempotency_key, owner=owner)
            if earlier is not None:
                return earlier
        settings = self._settings
        check_worker_kind(request.compute.device, settings)
        planner = self._planning.planner(request, owner=owner)
        model = admit_model(find_model(request.model, self._hub), self._hub)
        spec = resolve_request(
            request,
            self._hub,
            calibration_root=settings.calibration_root,
            job_id=job_id,
            rules=planner.rules,
            model=model,
        )
        planner.check(spec, model)
        return spec.with_limits(
            max_queue_seconds=settings.max_queue_seconds, max_runtime_seconds=settings.max_runtime_seconds
        )

    def _store(
        self, spec: CompressionSpec, *, job_id: str, owner: str, idempotency_key: IdempotencyKey | None, scope: Scope
    ) -> Job:
        with self._database.session() as session:
            job = Jobs(session).add(
                spec=spec,
                owner=owner,
                job_id=job_id,
                idempotency_key=idempotency_key,
                default_worker_kind=self._settings.default_worker_kind,
            )
            if job.id == job_id:
                session.after_commit(lambda: _enqueue(self._queue, job))
            deadline.check(scope)
        return job


def _enqueue(queue: Queue, job: Job) -> None:
    try:
        queue.enqueue(job.id, worker_kind=job.worker_kind)
    except QueueUnreachable as error:
        _log.warning("job accepted; the sweep will enqueue it", job_id=job.id, error=error.message)
    else:
        _log.info("job accepted", job_id=job.id)
