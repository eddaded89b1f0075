"""Answers the shard messages of a job's runner, in the job's own worker: the database decides who computes which shard.

A database that cannot be reached does not stop the work: what could not be written is written with the next message,
and the runner asks again.
"""

import logging
from collections.abc import Callable

from replaceme_core.errors import DatabaseUnreachable, QueueUnreachable
from replaceme_core.hardware import WorkerKind
from replaceme_core.ledger.records import Claim
from replaceme_core.ledger.repository import Jobs
from replaceme_core.ledger.session import Database
from replaceme_core.runner.messages import ShardAnswer, ShardsPlanned, ShardWanted
from worker.progress_writer import ProgressWriter

MAX_WAKE_UPS = 16

logger = logging.getLogger(__name__)


class ShardCoordinator:
    """The shards of one attempt at a job. `enqueue` sends the message that wakes up another worker."""

    def __init__(
        self,
        database: Database,
        claim: Claim,
        *,
        progress: ProgressWriter,
        worker: str,
        enqueue: Callable[[str, WorkerKind | None], None],
    ) -> None:
        self._database = database
        self._claim = claim
        self._progress = progress
        self._worker = worker
        self._enqueue = enqueue
        self._planned: ShardsPlanned | None = None
        self._finished: set[int] = set()
        self._last_answer = ShardAnswer(done=0, count=1)

    def answer(self, message: ShardsPlanned | ShardWanted) -> ShardAnswer:
        """The shard to compute next, if any, and how many are done. Raises `LeaseLost`."""
        match message:
            case ShardsPlanned():
                self._planned = message
                self._last_answer = ShardAnswer(done=len(message.done), count=message.count)
            case ShardWanted() if message.finished is not None:
                self._finished.add(message.finished)
        try:
            self._plan()
            if isinstance(message, ShardWanted):
                self._take()
                return self._last_answer
        except DatabaseUnreachable as error:
            logger.warning("job %s: its shards could not be written, retrying later: %s", self._claim.job_id, error)
        return self._last_answer.model_copy(update={"number": None})

    def _plan(self) -> None:
        planned = self._planned
        if planned is None:
            return
        worker_kinds: list[WorkerKind | None] = []
        # in one transaction with the resolved specification, which the helpers compute with
        self._progress.flush(lambda jobs: worker_kinds.append(jobs.shards.plan(self._claim, planned)))
        self._planned = None
        open_shards = planned.count - len(set(planned.done))
        try:
            for _ in range(min(open_shards - 1, MAX_WAKE_UPS)):
                self._enqueue(self._claim.job_id, worker_kinds[-1])
        except QueueUnreachable as error:
            logger.warning(
                "job %s: no message was sent for its shards, the next sweep sends it: %s", self._claim.job_id, error
            )

    def _take(self) -> None:
        with self._database.session() as session:
            self._last_answer = Jobs(session).shards.take_next(
                self._claim, worker=self._worker, finished=self._finished
            )
        self._finished.clear()
