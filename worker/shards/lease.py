"""The right to compute shards of another worker's job, one after the other, renewed in the background."""

import threading
import time
from collections.abc import Callable

from replaceme_core.ledger.records import Claim, ShardClaim
from replaceme_core.ledger.repository import Jobs
from replaceme_core.ledger.session import Database
from worker.lease import Lease


class ShardLease(Lease):
    """Ends early as the lease of a job does. A job that needs no more shards counts as a cancel request."""

    def __init__(
        self,
        database: Database,
        claim: ShardClaim,
        *,
        lease_seconds: float,
        claimed_at: float,
        must_release: Callable[[], bool],
        stage_seconds: float,
    ) -> None:
        of_shards = Claim(job_id=claim.job_id, token=claim.token, attempt=claim.attempt)
        super().__init__(
            database,
            of_shards,
            lease_seconds=lease_seconds,
            claimed_at=claimed_at,
            must_release=must_release,
            stage_seconds=stage_seconds,
        )
        self._shard: ShardClaim | None = claim
        self._changing = threading.Lock()
        """Held during each query, so that no renewal is sent for a shard that has just been finished."""

    def finish_and_take(self, take_next: Callable[[Jobs, ShardClaim], ShardClaim | None]) -> ShardClaim | None:
        """Finish the present shard and return the one that `take_next` takes in the same transaction, if any.

        Raises `LeaseLost`, or `DatabaseUnreachable`, after which it may be called again.
        """
        with self._changing:
            before = time.monotonic()
            if self._shard is None:
                return None
            with self._database.session() as session:
                Jobs(session).shards.finish(self._shard)
                following = take_next(Jobs(session), self._shard)
            self._shard, self._renewed_at = following, before
            return following

    def _extend(self, *, only_if_valid: bool) -> bool:
        with self._changing, self._database.session() as session:
            shard = self._shard
            return shard is not None and Jobs(session).shards.renew(shard, lease_seconds=self._lease_seconds)

    def _is_cancelled(self) -> bool:
        with self._changing, self._database.session(read_only=True) as session:
            return self._shard is not None and Jobs(session).shards.is_obsolete(self._shard)
