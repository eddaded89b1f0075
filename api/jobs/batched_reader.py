"""Batched reads of jobs for clients that poll: requests that arrive during one read are answered by the next.

A thread, a transaction and a count of the queue for each polling client would be more than one process can do. One
thread reads jobs for all requests. Queue positions are read once for all queued jobs, in a second thread and ahead of
time, since that read takes longest.
"""

import asyncio
import time
from collections.abc import Collection
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Self

import structlog

from replaceme_core.errors import Unavailable
from replaceme_core.jobs.records import Job, QueuePosition
from replaceme_core.jobs.repository import Jobs
from replaceme_core.jobs.scheduling.queue_snapshot import QueueSnapshot
from replaceme_core.jobs.session import Database
from replaceme_core.jobs.states import JobStatus
from replaceme_core.jobs.transitions import no_such_job

REFRESH_FACTOR = 20.0
"""Queue positions are read again after this many times the duration of a read, which bounds the load to a twentieth."""
LONGEST_AGE_SECONDS = 2.0
"""Queue positions are read again at half this age at the latest, and not used beyond it."""

JobAndPosition = tuple[Job, QueuePosition | None]
Outcome = JobAndPosition | Exception

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, kw_only=True)
class _CachedPositions:
    """Queue positions; when to read them again, and when they expire (seconds of the monotonic clock)."""

    snapshot: QueueSnapshot
    refresh_at: float
    expires_at: float

    @classmethod
    def read(cls, jobs: Jobs) -> Self:
        began = time.monotonic()
        snapshot = jobs.queue_snapshot()
        ended = time.monotonic()
        refresh_at = min(ended + REFRESH_FACTOR * (ended - began), began + LONGEST_AGE_SECONDS / 2)
        return cls(snapshot=snapshot, refresh_at=refresh_at, expires_at=began + LONGEST_AGE_SECONDS)


class BatchedReader:
    """Reads jobs in a thread of its own, so that reads never wait for a thread behind submissions."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._job_thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="jobs")
        self._pending: dict[str, list[asyncio.Future[JobAndPosition]]] = {}
        self._batches: asyncio.Task[None] | None = None
        self._position_thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="positions")
        self._positions: _CachedPositions | None = None
        self._refresh: Future[None] | None = None

    async def read(self, job_id: str, *, owner: str) -> JobAndPosition:
        """The job and, while it is queued, its queue position.

        Raises `JobNotFound`, also for a job of another owner, and `DatabaseUnreachable`.
        """
        result: asyncio.Future[JobAndPosition] = asyncio.get_running_loop().create_future()
        self._pending.setdefault(job_id, []).append(result)
        if self._batches is None or self._batches.done():
            self._batches = asyncio.create_task(self._read_batches())
        job, position = await result
        if job.owner != owner:
            raise no_such_job(job_id)
        return job, position

    def close(self) -> None:
        self._job_thread.shutdown(cancel_futures=True)
        self._position_thread.shutdown(cancel_futures=True)

    async def _read_batches(self) -> None:
        """Read until no request is pending. A request that arrives during a batch is part of the next one."""
        while self._pending:
            pending, self._pending = self._pending, {}
            outcomes: dict[str, Outcome]
            try:
                outcomes = await asyncio.get_running_loop().run_in_executor(
                    self._job_thread, self._read_batch, tuple(pending)
                )
            except RuntimeError as error:  # the reader was closed
                outcomes = dict.fromkeys(pending, error)
            for job_id, futures in pending.items():
                outcome = outcomes[job_id]
                for future in futures:
                    if future.done():  # its client has disconnected
                        continue
                    if isinstance(outcome, Exception):
                        future.set_exception(outcome)
                    else:
                        future.set_result(outcome)

    def _read_batch(self, job_ids: Collection[str], *, retry: bool = True) -> dict[str, Outcome]:
        try:
            with self._database.autocommit_session() as session:
                jobs = Jobs(session)
                found = jobs.get_many(job_ids)
                positions = self._positions_of(jobs, [job for job in found.values() if job.status is JobStatus.QUEUED])
        except Unavailable as error:
            if retry:
                return self._read_batch(job_ids, retry=False)
            return dict.fromkeys(job_ids, error)
        except Exception as error:
            if len(job_ids) == 1:
                return dict.fromkeys(job_ids, error)
            # one unreadable row must fail only the requests for that row: read each job by itself
            return {job_id: self._read_batch((job_id,))[job_id] for job_id in job_ids}
        return {
            job_id: (found[job_id], positions.get(job_id)) if job_id in found else no_such_job(job_id)
            for job_id in job_ids
        }

    def _positions_of(self, jobs: Jobs, queued: Collection[Job]) -> dict[str, QueuePosition | None]:
        if not queued:
            return {}
        cached, now = self._positions, time.monotonic()
        if cached is None or now >= cached.expires_at:
            cached = self._positions = _CachedPositions.read(jobs)
        elif now >= cached.refresh_at and (self._refresh is None or self._refresh.done()):
            self._refresh = self._position_thread.submit(self._refresh_positions)
        # a job that was queued after the positions were read is looked up by itself
        return {job.id: cached.snapshot.position_of(job) or jobs.queue_position(job.id) for job in queued}

    def _refresh_positions(self) -> None:
        try:
            with self._database.autocommit_session() as session:
                self._positions = _CachedPositions.read(Jobs(session))
        except Exception as error:
            # requests report the failure themselves once the present positions expire
            _log.warning("queue positions could not be read", error=type(error).__name__)
