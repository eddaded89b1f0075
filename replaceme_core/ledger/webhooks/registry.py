"""Webhooks: add, read, change, rotate the secret, delete. Every call is bound to an owner."""

import re
from collections.abc import Mapping
from uuid import uuid4

from sqlalchemy import delete, func, insert, select, update
from sqlalchemy.orm import Session

from replaceme_core.errors import Conflict, NotFound
from replaceme_core.ledger.clock import now
from replaceme_core.ledger.page_cursor import from_cursor, to_cursor
from replaceme_core.ledger.records import Page
from replaceme_core.ledger.states import ACTIVE, EventType
from replaceme_core.ledger.tables import JobRow
from replaceme_core.ledger.webhooks.records import NewWebhook, Webhook
from replaceme_core.ledger.webhooks.states import DeliveryState, DisabledBy
from replaceme_core.ledger.webhooks.tables import DeliveryRow, WebhookRow

MOST_STANDING = 100
_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_PREVIOUS = ("previous_secret", "previous_expires_at")
_FRESH = {"populate_existing": True}


def add(session: Session, new: NewWebhook, *, owner: str, job_id: str | None) -> Webhook:
    """Insert a webhook. Raises `Conflict` above the limit, and `NotFound` if `signed_by` is none of the owner's."""
    if job_id is None:
        counted = select(func.count()).where(WebhookRow.owner == owner, WebhookRow.job_id.is_(None))
        if session.scalars(counted).one() >= MOST_STANDING:
            raise Conflict(f"there are {MOST_STANDING} webhooks, which is the limit; delete one that is not needed")
    if new.signed_by is not None:
        find(session, new.signed_by, owner=owner)
    row = session.scalars(
        insert(WebhookRow)
        .values(
            id=str(uuid4()),
            owner=owner,
            job_id=job_id,
            url=new.url,
            events=[event.value for event in new.events],
            labels=dict(new.labels),
            payload=new.payload,
            secret=new.secret,
            signed_by=new.signed_by,
            key_id=new.key_id,
            created_at=now(),
        )
        .returning(WebhookRow)
    ).one()
    return to_webhook(row)


def copy_of_job(session: Session, job_id: str, *, owner: str, new_job_id: str) -> Webhook | None:
    """The webhook of a job once more, for another job; `None` if it has none that is enabled.

    It signs with the same secrets, which its receiver knows, and depends on the same key.
    """
    earlier = session.scalars(
        select(WebhookRow).where(
            WebhookRow.owner == owner, WebhookRow.job_id == job_id, WebhookRow.disabled_at.is_(None)
        ),
        execution_options=_FRESH,
    ).first()
    if earlier is None:
        return None
    same = ("owner", "url", "events", "labels", "payload", "secret", "signed_by", "key_id", *_PREVIOUS)
    values = {name: getattr(earlier, name) for name in same}
    row = session.scalars(
        insert(WebhookRow).values(id=str(uuid4()), job_id=new_job_id, created_at=now(), **values).returning(WebhookRow)
    ).one()
    return to_webhook(row)


def find(session: Session, webhook_id: str, *, owner: str, lock: bool = False) -> WebhookRow:
    """The row. Raises `NotFound`, also if the webhook belongs to another owner."""
    row = None
    if _ID.fullmatch(webhook_id):
        query = select(WebhookRow).where(WebhookRow.id == webhook_id, WebhookRow.owner == owner)
        query = query.with_for_update(key_share=True) if lock else query
        row = session.scalars(query, execution_options=_FRESH).one_or_none()
    if row is None:
        raise NotFound(f"there is no webhook {webhook_id[:64]!r}")
    return row


def page(session: Session, *, owner: str, job_id: str | None, limit: int, cursor: str | None) -> Page[Webhook]:
    """The newest first: the standing ones, or those of a job. Raises `InvalidInput` (field `cursor`)."""
    query = select(WebhookRow).where(WebhookRow.owner == owner).order_by(WebhookRow.number.desc()).limit(limit + 1)
    query = query.where(WebhookRow.job_id.is_(None) if job_id is None else WebhookRow.job_id == job_id)
    if cursor is not None:
        query = query.where(WebhookRow.number < from_cursor(cursor))
    rows = session.scalars(query, execution_options=_FRESH).all()
    return Page(
        items=tuple(to_webhook(row) for row in rows[:limit]),
        next_cursor=to_cursor(rows[limit - 1].number) if len(rows) > limit else None,
    )


def change(
    session: Session, webhook_id: str, *, owner: str, values: Mapping[str, object], enabled: bool | None
) -> Webhook:
    """Set columns, and enable or disable. Raises `NotFound`."""
    row = find(session, webhook_id, owner=owner, lock=True)
    changes = dict(values)
    if enabled is True:
        changes |= {"disabled_at": None, "disabled_by": None}
    elif enabled is False and row.disabled_at is None:
        changes |= {"disabled_at": now(), "disabled_by": DisabledBy.OWNER}
        end_pending(session, webhook_id)
    if changes:
        session.execute(update(WebhookRow).where(WebhookRow.id == webhook_id).values(**changes))
    return to_webhook(find(session, webhook_id, owner=owner))


def rotate(session: Session, webhook_id: str, *, owner: str, secret: str, overlap_seconds: float) -> Webhook:
    """Sign with `secret` from now on, and for `overlap_seconds` also with the one before. Raises as below.

    At most two secrets are live: one that was still live from the rotation before is revoked. Raises `NotFound`, and
    `Conflict` if another webhook signs for this one.
    """
    row = find(session, webhook_id, owner=owner, lock=True)
    if row.signed_by is not None:
        raise Conflict(f"the messages are signed by webhook {row.signed_by}; rotate its secret")
    kept = overlap_seconds > 0
    session.execute(
        update(WebhookRow)
        .where(WebhookRow.id == webhook_id)
        .values(
            secret=secret,
            previous_secret=row.secret if kept else None,
            previous_expires_at=now(plus_seconds=overlap_seconds) if kept else None,
        )
    )
    return to_webhook(find(session, webhook_id, owner=owner))


def remove(session: Session, webhook_id: str, *, owner: str) -> None:
    """Delete a webhook with its deliveries, and those that it signs for. Raises `NotFound`."""
    find(session, webhook_id, owner=owner)
    session.execute(delete(WebhookRow).where(WebhookRow.id == webhook_id))


def end_pending(session: Session, webhook_id: str) -> None:
    """End what is still to be sent as failed: the webhook gets nothing more."""
    session.execute(
        update(DeliveryRow)
        .where(DeliveryRow.webhook_id == webhook_id, DeliveryRow.state == DeliveryState.PENDING)
        .values(state=DeliveryState.FAILED, next_try_at=None, finished_at=now(), claim_token=None, claimed_until=None)
    )


def delete_old(session: Session, *, older_than_seconds: float, limit: int) -> int:
    """Delete finished deliveries, and webhooks of finished jobs that have none left; returns how many deliveries.

    Expired secrets are deleted as well: what is not there cannot be revealed.
    """
    old = now(plus_seconds=-older_than_seconds)
    numbers = session.scalars(
        select(DeliveryRow.number)
        .where(DeliveryRow.finished_at < old)
        .order_by(DeliveryRow.finished_at)
        .limit(limit)
        .with_for_update(skip_locked=True)
    ).all()
    if numbers:
        session.execute(delete(DeliveryRow).where(DeliveryRow.number.in_(numbers)))
    active = select(JobRow.id).where(JobRow.id == WebhookRow.job_id, JobRow.status.in_(ACTIVE))
    left = select(DeliveryRow.number).where(DeliveryRow.webhook_id == WebhookRow.id)
    session.execute(
        delete(WebhookRow).where(
            WebhookRow.job_id.is_not(None), WebhookRow.created_at < old, ~active.exists(), ~left.exists()
        )
    )
    session.execute(
        update(WebhookRow)
        .where(WebhookRow.previous_secret.is_not(None), WebhookRow.previous_expires_at <= now())
        .values(previous_secret=None, previous_expires_at=None)
    )
    return len(numbers)


def to_webhook(row: WebhookRow) -> Webhook:
    """The record of a row."""
    known = set(EventType)
    return Webhook(
        id=row.id,
        owner=row.owner,
        job_id=row.job_id,
        url=row.url,
        events=tuple(EventType(event) for event in row.events if event in known),
        labels={name: str(value) for name, value in row.labels.items()},
        payload=row.payload,
        signed_by=row.signed_by,
        key_id=row.key_id,
        previous_expires_at=row.previous_expires_at,
        disabled_at=row.disabled_at,
        disabled_by=row.disabled_by,
        created_at=row.created_at,
    )
