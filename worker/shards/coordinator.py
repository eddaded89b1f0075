"""What a job's own worker answers to its runner about shards: the ledger says whose turn it is.

A database that does not answer keeps nobody from working on: what was not written is written the next time, and the
runner asks again.
"""

import logging
from collections.abc import Callable

from replaceme_core.admission.worker_kind import WorkerKind
from replaceme_core.errors import DatabaseUnreachable, QueueUnreachable
from replaceme_core.jobs.records import Claim
from replaceme_core.jobs.repository import Jobs
from replaceme_core.jobs.session import Database
from replaceme_core.runner.messages import ShardAnswer, ShardsPlanned, ShardWanted
from worker.progress_writer import Recorder

MOST_RINGS = 16

logger = logging.getLogger(__name__)


class ShardDesk:
    """For one attempt at a job. `ring` calls another worker, which looks for a job first and then for a shard."""

    def __init__(
        self,
        database: Database,
        claim: Claim,
        *,
        recorder: Recorder,
        worker: str,
        enqueue: Callable[[str, WorkerKind | None], None],
    ) -> None:
        self._database = database
        self._claim = claim
        self._recorder = recorder
        self._worker = worker
        self._enqueue = enqueue
        self._planned: ShardsPlanned | None = None
        self._finished: set[int] = set()
        self._standing = ShardAnswer(done=0, count=1)

    def answer(self, message: ShardsPlanned | ShardWanted) -> ShardAnswer:
        """Raises `LeaseLost`."""
        match message:
            case ShardsPlanned():
                self._planned = message
                self._standing = ShardAnswer(done=len(message.done), count=message.count)
            case ShardWanted() if message.finished is not None:
                self._finished.add(message.finished)
        try:
            self._plan()
            if isinstance(message, ShardWanted):
                self._take()
                return self._standing
        except DatabaseUnreachable as error:
            logger.warning("job %s: its shards are not written for now: %s", self._claim.job_id, error)
        return self._standing.model_copy(update={"number": None})

    def _plan(self) -> None:
        planned = self._planned
        if planned is None:
            return
        worker_kinds: list[WorkerKind | None] = []
        # together with the specification, by which others compute
        self._recorder.flush(lambda jobs: worker_kinds.append(jobs.shards.plan(self._claim, planned)))
        self._planned = None
        open_shards = planned.count - len(set(planned.done))
        try:
            for _ in range(min(open_shards - 1, MOST_RINGS)):
                self._enqueue(self._claim.job_id, worker_kinds[-1])
        except QueueUnreachable as error:
            logger.warning("job %s: nobody was called for its shards, the sweep will: %s", self._claim.job_id, error)

    def _take(self) -> None:
        with self._database.session() as session:
            self._standing = Jobs(session).shards.take_next(self._claim, worker=self._worker, finished=self._finished)
        self._finished.clear()
