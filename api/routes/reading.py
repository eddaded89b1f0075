"""Reads of jobs for clients that poll: requests that arrive during one read are answered by the next.

A thread, a transaction and a count of the queue for each polling client would be more than one process can do. One
thread reads jobs for all requests. Queue positions are read once for all queued jobs, in a second thread and ahead of
time, since that read takes longest.

Most requests of most installations are polls for a job that has not changed. `Unchanged` answers these with 304 before
a route is looked for: finding the route and preparing its arguments would take as long as the answer itself. Everything
else goes on to the routes, errors included.
"""

import asyncio
import time
from collections.abc import Callable, Collection, Container, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Self

import structlog
from fastapi import Request, Response
from sqlalchemy.orm import Session
from starlette.types import ASGIApp, Receive, Scope, Send

from api.http.callers import known_caller
from api.http.hosts import path_of
from api.http.request_log import ROUTE
from api.http.responses import is_known, known_tags, not_modified, tag_of
from replaceme_core.errors import ReplaceMeError, Unavailable
from replaceme_core.ledger import reading, scheduling
from replaceme_core.ledger.database import Database
from replaceme_core.ledger.reading import JobSnapshot, OwnedId, Timeline
from replaceme_core.ledger.records import Job
from replaceme_core.ledger.scheduling import QueueSnapshot
from replaceme_core.ledger.states import TERMINAL, JobStatus
from replaceme_core.ledger.transitions import no_such_job
from replaceme_core.shapes import QueuePosition

REFRESH_FACTOR = 20.0
"""Queue positions are read again after this many times the duration of a read, which bounds the load to a twentieth."""
LONGEST_AGE_SECONDS = 2.0
"""Queue positions are read again at half this age at the latest, and not used beyond it."""


@dataclass(frozen=True, kw_only=True)
class JobRead:
    """What is known of a job without its specification, for a client that has seen the version `tag`."""

    status: JobStatus
    eta_seconds: float | None
    tag: str
    seen: "JobSeen | None"
    """The job; `None` if every request for it knows the version."""


@dataclass(frozen=True, kw_only=True)
class JobSeen:
    """A job with its timeline and, while it is queued, its queue position."""

    job: Job
    position: QueuePosition | None
    timeline: Timeline


Outcome = JobRead | Exception
_log = structlog.get_logger(__name__)


@dataclass(frozen=True, kw_only=True)
class _CachedPositions:
    """Queue positions; when to read them again, and when they expire (seconds of the monotonic clock)."""

    snapshot: QueueSnapshot
    refresh_at: float
    expires_at: float

    @classmethod
    def read(cls, session: Session) -> Self:
        began = time.monotonic()
        snapshot = scheduling.read_queue(session)
        ended = time.monotonic()
        refresh_at = min(ended + REFRESH_FACTOR * (ended - began), began + LONGEST_AGE_SECONDS / 2)
        return cls(snapshot=snapshot, refresh_at=refresh_at, expires_at=began + LONGEST_AGE_SECONDS)


@dataclass(frozen=True, kw_only=True)
class _Request:
    known: Container[str]
    result: asyncio.Future[JobRead]


class BatchedReader:
    """Reads jobs in a thread of its own, so that reads never wait for a thread behind submissions."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._job_thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="jobs")
        self._pending: dict[OwnedId, list[_Request]] = {}
        self._batches: asyncio.Task[None] | None = None
        self._position_thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="positions")
        self._positions: _CachedPositions | None = None
        self._refresh: Future[None] | None = None

    async def read(self, job_id: str, *, owner: str, known: Container[str] = ()) -> JobRead:
        """The job; without it if `known` has its tag, which takes one row of an index.

        Raises `JobNotFound`, also for a job of another owner, and `DatabaseUnreachable`.
        """
        request = _Request(known=known, result=asyncio.get_running_loop().create_future())
        self._pending.setdefault((job_id, owner), []).append(request)
        if self._batches is None or self._batches.done():
            self._batches = asyncio.create_task(self._read_batches())
        return await request.result

    async def read_status(self, job_id: str, *, owner: str) -> JobRead:
        """The same without the job itself."""
        return await self.read(job_id, owner=owner, known=("*",))

    def close(self) -> None:
        self._job_thread.shutdown(cancel_futures=True)
        self._position_thread.shutdown(cancel_futures=True)

    async def _read_batches(self) -> None:
        """Read until no request is pending. A request that arrives during a batch is part of the next one."""
        while self._pending:
            pending, self._pending = self._pending, {}
            outcomes: dict[OwnedId, Outcome]
            try:
                outcomes = await asyncio.get_running_loop().run_in_executor(self._job_thread, self._read_batch, pending)
            except RuntimeError as error:  # the reader was closed
                outcomes = dict.fromkeys(pending, error)
            for wanted, requests in pending.items():
                outcome = outcomes[wanted]
                for request in requests:
                    if request.result.done():  # its client has disconnected
                        continue
                    if isinstance(outcome, Exception):
                        request.result.set_exception(outcome)
                    else:
                        request.result.set_result(outcome)

    def _read_batch(
        self, wanted: Mapping[OwnedId, Sequence[_Request]], *, retry: bool = True
    ) -> dict[OwnedId, Outcome]:
        try:
            with self._database.session(autocommit=True) as session:
                found = reading.get_snapshots(session, wanted)
                queued = [snapshot for snapshot in found.values() if snapshot.status is JobStatus.QUEUED]
                positions = self._positions_of(session, queued)
                tags = {one: tag_of(snapshot.version, positions.get(snapshot.id)) for one, snapshot in found.items()}
                unseen = [
                    snapshot.job()
                    for one, snapshot in found.items()
                    if not all(is_known(tags[one], request.known) for request in wanted[one])
                ]
                timelines = reading.timelines(session, unseen)
        except Unavailable as error:
            if retry:
                return self._read_batch(wanted, retry=False)
            return dict.fromkeys(wanted, error)
        except Exception as error:
            if len(wanted) == 1:
                return dict.fromkeys(wanted, error)
            # one unreadable row must fail only the requests for that row: read each job by itself
            return {one: self._read_batch({one: each})[one] for one, each in wanted.items()}
        seen = {job.id: JobSeen(job=job, position=positions.get(job.id), timeline=timelines[job.id]) for job in unseen}
        reads = {
            one: JobRead(
                status=snapshot.status, eta_seconds=snapshot.eta_seconds, tag=tags[one], seen=seen.get(snapshot.id)
            )
            for one, snapshot in found.items()
        }
        return {one: reads.get(one) or no_such_job(one[0]) for one in wanted}

    def _positions_of(self, session: Session, queued: Collection[JobSnapshot]) -> dict[str, QueuePosition | None]:
        if not queued:
            return {}
        cached, now = self._positions, time.monotonic()
        if cached is None or now >= cached.expires_at:
            cached = self._positions = _CachedPositions.read(session)
        elif now >= cached.refresh_at and (self._refresh is None or self._refresh.done()):
            self._refresh = self._position_thread.submit(self._refresh_positions)
        positions = {job.id: cached.snapshot.position_of(job) for job in queued}
        later = [one for one, position in positions.items() if position is None]
        if not later:
            return positions
        cached = self._positions = replace(cached, snapshot=cached.snapshot.including(session, later))
        return {job.id: cached.snapshot.position_of(job) for job in queued}

    def _refresh_positions(self) -> None:
        try:
            with self._database.session(autocommit=True) as session:
                self._positions = _CachedPositions.read(session)
        except Exception as error:
            # requests report the failure themselves once the present positions expire
            _log.warning("queue positions could not be read", error=type(error).__name__)


# Polls for a job that has not changed

_PREFIX = "/jobs/"
_QUEUED_SECONDS, _SOONEST_SECONDS, _LATEST_SECONDS = 2, 1, 30
_ETA_PART = 20


class Unchanged:
    """ASGI middleware within `Guard`. `reader` gives that of the running application."""

    def __init__(self, app: ASGIApp, *, reader: Callable[[], BatchedReader]) -> None:
        self._app = app
        self._reader = reader

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        response = await self._response(scope)
        if response is None:
            await self._app(scope, receive, send)
            return
        scope[ROUTE] = f"{_PREFIX}{{job_id}}"
        await response(scope, receive, send)

    async def _response(self, scope: Scope) -> Response | None:
        """304; `None` for a request that is no such poll, that has not seen the job as it is, or that fails."""
        if scope["type"] != "http" or scope["method"] != "GET" or scope["query_string"]:  # which costs nothing
            return None
        path, caller = path_of(scope), known_caller(scope)
        job_id = path.removeprefix(_PREFIX)
        if caller is None or not path.startswith(_PREFIX) or not job_id or "/" in job_id:
            return None
        request = Request(scope)
        known = known_tags(request)
        if not known:
            return None
        try:
            found = await self._reader().read_status(job_id, owner=caller.owner)
        except ReplaceMeError:
            return None
        if not is_known(found.tag, known):
            return None
        return not_modified(found.tag, headers=headers_of(found))


def headers_of(found: JobRead) -> Mapping[str, str]:
    """While a job has not ended: when to ask again."""
    return {} if found.status in TERMINAL else {"Retry-After": retry_after(found.status, found.eta_seconds)}


def retry_after(status: JobStatus, eta_seconds: float | None) -> str:
    """After how many seconds to ask again for a job that has not finished: rarely while its end is far."""
    if status is JobStatus.QUEUED or eta_seconds is None:
        return str(_QUEUED_SECONDS)
    return str(min(max(round(eta_seconds / _ETA_PART), _SOONEST_SECONDS), _LATEST_SECONDS))
