"""A request for a job on its way into the ledger: what is slow and needs no transaction first, then the transaction.

Each of the two is one visit to a thread. Every further one would cost those who poll: the threads of a process take
turns, and whoever asks after a job waits for its turn, too.
"""

from uuid import uuid4

import structlog
from starlette.concurrency import run_in_threadpool
from starlette.types import Scope

from api.deps import Services
from api.http import deadline
from api.queue import Queue
from replaceme_core.admission.resolve_request import resolve_request
from replaceme_core.admission.worker_kind import worker_kind_of
from replaceme_core.errors import InvalidInput, QueueUnreachable
from replaceme_core.jobs.records import IdempotencyKey, Job
from replaceme_core.jobs.repository import Jobs
from replaceme_core.settings import Settings
from replaceme_core.spec import CompressionRequest, CompressionSpec

_log = structlog.get_logger(__name__)


class Submission:
    """One request; `key` is its `Idempotency-Key`, `scope` knows until when its client waits."""

    def __init__(
        self, body: CompressionRequest, *, key: str | None, owner: str, services: Services, scope: Scope
    ) -> None:
        self._body = body
        self._key = key
        self._owner = owner
        self._services = services
        self._scope = scope
        self._job_id = str(uuid4())

    async def carry_out(self) -> Job:
        """The new job, committed and rung for; or the one that this request, sent before, has made.

        Raises as `resolve_request` and `Jobs.add` do, `DatabaseUnreachable`, and `Unavailable` when it is too late.
        """
        idempotency_key = None
        if self._key is not None:
            keep_seconds = self._services.settings.idempotency_seconds
            idempotency_key = IdempotencyKey(
                key=self._key, fingerprint=self._body.fingerprint(), keep_seconds=keep_seconds
            )
        found = await run_in_threadpool(self._prepare, idempotency_key)
        if isinstance(found, Job):
            return found
        async with self._services.turns:
            return await run_in_threadpool(self._store, found, idempotency_key)

    def _prepare(self, idempotency_key: IdempotencyKey | None) -> Job | CompressionSpec:
        """For a request that was sent before the Hub is not asked. It may be down by now, or hold something else."""
        if idempotency_key is not None:
            with self._services.database.session(read_only=True) as session:
                earlier = Jobs(session).find_by_key(idempotency_key, owner=self._owner)
            if earlier is not None:
                return earlier
        settings = self._services.settings
        _check_worker_kind(self._body.compute.device, settings)
        spec = resolve_request(
            self._body, self._services.hub, calibration_root=settings.calibration_root, job_id=self._job_id
        )
        return spec.with_limits(
            max_queue_seconds=settings.max_queue_seconds, max_runtime_seconds=settings.max_runtime_seconds
        )

    def _store(self, spec: CompressionSpec, idempotency_key: IdempotencyKey | None) -> Job:
        queue = self._services.queue
        with self._services.database.session() as session:
            job = Jobs(session).add(
                spec=spec,
                owner=self._owner,
                job_id=self._job_id,
                idempotency_key=idempotency_key,
                default_worker_kind=self._services.settings.default_worker_kind,
            )
            if job.id == self._job_id:
                session.after_commit(lambda: _enqueue(queue, job))
            deadline.check(self._scope)
        return job


def _check_worker_kind(device: str | None, settings: Settings) -> None:
    """Raises `InvalidInput` for a job that no worker would ever take."""
    worker_kind = worker_kind_of(device) or settings.default_worker_kind
    if worker_kind is None or settings.worker_kinds is None or worker_kind in settings.worker_kinds:
        return
    there = " and ".join(settings.worker_kinds)
    what = (
        f"device {device!r}" if device is not None else f"a job that names no device, which means {worker_kind} here,"
    )
    raise InvalidInput(
        f"{what} needs a worker for {worker_kind}, and this service has workers for {there} only",
        field="compute.device",
        value=device,
    )


def _enqueue(queue: Queue, job: Job) -> None:
    try:
        queue.enqueue(job.id, worker_kind=job.worker_kind)
    except QueueUnreachable as error:
        _log.warning("job accepted, the sweep will ring for it", job_id=job.id, error=error.message)
    else:
        _log.info("job accepted", job_id=job.id)
