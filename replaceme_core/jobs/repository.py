"""All SQL of the ledger, as methods that speak of jobs. One `Jobs` lives within one transaction.

with database.session() as session:
    job = Jobs(session).add(spec=spec, owner=owner)
    session.after_commit(lambda: queue.enqueue(job.id))
"""

from replaceme_core.errors import StaleTransition
from replaceme_core.jobs.clock import now
from replaceme_core.jobs.leases import Leases, finished
from replaceme_core.jobs.reading import Reading
from replaceme_core.jobs.records import Claim, Job, JobError, JobEvent, JobResult, Metric, Once, Page, QueuePosition
from replaceme_core.jobs.shards.leases import ShardLeases
from replaceme_core.jobs.shards.planning import Sharding
from replaceme_core.jobs.states import EventType, JobStatus
from replaceme_core.jobs.submitting import Submitting
from replaceme_core.jobs.sweeping import Sweeping
from replaceme_core.jobs.tables import JobRow
from replaceme_core.jobs.transitions import change, locked, move

__all__ = ["Claim", "Job", "JobError", "JobEvent", "JobResult", "Jobs", "Metric", "Once", "Page", "QueuePosition"]


class Jobs(Submitting, Reading, Leases, Sweeping, Sharding, ShardLeases):
    """The ledger within one transaction."""

    def request_cancel(self, job_id: str, *, owner: str | None = None) -> Job:
        """A queued job is cancelled at once, a running one is flagged for its worker; asking again changes nothing.

        Raises `JobNotFound`, or `StaleTransition` if the job has succeeded or failed.
        """
        row = locked(self._session, job_id, owner=owner)
        match row.status:
            case JobStatus.QUEUED:
                move(
                    self._session,
                    job_id,
                    old=JobStatus.QUEUED,
                    new=JobStatus.CANCELLED,
                    values={**finished(), "cancel_requested_at": now()},
                    events=[(EventType.CANCEL_REQUESTED, {}), (EventType.CANCELLED, {})],
                )
            case JobStatus.RUNNING:
                change(
                    self._session,
                    job_id,
                    JobRow.status == JobStatus.RUNNING,
                    JobRow.cancel_requested_at.is_(None),
                    values={"cancel_requested_at": now()},
                    events=[(EventType.CANCEL_REQUESTED, {})],
                )
            case JobStatus.CANCELLED:
                pass
            case JobStatus.SUCCEEDED | JobStatus.FAILED:
                raise StaleTransition(f"job {job_id} has {row.status} already and cannot be cancelled")
        return self.get(job_id)
