"""All SQL about shards of running jobs, as methods of `Shards`: `Jobs(session).shards`."""

from collections.abc import Collection, Sequence

from sqlalchemy.orm import Session

from replaceme_core.hardware import WorkerKind
from replaceme_core.ledger.records import Claim, ShardClaim, ShardPlan, WakeUp
from replaceme_core.ledger.shards import helper_leases, planning, sweep
from replaceme_core.runner.messages import ShardAnswer, ShardsPlanned


class Shards:
    """Shards of running jobs within one transaction.

    A shard is a part of a job's calibration. The row says which worker computes it; the result is a file, which the
    runner processes verify. A transaction that writes rows of a job and of its shards locks the job's row first.
    """

    def __init__(self, session: Session) -> None:
        self._session = session

    # The job's own worker

    def plan(self, claim: Claim, planned: ShardsPlanned) -> WorkerKind | None:
        """Replace the job's shards; returns the kind of workers that may take them. Raises `LeaseLost`."""
        return planning.plan(self._session, claim, planned)

    def take_next(self, claim: Claim, *, worker: str, finished: Collection[int] = ()) -> ShardAnswer:
        """Mark `finished` as done and give the job's own worker the next waiting shard. Raises `LeaseLost`."""
        return planning.take_next(self._session, claim, worker=worker, finished=finished)

    # Other workers

    def open_plans(self, *, max_attempts: int, worker_kinds: Sequence[WorkerKind] | None = None) -> list[ShardPlan]:
        """Running jobs with waiting shards; the highest priority and then the oldest job first."""
        return helper_leases.open_plans(self._session, max_attempts=max_attempts, worker_kinds=worker_kinds)

    def claim(self, plan: ShardPlan, *, worker: str, lease_seconds: float, max_attempts: int) -> ShardClaim | None:
        """waiting -> running for the first waiting shard, attempt + 1; `None` if there is none."""
        return helper_leases.claim(
            self._session, plan, worker=worker, lease_seconds=lease_seconds, max_attempts=max_attempts
        )

    def claim_next(
        self, previous: ShardClaim, *, worker: str, lease_seconds: float, max_attempts: int
    ) -> ShardClaim | None:
        """Claim another shard of the same plan with the same token; `None` if there is none."""
        return helper_leases.claim_next(
            self._session, previous, worker=worker, lease_seconds=lease_seconds, max_attempts=max_attempts
        )

    def renew(self, claim: ShardClaim, *, lease_seconds: float) -> bool:
        """Extend the lease; returns `is_obsolete`. Raises `LeaseLost`."""
        return helper_leases.renew(self._session, claim, lease_seconds=lease_seconds)

    def is_obsolete(self, claim: ShardClaim) -> bool:
        """Whether the job no longer needs the shard: it is finished, or a cancel was requested."""
        return helper_leases.is_obsolete(self._session, claim)

    def finish(self, claim: ShardClaim) -> None:
        """running -> done. A second call changes nothing. Raises `LeaseLost`."""
        helper_leases.finish(self._session, claim)

    def release(self, claim: ShardClaim, *, reason: str, counts: bool = True) -> None:
        """running -> waiting, if the claim still holds the shard. `counts`: this was one of its attempts."""
        helper_leases.release(self._session, claim, reason=reason, counts=counts)

    # The sweep

    def requeue_expired(self, *, limit: int) -> list[tuple[str, int]]:
        """running -> waiting for shards whose lease has expired; returns their job ids and numbers."""
        return sweep.requeue_expired(self._session, limit=limit)

    def collect_wake_ups(
        self,
        *,
        older_than_seconds: float,
        limit: int,
        max_attempts: int,
        worker_kinds: Sequence[WorkerKind] | None = None,
    ) -> list[WakeUp]:
        """Mark waiting shards as enqueued now, and return the wake-up messages of their jobs."""
        return sweep.collect_wake_ups(
            self._session,
            older_than_seconds=older_than_seconds,
            limit=limit,
            max_attempts=max_attempts,
            worker_kinds=worker_kinds,
        )

    def delete_orphaned(self) -> None:
        """Delete the shards of finished jobs, which a version that knows no shards leaves behind."""
        sweep.delete_orphaned(self._session)
