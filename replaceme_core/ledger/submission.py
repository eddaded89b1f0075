"""New jobs, and the idempotency keys by which a repeated request finds the job that it made the first time.

Job and key are written in one transaction, and a key is unique for its owner. So a second request with the same key
sees either nothing or the job: no client has to wait for a state in between.
"""

from collections.abc import Mapping
from contextlib import nullcontext
from uuid import uuid4

from sqlalchemy import ColumnElement, delete, insert, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from replaceme_core.errors import Conflict, IdempotencyKeyReused
from replaceme_core.hardware import WorkerKind, worker_kind_of
from replaceme_core.ledger.clock import now
from replaceme_core.ledger.records import IdempotencyKey, Job
from replaceme_core.ledger.row_mapping import stored_spec, to_job
from replaceme_core.ledger.states import EventType, JobStatus
from replaceme_core.ledger.tables import IdempotencyKeyRow, JobLabelRow, JobRow
from replaceme_core.ledger.transitions import is_job_id, write_events
from replaceme_core.request.spec import CompressionSpec
from replaceme_core.telemetry import origin


def add(
    session: Session,
    *,
    spec: CompressionSpec,
    owner: str,
    job_id: str | None,
    idempotency_key: IdempotencyKey | None,
    default_worker_kind: WorkerKind | None,
    key_id: str | None = None,
    retry_of: str | None = None,
) -> Job:
    """Insert a queued job, or return the one that `idempotency_key` made before, whose id is not `job_id`.

    The new row counts as enqueued: the caller sends its message right after the commit. `job_id` is a UUID in lower
    case, by default a random one. The device in `spec` decides the kind of worker; `default_worker_kind` applies where
    it names none. `key_id` is the API key that asks for it, `retry_of` the job that this one repeats. Raises `Conflict`
    if the id exists, and `IdempotencyKeyReused`.
    """
    job_id = str(uuid4()) if job_id is None else job_id
    if not is_job_id(job_id):
        raise ValueError(f"a job id is a UUID in lower case, not {job_id!r}")
    earlier = None if idempotency_key is None else find_by_key(session, idempotency_key, owner=owner)
    if earlier is not None:
        return earlier
    try:
        # a savepoint: if another transaction has written the key first, this one must be able to read its job
        with nullcontext() if idempotency_key is None else session.begin_nested():
            worker_kind = worker_kind_of(spec.compute.device) or default_worker_kind
            made = {"worker_kind": worker_kind, "retry_of": retry_of, "key_id": key_id}
            row = _insert_job(session, spec, owner, job_id, made)
            if idempotency_key is not None:
                # waits for a transaction that writes the same key
                _insert_key(session, idempotency_key, owner, job_id)
    except IntegrityError:
        earlier = None if idempotency_key is None else find_by_key(session, idempotency_key, owner=owner)
        if earlier is None:
            raise Conflict(f"job {job_id} already exists") from None
        return earlier
    return to_job(row)


def find_by_key(session: Session, key: IdempotencyKey, *, owner: str) -> Job | None:
    """The job that this key has made. Raises `IdempotencyKeyReused` if the key came with another request."""
    found = session.execute(
        select(JobRow, IdempotencyKeyRow.fingerprint)
        .join(IdempotencyKeyRow, IdempotencyKeyRow.job_id == JobRow.id)
        .where(*_is(key, owner), IdempotencyKeyRow.expires_at > now()),
        execution_options={"populate_existing": True},
    ).one_or_none()
    if found is None:
        return None
    row, fingerprint = found
    if fingerprint != key.fingerprint:
        raise IdempotencyKeyReused(
            "this key was used for a different request; a new request needs a new key",
            field="Idempotency-Key",
            value=key.key,
        )
    return to_job(row)


def delete_expired_keys(session: Session, *, limit: int) -> int:
    """Delete up to `limit` expired keys; returns how many. Rows that another sweep has locked are skipped."""
    expired = session.scalars(
        select(IdempotencyKeyRow.job_id)
        .where(IdempotencyKeyRow.expires_at <= now())
        .order_by(IdempotencyKeyRow.expires_at)
        .limit(limit)
        .with_for_update(skip_locked=True)
    ).all()
    if expired:
        session.execute(delete(IdempotencyKeyRow).where(IdempotencyKeyRow.job_id.in_(expired)))
    return len(expired)


def _insert_job(
    session: Session,
    spec: CompressionSpec,
    owner: str,
    job_id: str,
    made: Mapping[str, object],
) -> JobRow:
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
            request_id=made_by.request_id,
            traceparent=made_by.traceparent,
            deadline_at=None if limit is None else now(plus_seconds=limit),
            created_at=now(),
            enqueued_at=now(),
            **made,
        )
        .returning(JobRow)
    ).one()
    labels = [{"job_id": job_id, "name": name, "value": value} for name, value in spec.labels.items()]
    if labels:
        session.execute(insert(JobLabelRow), labels)
    write_events(session, row, [(EventType.CREATED, {})])
    return row


def _insert_key(session: Session, key: IdempotencyKey, owner: str, job_id: str) -> None:
    expired = IdempotencyKeyRow.expires_at <= now()  # a key that expired and that no sweep has deleted yet
    session.execute(delete(IdempotencyKeyRow).where(*_is(key, owner), expired))
    session.execute(
        insert(IdempotencyKeyRow).values(
            owner=owner,
            key=key.key,
            fingerprint=key.fingerprint,
            job_id=job_id,
            expires_at=now(plus_seconds=key.keep_seconds),
        )
    )


def _is(key: IdempotencyKey, owner: str) -> tuple[ColumnElement[bool], ...]:
    return IdempotencyKeyRow.owner == owner, IdempotencyKeyRow.key == key.key
