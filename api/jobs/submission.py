"""Submission of a job: first everything that is slow and needs no transaction, then one short transaction.

Each of the two steps runs in a thread once. More thread switches would slow down every client that polls, since all
threads of the process share one interpreter lock.
"""

import asyncio
import hashlib
from dataclasses import dataclass
from functools import partial
from uuid import uuid4

import structlog
from starlette.concurrency import run_in_threadpool
from starlette.types import Scope

from api.http import deadline
from api.queue import Queue
from replaceme_core.admission.resolve_request import resolve_request
from replaceme_core.admission.worker_kind import worker_kind_of
from replaceme_core.errors import InvalidInput, QueueUnreachable
from replaceme_core.hub.port import Hub
from replaceme_core.jobs.records import IdempotencyKey, Job
from replaceme_core.jobs.repository import Jobs
from replaceme_core.jobs.session import Database
from replaceme_core.settings import Settings
from replaceme_core.spec import CompressionRequest, CompressionSpec

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, kw_only=True)
class Submitted:
    """A job, and whether the same request had created it before."""

    job: Job
    repeated: bool


class Submitter:
    """Submits jobs. `write_slots` limits how many transactions write at the same time."""

    def __init__(
        self, *, settings: Settings, database: Database, queue: Queue, hub: Hub, write_slots: asyncio.Semaphore
    ) -> None:
        self._settings = settings
        self._database = database
        self._queue = queue
        self._hub = hub
        self._write_slots = write_slots

    async def submit(self, request: CompressionRequest, *, key: str | None, owner: str, scope: Scope) -> Submitted:
        """The new job, committed and enqueued; or the job that the same request with the same `key` created before.

        `key` is the request's `Idempotency-Key`; `scope` is its ASGI scope, which holds its deadline. Raises as
        `resolve_request` and `Jobs.add` do, `DatabaseUnreachable`, and `Unavailable` after the deadline.
        """
        idempotency_key = self._key(key, request.fingerprint())
        job_id = str(uuid4())
        prepared = await run_in_threadpool(
            self._prepare, request, job_id=job_id, owner=owner, idempotency_key=idempotency_key
        )
        if isinstance(prepared, Job):
            return Submitted(job=prepared, repeated=True)
        async with self._write_slots:
            job = await run_in_threadpool(
                self._store, prepared, job_id=job_id, owner=owner, idempotency_key=idempotency_key, scope=scope
            )
        return Submitted(job=job, repeated=job.id != job_id)

    async def retry(self, job_id: str, *, key: str | None, owner: str, scope: Scope) -> Submitted:
        """A new job with the stored specification of a finished one; or what the same request created before.

        Raises as `Jobs.retry` does, `InvalidInput`, `DatabaseUnreachable`, and `Unavailable` after the deadline.
        """
        idempotency_key = self._key(key, hashlib.sha256(f"retry {job_id}".encode()).hexdigest())
        new_id = str(uuid4())
        async with self._write_slots:
            job = await run_in_threadpool(
                self._store_retry, job_id, new_id=new_id, owner=owner, idempotency_key=idempotency_key, scope=scope
            )
        return Submitted(job=job, repeated=job.id != new_id)

    def _key(self, key: str | None, fingerprint: str) -> IdempotencyKey | None:
        if key is None:
            return None
        keep_seconds = self._settings.idempotency_seconds
        return IdempotencyKey(key=key, fingerprint=fingerprint, keep_seconds=keep_seconds)

    def _store_retry(
        self, job_id: str, *, new_id: str, owner: str, idempotency_key: IdempotencyKey | None, scope: Scope
    ) -> Job:
        with self._database.session() as session:
            job = Jobs(session).retry(
                job_id,
                owner=owner,
                new_id=new_id,
                idempotency_key=idempotency_key,
                default_worker_kind=self._settings.default_worker_kind,
            )
            if job.id == new_id:
                _check_worker_kind(job.spec.compute.device, self._settings)
                session.after_commit(lambda: _enqueue(self._queue, job))
            deadline.check(scope)
        return job

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
        _check_worker_kind(request.compute.device, settings)
        spec = resolve_request(
            request,
            self._hub,
            calibration_root=settings.calibration_root,
            job_id=job_id,
            rules=settings.output_rules(is_own=partial(self._has_made, owner=owner)),
        )
        return spec.with_limits(
            max_queue_seconds=settings.max_queue_seconds, max_runtime_seconds=settings.max_runtime_seconds
        )

    def _has_made(self, job_id: str, repo_id: str, *, owner: str) -> bool:
        with self._database.session(read_only=True) as session:
            return Jobs(session).has_made(job_id, repo_id, owner=owner)

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


def _check_worker_kind(device: str | None, settings: Settings) -> None:
    """Raises `InvalidInput` for a job that none of this service's workers can run."""
    worker_kind = worker_kind_of(device) or settings.default_worker_kind
    if worker_kind is None or settings.worker_kinds is None or worker_kind in settings.worker_kinds:
        return
    there = " and ".join(settings.worker_kinds)
    needs = f"device {device!r} needs" if device is not None else "a job without a device needs, by default,"
    raise InvalidInput(
        f"{needs} a worker of kind {worker_kind}; this service has workers for {there} only",
        field="compute.device",
        value=device,
    )


def _enqueue(queue: Queue, job: Job) -> None:
    try:
        queue.enqueue(job.id, worker_kind=job.worker_kind)
    except QueueUnreachable as error:
        _log.warning("job accepted; the sweep will enqueue it", job_id=job.id, error=error.message)
    else:
        _log.info("job accepted", job_id=job.id)
