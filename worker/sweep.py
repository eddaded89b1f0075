"""What makes lost messages, lost workers and left-over files harmless: a thread of each worker's main process.

It rings again for jobs and shards that nobody was called for, takes back those whose lease has run out, ends jobs that
waited too long, forgets old keys of requests, and removes workspaces whose process is gone and checkpoints whose job is
over. Any number of sweeps may run at once. It goes on through outages of database and broker.
"""

import logging
import os
import random
import threading
from collections.abc import Callable, Sequence

from replaceme_core.admission.worker_kind import WorkerKind
from replaceme_core.errors import Unavailable
from replaceme_core.jobs.records import WakeUp
from replaceme_core.jobs.repository import Jobs
from replaceme_core.jobs.session import Database
from replaceme_core.settings import Settings
from worker.workspace import TEMPORARY, checkpointed, collect_left_overs, forget_checkpoints

LIMIT = 16  # jobs taken back or rung for in one pass
KEYS_LIMIT = 1000  # keys of requests forgotten in one pass
PATIENCE_SWEEPS = 2  # a job that is queued for longer than this without a message is rung for again
JITTER = 0.2
FORK_WAIT_SECONDS = 5.0

logger = logging.getLogger(__name__)


class Sweep(threading.Thread):
    """Sweeps every `sweep_seconds`, give or take a fifth, until `stop`.

    `ring` sends the message for a job. `has_room` tells whether this worker could start a job now: while all workers
    are busy, messages would only pile up at the broker. So would those for jobs of other `routes` than it serves.
    """

    def __init__(
        self,
        *,
        settings: Settings,
        enqueue: Callable[[str, WorkerKind | None], None],
        has_room: Callable[[], bool],
        worker_kinds: Sequence[WorkerKind] | None = None,
    ) -> None:
        super().__init__(name="sweep", daemon=True)
        self._settings = settings
        self._enqueue = enqueue
        self._has_room = has_room
        self._routes = worker_kinds
        self._over = threading.Event()
        self._pass = threading.Lock()

    def stop(self) -> None:
        self._over.set()

    def run(self) -> None:
        between = self._settings.sweep_seconds
        wait = random.uniform(0, min(between, 1.0))
        while not self._over.wait(wait):
            with self._pass:
                self.sweep()
            wait = between * random.uniform(1 - JITTER, 1 + JITTER)

    def sweep(self) -> None:
        """One pass; what fails is logged and left to the next."""
        for part in (self._mend_ledger, self._collect):
            try:
                part()
            except Unavailable as error:
                logger.warning("sweep: %s", error)
            except Exception:
                logger.exception("sweep: %s failed", part.__name__)

    def keep_from_forks(self) -> None:
        """Let this process fork between two passes only.

        A prefork pool replaces a killed child by forking this process; a lock that the sweep holds at that moment,
        inside the database's library say, would stay locked in the child for ever.
        """
        taken = threading.local()

        def before() -> None:
            taken.pass_lock = self._pass.acquire(timeout=FORK_WAIT_SECONDS)

        def after() -> None:
            if getattr(taken, "pass_lock", False):
                self._pass.release()

        os.register_at_fork(before=before, after_in_parent=after, after_in_child=after)

    def _mend_ledger(self) -> None:
        # opened for each pass, so that a fork between two passes inherits no connection
        database = Database(self._settings.resolved_database_url)
        try:
            with database.session() as session:
                taken_back = Jobs(session).requeue_expired(
                    max_attempts=self._settings.max_attempts,
                    limit=LIMIT,
                    backoff_seconds=self._settings.sweep_seconds,
                )
            if taken_back:
                logger.warning("sweep: took back %s", ", ".join(taken_back))
            with database.session() as session:
                lost = Jobs(session).shards.requeue_expired(limit=LIMIT)
                Jobs(session).shards.delete_orphaned()
            if lost:
                logger.warning("sweep: took back %s", ", ".join(f"shard {n} of {job_id}" for job_id, n in lost))
            with database.session() as session:
                overdue = Jobs(session).fail_overdue(limit=LIMIT)
            if overdue:
                logger.warning("sweep: out of time: %s", ", ".join(overdue))
            with database.session() as session:
                Jobs(session).delete_expired_keys(limit=KEYS_LIMIT)
            left = checkpointed(self._settings.workspace)
            if left:
                with database.session(read_only=True) as session:
                    left -= Jobs(session).active_among(left)
            for job_id in left:
                forget_checkpoints(self._settings.workspace, job_id)
            due: list[WakeUp] = []
            if self._has_room():
                with database.session() as session:
                    due = Jobs(session).collect_wake_ups(
                        older_than_seconds=PATIENCE_SWEEPS * self._settings.sweep_seconds,
                        limit=LIMIT,
                        worker_kinds=self._routes,
                    )
                    due += Jobs(session).shards.collect_wake_ups(
                        older_than_seconds=PATIENCE_SWEEPS * self._settings.sweep_seconds,
                        limit=LIMIT,
                        max_attempts=self._settings.max_attempts,
                        worker_kinds=self._routes,
                    )
        finally:
            database.close()
        for job in due:
            self._enqueue(job.job_id, job.worker_kind)

    def _collect(self) -> None:
        for root in (self._settings.workspace, self._settings.workspace / TEMPORARY):
            left_overs = collect_left_overs(root)
            if left_overs:
                logger.warning("sweep: removed left-over directories %s", ", ".join(left_overs))
