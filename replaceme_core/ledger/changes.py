"""What clients change: they add jobs, retry, cancel and delete them. Nobody reaches a job of another owner.

A job and its idempotency key are written in one transaction, which holds a lock on the key from before it looked for
that job. So a second request with the same key waits for the first one, and finds its job, or nothing.
"""

import math
import time
from collections.abc import Sequence
from uuid import uuid4

from sqlalchemy import bindparam, delete, insert, select
from sqlalchemy.orm import Session

from replaceme_core.errors import IdempotencyKeyReused, StaleTransition
from replaceme_core.hardware import WorkerKind, worker_kind_of
from replaceme_core.ledger.database import lock_until_commit, now
from replaceme_core.ledger.reading import JobFilters
from replaceme_core.ledger.records import IdempotencyKey, Job, stored_spec, to_job, to_spec
from replaceme_core.ledger.states import ACTIVE, TERMINAL, EventType, JobStatus
from replaceme_core.ledger.tables import IdempotencyKeyRow, JobLabelRow, JobRow
from replaceme_core.ledger.transitions import find_job, transition, update_job, write_events
from replaceme_core.ledger.watching import has_unnumbered, number_events
from replaceme_core.request.fields import ending_of
from replaceme_core.request.spec import CompressionSpec
from replaceme_core.shapes import CancelledJob, CancelledJobs
from replaceme_core.telemetry import origin


def add(
    session: Session,
    *,
    spec: CompressionSpec,
    owner: str,
    job_id: str | None = None,
    idempotency_key: IdempotencyKey | None = None,
    default_worker_kind: WorkerKind | None = None,
    key_id: str | None = None,
    retry_of: str | None = None,
) -> Job:
    """Insert a queued job, and the `idempotency_key` for which `find_by_keys` has found none under its lock.

    The new row counts as enqueued: the caller sends its message right after the commit. `job_id` is a UUID in lower
    case, by default a random one. The device in `spec` decides the kind of worker; `default_worker_kind` applies where
    it names none. `key_id` is the API key that asks for it, `retry_of` the job that this one repeats.
    """
    job_id = str(uuid4()) if job_id is None else job_id
    limit, made_by = spec.max_queue_seconds, origin()
    row = session.scalars(
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
            model=spec.model.repo_id,
            max_queue_seconds=limit,
            max_runtime_seconds=spec.max_runtime_seconds,
            credential=spec.credential,
            worker_kind=worker_kind_of(spec.compute.device) or default_worker_kind,
            retry_of=retry_of,
            key_id=key_id,
            request_id=made_by.request_id,
            traceparent=made_by.traceparent,
            deadline_at=None if limit is None else now(plus_seconds=limit),
            created_at=now(),
            enqueued_at=now(),
        )
        .returning(JobRow)
    ).one()
    labels = [{"job_id": job_id, "name": name, "value": value} for name, value in spec.labels.items()]
    if labels:
        session.execute(insert(JobLabelRow), labels)
    write_events(session, row, [(EventType.CREATED, {})])
    if idempotency_key is not None:
        _insert_key(session, idempotency_key, owner, job_id)
    return to_job(row)


def lock_key(session: Session, key: IdempotencyKey, *, owner: str) -> None:
    """Let other requests with this key wait until this transaction ends, before it looks for what the key has made."""
    lock_until_commit(session, f"key {key.key} of {owner}")


def find_by_keys(session: Session, keys: Sequence[IdempotencyKey], *, owner: str) -> list[Job]:
    """The jobs that the keys of one request have made, the oldest first. One statement: a sweep is seen whole.

    Raises `IdempotencyKeyReused` if they came with another request.
    """
    if not keys:
        return []
    found = session.execute(
        select(JobRow, IdempotencyKeyRow)
        .join(IdempotencyKeyRow, IdempotencyKeyRow.job_id == JobRow.id)
        .where(IdempotencyKeyRow.owner == owner, IdempotencyKeyRow.key.in_([key.key for key in keys]))
        .where(IdempotencyKeyRow.expires_at > now())
        .order_by(JobRow.number)
    ).all()
    for _, stored in found:
        if stored.fingerprint != keys[0].fingerprint:
            raise IdempotencyKeyReused(
                "this key was used for a different request; a new request needs a new key",
                field="Idempotency-Key",
                value=keys[0].key,
            )
    return [to_job(row) for row, _ in found]


def _insert_key(session: Session, key: IdempotencyKey, owner: str, job_id: str) -> None:
    expired = IdempotencyKeyRow.expires_at <= now()  # a key that expired and that no sweep has deleted yet
    is_it = (IdempotencyKeyRow.owner == owner, IdempotencyKeyRow.key == key.key)
    session.execute(delete(IdempotencyKeyRow).where(*is_it, expired))
    session.execute(
        insert(IdempotencyKeyRow).values(
            owner=owner,
            key=key.key,
            fingerprint=key.fingerprint,
            job_id=job_id,
            expires_at=now(plus_seconds=key.keep_seconds),
        )
    )


def retry(
    session: Session,
    job_id: str,
    *,
    owner: str,
    new_id: str,
    idempotency_key: IdempotencyKey | None = None,
    default_worker_kind: WorkerKind | None = None,
    key_id: str | None = None,
) -> Job:
    """Add the job `new_id`, as `add` does, and link both ways.

    An output that was named after the earlier job is named after the new one. So each result stays where its job says
    that it is; a repository that the request named is written again.

    Raises `JobNotFound`, and `StaleTransition` while the job has not finished.
    """
    earlier = find_job(session, job_id, owner=owner, lock=True)
    if earlier.status not in TERMINAL:
        raise StaleTransition(f"job {job_id} is {earlier.status}; only a job that has finished can be retried")
    spec = to_spec(earlier)
    name, ending = spec.output.repo_id or "", ending_of(job_id)
    if name.endswith(ending):
        output = spec.output.model_copy(update={"repo_id": name.removesuffix(ending) + ending_of(new_id)})
        spec = spec.model_copy(update={"output": output})
    job = add(
        session,
        spec=spec,
        owner=owner,
        job_id=new_id,
        idempotency_key=idempotency_key,
        default_worker_kind=default_worker_kind,
        key_id=key_id,
        retry_of=job_id,
    )
    update_job(session, job_id, values={"retried_as": new_id})
    return job


def delete_job(session: Session, job_id: str, *, owner: str) -> None:
    """Delete a finished job. Raises `JobNotFound`, or `StaleTransition` while the job has not finished."""
    row = find_job(session, job_id, owner=owner, lock=True)
    if row.status not in TERMINAL:
        raise StaleTransition(
            f"job {job_id} is {row.status}; only a job that has finished can be deleted, so cancel it"
        )
    if has_unnumbered(session, job_id=job_id):  # else they would never be counted
        number_events(session, job_id=job_id)
    session.execute(delete(JobRow).where(JobRow.number == row.number))


def request_cancel(session: Session, job_id: str, *, owner: str) -> Job:
    """Cancel a queued job; set the flag of a running one, for its worker. A second request changes nothing.

    Locks the job's row first, so that the status cannot change between the check and the write. Raises `JobNotFound`,
    or `StaleTransition` if the job has succeeded or failed.
    """
    row = find_job(session, job_id, owner=owner, lock=True)
    _cancel(session, row)
    return to_job(row)


def _cancel(session: Session, row: JobRow) -> None:
    """`row` is locked, and has the new values afterwards."""
    match row.status:
        case JobStatus.QUEUED:
            transition(
                session,
                row.id,
                old=JobStatus.QUEUED,
                new=JobStatus.CANCELLED,
                values={"cancel_requested_at": now()},
                events=[(EventType.CANCEL_REQUESTED, {}), (EventType.CANCELLED, {})],
            )
        case JobStatus.RUNNING:
            update_job(
                session,
                row.id,
                JobRow.status == JobStatus.RUNNING,
                JobRow.cancel_requested_at.is_(None),
                values={"cancel_requested_at": now()},
                events=[(EventType.CANCEL_REQUESTED, {})],
            )
        case JobStatus.CANCELLED:
            pass
        case JobStatus.SUCCEEDED | JobStatus.FAILED:
            raise StaleTransition(f"job {row.id} has already {row.status} and cannot be cancelled")


def cancel_matching(
    session: Session, *, owner: str, filters: JobFilters, limit: int, seconds: float = math.inf
) -> CancelledJobs:
    """Ask to cancel up to `limit` queued and running jobs that match, the oldest first, but at least one.

    No further one is begun after `seconds`: each may have messages to a hundred webhooks, and workers wait for rows.
    Jobs that somebody has asked to cancel before are passed over, so that the next call goes on where this one ended.
    """
    found = session.scalars(
        select(JobRow)
        .where(*filters.conditions(owner=owner), JobRow.status.in_(ACTIVE), JobRow.cancel_requested_at.is_(None))
        .order_by(JobRow.number)
        .limit(limit + 1)
        .with_for_update(key_share=True)
    ).all()
    end = time.monotonic() + seconds
    done: list[CancelledJob] = []
    for row in found[:limit]:
        if done and time.monotonic() > end:
            break
        _cancel(session, row)
        done.append(CancelledJob(id=row.id, status=row.status))
    return CancelledJobs(items=tuple(done), more=len(found) > len(done))


_MOST_AT_ONCE = 256
"""Jobs of one owner that all API processes together may be adding at the same moment."""


def has_active(session: Session, most: int, *, owner: str, exact: bool = False) -> bool:
    """Whether the owner has at least `most` (1 or more) jobs that are queued or running.

    `exact`: near that number, transactions that are about to add one wait for each other, so that each one counts.
    """
    if exact:
        if most > _MOST_AT_ONCE and not _is_reached(session, most - _MOST_AT_ONCE, owner):
            return False
        lock_until_commit(session, f"jobs of {owner}")
    return _is_reached(session, most, owner)


_ONE_ACTIVE = (
    select(JobRow.__table__.c.number)
    .where(JobRow.__table__.c.owner == bindparam("owner"), JobRow.__table__.c.status.in_(ACTIVE))
    .offset(bindparam("before"))
    .limit(1)
)
"""Built once: each submission would spend more on building it than on running it."""


def _is_reached(session: Session, number: int, owner: str) -> bool:
    return session.execute(_ONE_ACTIVE, {"owner": owner, "before": number - 1}).first() is not None
