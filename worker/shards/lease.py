"""The right to compute shards of another worker's job, one after the other, kept alive in the background."""

import threading
import time
from collections.abc import Callable

from replaceme_core.jobs.records import Claim, ShardClaim
from replaceme_core.jobs.repository import Jobs
from replaceme_core.jobs.session import Database
from worker.lease import Lease


class ShardLease(Lease):
    """Ends early as the lease of a job does; that the job wants no shards any more counts as a cancel."""

    def __init__(
        self,
        database: Database,
        claim: ShardClaim,
        *,
        lease_seconds: float,
        claimed_at: float,
        is_over: Callable[[], bool],
    ) -> None:
        of_visit = Claim(job_id=claim.job_id, token=claim.token, attempt=claim.attempt)
        super().__init__(database, of_visit, lease_seconds=lease_seconds, claimed_at=claimed_at, is_over=is_over)
        self._shard: ShardClaim | None = claim
        self._turn = threading.Lock()
        """Held over each question to the ledger: a renewal must not meet a shard that is done by now."""

    def pass_on(self, take_next: Callable[[Jobs, ShardClaim], ShardClaim | None]) -> ShardClaim | None:
        """The present shard is done; the one that `take_next` takes in the same transaction. `None`: the visit is over.

        Raises `LeaseLost`, or `DatabaseUnreachable`; then it may be called again.
        """
        with self._turn:
            before = time.monotonic()
            if self._shard is None:
                return None
            with self._database.session() as session:
                Jobs(session).shards.finish(self._shard)
                following = take_next(Jobs(session), self._shard)
            self._shard, self._renewed_at = following, before
            return following

    def _extend(self, *, only_if_valid: bool) -> bool:
        with self._turn, self._database.session() as session:
            shard = self._shard
            return shard is not None and Jobs(session).shards.renew(shard, lease_seconds=self._lease_seconds)

    def _is_cancelled(self) -> bool:
        with self._turn, self._database.session(read_only=True) as session:
            return self._shard is not None and Jobs(session).shards.is_obsolete(self._shard)
