"""The only way in which a row of `jobs` changes: a conditional UPDATE, in one transaction with its events and with the
messages to webhooks about them. None of these exists without the others.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import cast

from sqlalchemy import ColumnElement, Table, bindparam, insert, select, union_all, update
from sqlalchemy.orm import Session

from replaceme_core.errors import JobNotFound
from replaceme_core.ledger.database import now
from replaceme_core.ledger.records import JobEvent, to_shown_job
from replaceme_core.ledger.states import DeliveryState, EventType, JobStatus
from replaceme_core.ledger.tables import DeliveryRow, JobEventRow, JobRow, WebhookRow, is_uuid
from replaceme_core.ledger.webhooks import body_of

Event = tuple[EventType, Mapping[str, object]]

MESSAGE_LENGTH = 4000

_NO_ESTIMATE: Mapping[str, object] = {"eta_seconds": None, "eta_error_seconds": None}
_NO_PROGRESS: Mapping[str, object] = {"stage": None, "overall": 0.0, "stage_fraction": 0.0, **_NO_ESTIMATE}
NO_LEASE: Mapping[str, object] = {"lease_token": None, "lease_expires_at": None, "worker": None}


def _of_status(status: JobStatus) -> Mapping[str, object]:
    """The values that a row gets with this status."""
    match status:
        case JobStatus.QUEUED:
            return {**_NO_PROGRESS, **NO_LEASE, "enqueued_at": None}
        case JobStatus.RUNNING:
            return {**_NO_PROGRESS, "not_before": None}
    # the token stays, so that a claim which finishes twice is detected
    return {"finished_at": now(), "lease_expires_at": None, **_NO_ESTIMATE}


def failure(code: str, message: str) -> tuple[dict[str, object], Event]:
    """The values and the event of a job that fails with a code of `replaceme_core.errors`."""
    message = storable(message)
    return {"error_code": code, "error_message": message}, (EventType.FAILED, {"code": code, "message": message})


def no_such_job(job_id: str) -> JobNotFound:
    """The error for a job that does not exist, or that its caller may not see."""
    return JobNotFound(f"there is no job {job_id[:64]!r}")


def storable(text: str) -> str:
    """`text` as every database accepts it, at most `MESSAGE_LENGTH` characters long.

    PostgreSQL refuses NUL, and no database accepts a lone surrogate. Messages may quote broken input.
    """
    return text.replace("\0", "").encode(errors="replace").decode()[:MESSAGE_LENGTH]


def update_job(
    session: Session,
    job_id: str,
    *where: ColumnElement[bool],
    values: Mapping[str, object],
    events: Sequence[Event] = (),
) -> JobRow | None:
    """Update the row and write `events` if it still meets `where`; otherwise return `None` and write nothing."""
    if not is_uuid(job_id):
        return None
    row = session.scalars(
        update(JobRow)
        .where(JobRow.id == job_id, *where)
        .values(**values, event_count=JobRow.event_count + len(events))
        .returning(JobRow)
    ).one_or_none()
    if row is not None:
        write_events(session, row, events)
    return row


def transition(
    session: Session,
    job_id: str,
    *where: ColumnElement[bool],
    old: JobStatus,
    new: JobStatus,
    values: Mapping[str, object],
    events: Sequence[Event],
) -> JobRow | None:
    """Change the status from `old` to `new` as `update_job` does; `values` are set beside those of the status."""
    every = {**_of_status(new), **values, "status": new}
    return update_job(session, job_id, JobRow.status == old, *where, values=every, events=events)


_EVENTS = cast(Table, JobEventRow.__table__)
_INSERT_EVENT = insert(_EVENTS).values(at=now()).returning(_EVENTS.c.at)
_INSERT_MESSAGE = insert(cast(Table, DeliveryRow.__table__)).values(
    state=DeliveryState.PENDING, tries=0, next_try_at=now(), created_at=now()
)
"""Built once, and without the mapper, which would spend more on one row than the database."""


def write_events(session: Session, row: JobRow, events: Sequence[Event]) -> None:
    """Insert `events`, which `row.event_count` already counts as the last ones, and the messages about them."""
    first = row.event_count - len(events) + 1
    written = []
    for seq, (kind, data) in enumerate(events, first):
        values = {"job_id": row.id, "seq": seq, "type": kind, "attempt": row.attempt, "data": dict(data)}
        written.append(JobEvent.model_validate({**values, "at": session.execute(_INSERT_EVENT, values).scalar_one()}))
    if written:
        _write_messages(session, row, written)


# two ranges of the index: with OR, SQLite would read those of all jobs of the owner
_NUMBERS = union_all(
    *(
        select(WebhookRow.number).where(WebhookRow.owner == bindparam("owner"), one)
        for one in (WebhookRow.job_id.is_(None), WebhookRow.job_id == bindparam("job_id"))
    )
)
_WEBHOOKS = (
    select(WebhookRow)
    .where(WebhookRow.number.in_(_NUMBERS), WebhookRow.disabled_at.is_(None))
    # who deletes or disables a webhook waits for this transaction, and then finds its messages
    .with_for_update(read=True)
)
"""Built once, since every event reads by it."""


def _write_messages(session: Session, row: JobRow, events: Sequence[JobEvent]) -> None:
    """Insert a message for each of `events` and each webhook that wants it. `row` is the job after all of them."""
    asked = {"owner": row.owner, "job_id": row.id}
    webhooks = session.scalars(_WEBHOOKS, asked).all()
    if not webhooks:
        return
    job = to_shown_job(row)
    body = cache(lambda payload, number: body_of(payload, job, events[number]))  # there may be a hundred webhooks
    messages = [
        {
            "webhook_id": webhook.id,
            "owner": row.owner,
            "job_id": row.id,
            "seq": event.seq,
            "type": event.type,
            "body": body(webhook.payload, number),
        }
        for webhook in webhooks
        if webhook.labels.items() <= job.labels.items()
        for number, event in enumerate(events)
        if event.type.value in webhook.events
    ]
    if messages:
        session.execute(_INSERT_MESSAGE, messages)


def read_job(session: Session, job_id: str, *where: ColumnElement[bool], lock: bool = False) -> JobRow | None:
    """The present row, if it meets `where`; with `lock` it cannot change until this transaction ends."""
    if not is_uuid(job_id):
        return None
    query = select(JobRow).where(JobRow.id == job_id, *where)
    if lock:
        query = query.with_for_update(key_share=True)
    return session.scalars(query).one_or_none()


def find_job(session: Session, job_id: str, *, owner: str, lock: bool = False) -> JobRow:
    """The same. Raises `JobNotFound`, also if the job belongs to another owner."""
    row = read_job(session, job_id, JobRow.owner == owner, lock=lock)
    if row is None:
        raise no_such_job(job_id)
    return row
