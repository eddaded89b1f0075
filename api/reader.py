"""One reader of the database for all who ask after a job: requests that come while it reads are answered together.

Clients poll. A thread, a transaction and a count of the queue for each of them would be more than one process can do,
so one thread reads for all, and the queue is read once for everybody who waits in it, in a thread beside it: that takes
longer than everything else, and nobody needs to wait for it.
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

KEPT_TIMES = 20.0
"""The queue's standing is read anew after this many times as long as it took: a twentieth of the time goes there."""
LONGEST_KEPT_SECONDS = 2.0
"""At half of that age, or earlier, it is read anew while the old one still serves; at that age it does not."""

Answer = tuple[Job, QueuePosition | None] | Exception

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, kw_only=True)
class _Kept:
    """The queue's standing, and from when on (of the monotonic clock) it is to be renewed, and is of no use."""

    snapshot: QueueSnapshot
    renew_at: float
    useless_at: float

    @classmethod
    def read(cls, jobs: Jobs) -> Self:
        began = time.monotonic()
        snapshot = jobs.queue_snapshot()
        ended = time.monotonic()
        renew_at = min(ended + KEPT_TIMES * (ended - began), began + LONGEST_KEPT_SECONDS / 2)
        return cls(snapshot=snapshot, renew_at=renew_at, useless_at=began + LONGEST_KEPT_SECONDS)


class Reader:
    """Reads jobs in one thread of its own, so that it never waits for those who submit."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="reader")
        self._waiting: dict[str, list[asyncio.Future[tuple[Job, QueuePosition | None]]]] = {}
        self._reading: asyncio.Task[None] | None = None
        self._beside = ThreadPoolExecutor(max_workers=1, thread_name_prefix="standing")
        self._kept: _Kept | None = None
        self._renewal: Future[None] | None = None

    async def read(self, job_id: str, *, owner: str) -> tuple[Job, QueuePosition | None]:
        """The job and, while it is queued, its place. Raises `JobNotFound`, also where it belongs to someone else."""
        answer: asyncio.Future[tuple[Job, QueuePosition | None]] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(job_id, []).append(answer)
        if self._reading is None or self._reading.done():
            self._reading = asyncio.create_task(self._read_all())
        job, place = await answer
        if job.owner != owner:
            raise no_such_job(job_id)
        return job, place

    def close(self) -> None:
        self._thread.shutdown(cancel_futures=True)
        self._beside.shutdown(cancel_futures=True)

    async def _read_all(self) -> None:
        """Until nobody waits. Whoever comes during one round is in the next."""
        while self._waiting:
            waiting, self._waiting = self._waiting, {}
            answers: dict[str, Answer]
            try:
                answers = await asyncio.get_running_loop().run_in_executor(self._thread, self._answer, tuple(waiting))
            except RuntimeError as error:  # closed meanwhile
                answers = dict.fromkeys(waiting, error)
            for job_id, futures in waiting.items():
                answer = answers[job_id]
                for future in futures:
                    if future.done():  # its client has gone
                        continue
                    if isinstance(answer, Exception):
                        future.set_exception(answer)
                    else:
                        future.set_result(answer)

    def _answer(self, job_ids: Collection[str], *, again: bool = True) -> dict[str, Answer]:
        try:
            with self._database.autocommit_session() as session:
                jobs = Jobs(session)
                found = jobs.get_many(job_ids)
                places = self._places(jobs, [job for job in found.values() if job.status is JobStatus.QUEUED])
        except Unavailable as error:
            if again:
                return self._answer(job_ids, again=False)
            return dict.fromkeys(job_ids, error)
        except Exception as error:
            if len(job_ids) == 1:
                return dict.fromkeys(job_ids, error)
            # a row that cannot be read is the trouble of those who ask for it
            return {job_id: self._answer((job_id,))[job_id] for job_id in job_ids}
        return {
            job_id: (found[job_id], places.get(job_id)) if job_id in found else no_such_job(job_id)
            for job_id in job_ids
        }

    def _places(self, jobs: Jobs, queued: Collection[Job]) -> dict[str, QueuePosition | None]:
        if not queued:
            return {}
        kept, now = self._kept, time.monotonic()
        if kept is None or now >= kept.useless_at:  # nobody has asked for a while
            kept = self._kept = _Kept.read(jobs)
        elif now >= kept.renew_at and (self._renewal is None or self._renewal.done()):
            self._renewal = self._beside.submit(self._renew)
        # one that has come since is looked up by itself
        return {job.id: kept.snapshot.position_of(job) or jobs.queue_position(job.id) for job in queued}

    def _renew(self) -> None:
        try:
            with self._database.autocommit_session() as session:
                self._kept = _Kept.read(Jobs(session))
        except Exception as error:
            # told to those who ask, once what there is has become useless
            _log.warning("the queue could not be read", error=type(error).__name__)
