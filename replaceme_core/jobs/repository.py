"""All SQL of the ledger, as methods that speak of jobs. One `Jobs` lives within one transaction.

with database.session() as session:
    job = Jobs(session).add(spec=spec, owner=owner)
    session.after_commit(lambda: queue.enqueue(job.id))
"""

from uuid import uuid4

from sqlalchemy import insert
from sqlalchemy.exc import IntegrityError

from replaceme_core.errors import Conflict, StaleTransition
from replaceme_core.jobs.clock import now
from replaceme_core.jobs.leases import Leases, finished
from replaceme_core.jobs.moves import change, is_job_id, locked, move, write_events
from replaceme_core.jobs.reading import Reading, to_job
from replaceme_core.jobs.records import Claim, Job, JobError, JobEvent, JobResult, Metric, Page
from replaceme_core.jobs.states import EventType, JobStatus
from replaceme_core.jobs.sweeping import Sweeping
from replaceme_core.jobs.tables import JobLabelRow, JobRow
from replaceme_core.spec import CompressionSpec

__all__ = ["Claim", "Job", "JobError", "JobEvent", "JobResult", "Jobs", "Metric", "Page"]


class Jobs(Reading, Leases, Sweeping):
    """The ledger within one transaction."""

    def add(self, *, spec: CompressionSpec, owner: str, job_id: str | None = None) -> Job:
        """A new job, queued; its message is taken to be sent right after the commit.

        `job_id` is a UUID in lower case, by default a random one. Raises `Conflict` if it is taken.
        """
        job_id = str(uuid4()) if job_id is None else job_id
        if not is_job_id(job_id):
            raise ValueError(f"a job id is a UUID in lower case, not {job_id!r}")
        try:
            row = self._session.scalars(
                insert(JobRow)
                .values(
                    id=job_id,
                    owner=owner,
                    status=JobStatus.QUEUED,
                    spec=spec.model_dump(mode="json"),
                    attempt=0,
                    event_count=1,
                    overall=0.0,
                    stage_fraction=0.0,
                    created_at=now(),
                    last_rung_at=now(),
                )
                .returning(JobRow)
            ).one()
        except IntegrityError:
            raise Conflict(f"there is a job {job_id} already") from None
        labels = [{"job_id": job_id, "name": name, "value": value} for name, value in spec.labels.items()]
        if labels:
            self._session.execute(insert(JobLabelRow), labels)
        write_events(self._session, row, [(EventType.CREATED, {})])
        return to_job(row)

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
