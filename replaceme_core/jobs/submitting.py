"""New jobs, and what makes a request that is sent again find the job it made the first time.

Job and key are written in one transaction, with the key unique for its owner. So another request with the same key
sees either nothing, or the job: there is no state in between that a client would have to wait for.
"""

from contextlib import nullcontext
from uuid import uuid4

from sqlalchemy import ColumnElement, delete, insert, select
from sqlalchemy.exc import IntegrityError

from replaceme_core.admission.worker_kind import WorkerKind, worker_kind_of
from replaceme_core.errors import Conflict, IdempotencyKeyReused
from replaceme_core.jobs.clock import now
from replaceme_core.jobs.reading import stored_spec, to_job
from replaceme_core.jobs.records import Job, Once
from replaceme_core.jobs.session import LedgerSession
from replaceme_core.jobs.states import EventType, JobStatus
from replaceme_core.jobs.tables import IdempotencyKeyRow, JobLabelRow, JobRow
from replaceme_core.jobs.transitions import is_job_id, write_events
from replaceme_core.spec import CompressionSpec


class Submitting:
    """The part of `Jobs` that takes jobs in."""

    def __init__(self, session: LedgerSession) -> None:
        self._session = session

    def add(
        self,
        *,
        spec: CompressionSpec,
        owner: str,
        job_id: str | None = None,
        once: Once | None = None,
        default_worker_kind: WorkerKind | None = None,
    ) -> Job:
        """A new job, queued; its message is taken to be sent right after the commit. With `once`: or the job that
        this key has made before, which then has another id than `job_id`.

        `job_id` is a UUID in lower case, by default a random one. The device that `spec` names decides about the
        route, and `default_route` where it names none. Raises `Conflict` if the id is taken, and
        `IdempotencyKeyReused`.
        """
        job_id = str(uuid4()) if job_id is None else job_id
        if not is_job_id(job_id):
            raise ValueError(f"a job id is a UUID in lower case, not {job_id!r}")
        earlier = None if once is None else self.submitted_before(once, owner=owner)
        if earlier is not None:
            return earlier
        try:
            # a savepoint, where there is something to go on with after another one's key was met
            with nullcontext() if once is None else self._session.begin_nested():
                row = self._insert(spec, owner, job_id, worker_kind_of(spec.compute.device) or default_worker_kind)
                if once is not None:
                    self._keep(once, owner, job_id)  # waits for a transaction that writes the same key
        except IntegrityError:
            earlier = None if once is None else self.submitted_before(once, owner=owner)
            if earlier is None:
                raise Conflict(f"there is a job {job_id} already") from None
            return earlier
        return to_job(row)

    def submitted_before(self, once: Once, *, owner: str) -> Job | None:
        """The job that this key has made. Raises `IdempotencyKeyReused` if it was another request."""
        found = self._session.execute(
            select(JobRow, IdempotencyKeyRow.fingerprint)
            .join(IdempotencyKeyRow, IdempotencyKeyRow.job_id == JobRow.id)
            .where(*_is(once, owner), IdempotencyKeyRow.expires_at > now()),
            execution_options={"populate_existing": True},
        ).one_or_none()
        if found is None:
            return None
        row, fingerprint = found
        if fingerprint != once.fingerprint:
            raise IdempotencyKeyReused(
                "this key was sent before with another request; a new request needs a new key",
                field="Idempotency-Key",
                value=once.key,
            )
        return to_job(row)

    def _insert(self, spec: CompressionSpec, owner: str, job_id: str, worker_kind: WorkerKind | None) -> JobRow:
        limit = spec.max_queue_seconds
        row = self._session.scalars(
            insert(JobRow)
            .values(
                id=job_id,
                owner=owner,
                status=JobStatus.QUEUED,
                spec=stored_spec(spec),
                attempt=0,
                event_count=1,
                overall=0.0,
                stage_fraction=0.0,
                priority=spec.priority,
                worker_kind=worker_kind,
                max_queue_seconds=limit,
                max_runtime_seconds=spec.max_runtime_seconds,
                shards=spec.compute.shards,
                deadline_at=None if limit is None else now(plus_seconds=limit),
                created_at=now(),
                enqueued_at=now(),
            )
            .returning(JobRow)
        ).one()
        labels = [{"job_id": job_id, "name": name, "value": value} for name, value in spec.labels.items()]
        if labels:
            self._session.execute(insert(JobLabelRow), labels)
        write_events(self._session, row, [(EventType.CREATED, {})])
        return row

    def _keep(self, once: Once, owner: str, job_id: str) -> None:
        expired = IdempotencyKeyRow.expires_at <= now()  # and no sweep has come by since
        self._session.execute(delete(IdempotencyKeyRow).where(*_is(once, owner), expired))
        self._session.execute(
            insert(IdempotencyKeyRow).values(
                owner=owner,
                key=once.key,
                fingerprint=once.fingerprint,
                job_id=job_id,
                expires_at=now(plus_seconds=once.keep_seconds),
            )
        )


def _is(once: Once, owner: str) -> tuple[ColumnElement[bool], ...]:
    return IdempotencyKeyRow.owner == owner, IdempotencyKeyRow.key == once.key
