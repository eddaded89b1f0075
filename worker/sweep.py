"""Makes lost messages, lost workers and abandoned files harmless: a thread of each worker's main process.

A sweep sends another message for jobs that have waited too long, requeues those whose lease has expired,
fails jobs whose time limit has passed, deletes old idempotency keys and old jobs, gives events their position, and
removes abandoned workspaces and the checkpoints of jobs that have ended. It also reports the worker. Any number of
sweeps may run at once. Outages of database and broker do not stop it.
"""

import logging
import os
import platform
import random
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from functools import partial

import psutil

from replaceme_core.errors import Unavailable
from replaceme_core.hardware import Accelerator, WorkerKind, find_accelerator, gpu_memory, total_memory
from replaceme_core.ledger.database import Database
from replaceme_core.ledger.records import WorkerReport
from replaceme_core.ledger.states import ACTIVE
from replaceme_core.ledger.sweep import (
    collect_wake_ups,
    delete_expired_keys,
    delete_finished,
    fail_overdue,
    refresh_statistics,
    requeue_expired,
    statuses,
)
from replaceme_core.ledger.watching import Workers, number_all
from replaceme_core.runner.sandbox import SandboxMode
from replaceme_core.settings import Settings
from replaceme_core.wording import counted
from worker.workspace import TEMPORARY, jobs_with_checkpoints, remove_abandoned, remove_checkpoints

STOP_SECONDS = 5.0  # a sweep takes far less, unless the database hangs
LIMIT = 16  # jobs expired or enqueued again in one sweep
KEYS_LIMIT = 1000  # idempotency keys deleted in one sweep
RETENTION_LIMIT = 200  # finished jobs deleted in one sweep, each with its events, metrics and log
NUMBERINGS_LIMIT = 20  # transactions of one sweep that give positions to events
WAKE_UP_AFTER_SWEEPS = 2  # a job that waits for longer than this is enqueued again
JITTER = 0.2
FORK_WAIT_SECONDS = 5.0

logger = logging.getLogger(__name__)


def _resident_bytes() -> Iterator[int]:
    """Of this process and of all its descendants; pages that several of them share count once for each."""
    with suppress(psutil.Error):
        process = psutil.Process()
        for each in (process, *process.children(recursive=True)):
            with suppress(psutil.Error):  # it has ended meanwhile
                yield each.memory_info().rss


ALIVE_SWEEPS = 3.0
"""A worker that has missed this many sweeps counts as lost; those of a busy machine may be late."""


def _log_failure(step: str, error: Exception) -> None:
    # an error of the file system, such as a full disk, says all in its text
    logger.error("sweep: %s failed: %s", step, error, exc_info=not isinstance(error, OSError))


class Sweep(threading.Thread):
    """Sweeps every `sweep_seconds`, plus or minus a fifth, until `stop`.

    `enqueue` sends the message for a job. `has_free_slot` returns whether this worker could start a job now: while all
    workers are busy, messages would only pile up at the broker. For the same reason messages are sent only for jobs of
    the `worker_kinds` that this worker serves; `None`: all.

    Where runners are started in a `sandbox` by the processes that `process_ids` returns, it reports this worker.
    """

    def __init__(
        self,
        *,
        settings: Settings,
        enqueue: Callable[[str, WorkerKind | None], None],
        has_free_slot: Callable[[], bool],
        worker_kinds: Sequence[WorkerKind] | None = None,
        process_ids: Callable[[], Sequence[int]] | None = None,
        sandbox: SandboxMode = SandboxMode.NONE,
    ) -> None:
        super().__init__(name="sweep", daemon=True)
        self._settings = settings
        self._enqueue = enqueue
        self._has_free_slot = has_free_slot
        self._worker_kinds = worker_kinds
        self._process_ids = process_ids
        self._sandbox = sandbox
        self._worker = f"{socket.gethostname()}:{os.getpid()}"
        cpu = f"{platform.machine() or 'unknown'} CPU, {counted(os.cpu_count() or 1, 'cores')}"
        self._device = Accelerator(name=cpu, uuid=None)
        if process_ids is not None and WorkerKind.GPU in (worker_kinds or WorkerKind):
            # in a thread: it starts a process that imports torch
            threading.Thread(target=self._find_accelerator, name="find-accelerator", daemon=True).start()
        self._stop_requested = threading.Event()
        self._sweeping = threading.Lock()

    def stop(self) -> None:
        """Begin no other sweep, and take the worker off the list of workers.

        One at work is waited for: it would put the worker back. Where the database cannot be reached the worker counts
        as lost for a while.
        """
        self._stop_requested.set()
        if self.is_alive():
            self.join(timeout=STOP_SECONDS)
        try:
            with closing(self._open_database()) as database, database.session() as session:
                Workers(session).remove(self._worker)
        except Unavailable as error:
            logger.warning("this worker could not be taken off the list of workers: %s", error)

    def run(self) -> None:
        between = self._settings.sweep_seconds
        wait = random.uniform(0, min(between, 1.0))
        while not self._stop_requested.wait(wait):
            with self._sweeping:
                self.sweep()
            wait = between * random.uniform(1 - JITTER, 1 + JITTER)

    def sweep(self) -> None:
        """Sweep once. What fails is logged and left to the next sweep."""
        for part in (self._repair_jobs, self._remove_abandoned):
            try:
                part()
            except Unavailable as error:
                logger.warning("sweep: %s", error.explained)
            except Exception as error:
                _log_failure(part.__name__, error)

    def block_forks_during_sweep(self) -> None:
        """Let this process fork only between two sweeps.

        A prefork pool replaces a killed child by forking this process. A lock that the sweep holds at that moment, for
        example inside the database's library, would stay locked in the child forever.
        """
        taken = threading.local()

        def before() -> None:
            taken.lock = self._sweeping.acquire(timeout=FORK_WAIT_SECONDS)

        def after() -> None:
            if getattr(taken, "lock", False):
                self._sweeping.release()

        os.register_at_fork(before=before, after_in_parent=after, after_in_child=after)

    def _open_database(self) -> Database:
        """For one sweep, so that a fork between two sweeps inherits no connection."""
        return Database(self._settings.resolved_database_url)

    def _repair_jobs(self) -> None:
        steps: dict[str, Callable[[Database], None]] = {
            "heartbeat": self._report,
            "expired leases": self._requeue_expired,
            "overdue jobs": self._fail_overdue,
            "old idempotency keys": self._delete_expired_keys,
            "positions of events": partial(number_all, most=NUMBERINGS_LIMIT),
            "old jobs": self._delete_old_jobs,  # after it: an event that is deleted without a position counts nowhere
            "statistics": refresh_statistics,
            "checkpoints": self._remove_checkpoints,
            "wake-up messages": self._enqueue_due,
        }
        with closing(self._open_database()) as database:
            for name, step in steps.items():
                try:
                    step(database)
                except Unavailable:  # the steps after it would wait for the same service
                    raise
                except Exception as error:
                    _log_failure(name, error)

    def _report(self, database: Database) -> None:
        if self._process_ids is None:
            return
        gpu = None if self._device.uuid is None else gpu_memory(self._device.uuid)
        gpu_total, gpu_used = gpu or (None, None)  # of all processes on it, those of others too
        report = WorkerReport(
            name=self._worker,
            host=socket.gethostname(),
            kinds=tuple(self._worker_kinds or WorkerKind),
            device=self._device.name,
            sandbox=self._sandbox,
            processes=tuple(self._process_ids()),
            total_bytes=total_memory(),
            used_bytes=sum(_resident_bytes()),
            gpu_total_bytes=gpu_total,
            gpu_used_bytes=gpu_used,
        )
        with database.session() as session:
            workers = Workers(session)
            workers.report(report, alive_seconds=ALIVE_SWEEPS * self._settings.sweep_seconds)
            workers.forget_lost()

    def _find_accelerator(self) -> None:
        self._device = find_accelerator(os.environ) or self._device

    def _requeue_expired(self, database: Database) -> None:
        with database.session() as session:
            expired = requeue_expired(
                session,
                max_attempts=self._settings.max_attempts,
                limit=LIMIT,
                backoff_seconds=self._settings.sweep_seconds,
            )
        if expired:
            logger.warning("sweep: the leases of %s had expired", ", ".join(expired))

    def _fail_overdue(self, database: Database) -> None:
        with database.session() as session:
            overdue = fail_overdue(session, limit=LIMIT)
        if overdue:
            logger.warning("sweep: out of time: %s", ", ".join(overdue))

    def _delete_expired_keys(self, database: Database) -> None:
        with database.session() as session:
            delete_expired_keys(session, limit=KEYS_LIMIT)

    def _remove_checkpoints(self, database: Database) -> None:
        """Remove those of jobs that have ended."""
        workspace = self._settings.workspace
        kept = jobs_with_checkpoints(workspace)
        if not kept:
            return
        with database.session(read_only=True) as session:
            found = statuses(session, kept)
        for job_id in kept:
            if found.get(job_id) not in ACTIVE:
                remove_checkpoints(workspace, job_id)

    def _delete_old_jobs(self, database: Database) -> None:
        seconds = self._settings.retention_seconds
        if seconds is None:
            return
        with database.session() as session:
            deleted = delete_finished(session, older_than_seconds=seconds, limit=RETENTION_LIMIT)
        if deleted:
            logger.info("sweep: deleted %s jobs that finished more than %g seconds ago", deleted, seconds)

    def _enqueue_due(self, database: Database) -> None:
        if not self._has_free_slot():
            return
        with database.session() as session:
            due = collect_wake_ups(
                session,
                older_than_seconds=WAKE_UP_AFTER_SWEEPS * self._settings.sweep_seconds,
                limit=LIMIT,
                worker_kinds=self._worker_kinds,
            )
        for job_id, worker_kind in due:
            self._enqueue(job_id, worker_kind)

    def _remove_abandoned(self) -> None:
        for root in (self._settings.workspace, self._settings.workspace / TEMPORARY):
            removed = remove_abandoned(root)
            if removed:
                logger.warning("sweep: removed abandoned directories %s", ", ".join(removed))
