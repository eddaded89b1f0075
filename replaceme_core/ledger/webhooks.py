"""Webhooks and their deliveries. What belongs to another owner than the one that is given is not found.

A delivery is claimed, sent, and what became of it is written. A claim is a lease without renewal: the row stays
pending, and once the claim is over any process may take it. So a process that is killed loses no message; at worst one
is sent twice, with the same id. On PostgreSQL each process skips the rows that another one has locked; on SQLite the
second waits for the first and finds the next row. The messages themselves are written with each event of a job
(`transitions.py`).
"""

import json
import re
import secrets
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from uuid import uuid4

from sqlalchemy import ColumnElement, case, delete, func, insert, select, update
from sqlalchemy.orm import Session, aliased

from replaceme_core import shapes
from replaceme_core.errors import Conflict, InvalidInput, NotFound
from replaceme_core.ledger.database import delete_oldest, lock_until_commit, now
from replaceme_core.ledger.keys import OF_WEBHOOKS, Keys
from replaceme_core.ledger.records import JobEvent, Page, after_place, page_of, to_place
from replaceme_core.ledger.states import (
    ACTIVE,
    DEFAULT_EVENTS,
    TYPE_PREFIX,
    DeliveryState,
    DisabledBy,
    EventType,
    Payload,
)
from replaceme_core.ledger.tables import DeliveryRow, JobRow, TryRow, WebhookRow, is_uuid
from replaceme_core.shapes import Try
from replaceme_core.wording import json_safe

_MESSAGE_ID = re.compile(r"evt_([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})-([1-9]\d{0,8})")


def message_id(job_id: str, seq: int) -> str:
    """The `webhook-id` of an event: the same at each try, and at each webhook, so that a receiver knows repetitions.

    >>> message_id("3f2b8c52-0000-4000-8000-000000000001", 4)
    'evt_3f2b8c52-0000-4000-8000-000000000001-4'
    """
    return f"evt_{job_id}-{seq}"


def parse_message_id(text: str) -> tuple[str, int] | None:
    """Job and `seq` of a `webhook-id`; `None` if it is none."""
    found = _MESSAGE_ID.fullmatch(text)
    return None if found is None else (found[1], int(found[2]))


@dataclass(frozen=True, kw_only=True)
class NewWebhook:
    """What a webhook is made of. A job must carry all of `labels`. `secret` is sealed.

    `signed_by`: the webhook whose secrets sign the messages, in place of its own. `key_id`: the API key that asks for
    it, `None` without one.
    """

    url: str = field(repr=False)
    secret: str = field(repr=False)
    events: tuple[EventType, ...] = DEFAULT_EVENTS
    labels: Mapping[str, str] = field(default_factory=dict)
    payload: Payload = Payload.THIN
    signed_by: str | None = None
    key_id: str | None = None


class Webhook(shapes.Webhook):
    """A webhook without its secrets."""

    events: tuple[EventType, ...]
    payload: Payload
    disabled_by: DisabledBy | None


class WholeDelivery(shapes.WholeDelivery):
    """One message to one webhook, with all tries to send it."""

    state: DeliveryState


@dataclass(frozen=True, kw_only=True)
class ClaimedDelivery:
    """The right to send a message now. `secrets` are sealed; the later write is conditional on `token`.

    `tries` counts this one. `may_be_sent` is false if the key of the webhook may not read jobs any more.
    """

    number: int
    token: str
    webhook_id: str
    message_id: str
    tries: int
    may_be_sent: bool
    url: str = field(repr=False)
    body: str = field(repr=False)
    secrets: tuple[str, ...] = field(repr=False)


MOST_STANDING = 100
_PREVIOUS = ("previous_secret", "previous_expires_at")


def add(session: Session, new: NewWebhook, *, owner: str, job_id: str | None = None) -> Webhook:
    """Insert a webhook. Raises `Conflict` above the limit, and as `check_signer` does."""
    if job_id is None:
        lock_until_commit(session, f"webhooks of {owner}")  # each of several at once counts
        counted = select(func.count()).where(WebhookRow.owner == owner, WebhookRow.job_id.is_(None))
        if session.scalars(counted).one() >= MOST_STANDING:
            raise Conflict(f"there are {MOST_STANDING} webhooks, which is the limit; delete one that is not needed")
    check_signer(session, new.signed_by, owner=owner, lock=True)
    values = asdict(new) | {"events": [event.value for event in new.events], "labels": dict(new.labels)}
    return _insert(session, owner=owner, job_id=job_id, **values)


def check_signer(session: Session, webhook_id: str | None, *, owner: str, lock: bool = False) -> None:
    """Raises `InvalidInput` (field `webhook.signed_by`) for one that does not exist, or that ends with its job.

    `lock`: it is not deleted before this transaction ends.
    """
    if webhook_id is None:
        return
    try:
        row = _find(session, webhook_id, owner=owner, lock=lock)
    except NotFound as error:
        raise InvalidInput(error.message, field="webhook.signed_by", value=webhook_id) from None
    if row.job_id is not None or row.signed_by is not None:
        raise InvalidInput(
            "only a webhook for all jobs can sign for others", field="webhook.signed_by", value=webhook_id
        )


def _insert(session: Session, **values: object) -> Webhook:
    made = insert(WebhookRow).values(id=str(uuid4()), created_at=now(), **values)
    return _to_webhook(session.scalars(made.returning(WebhookRow)).one())


def copy_of_job(session: Session, job_id: str, *, owner: str, new_job_id: str) -> Webhook | None:
    """The webhook of a job once more, for another job; `None` if it has none that is enabled.

    It signs with the same secrets, which its receiver knows, and depends on the same key.
    """
    if not is_uuid(job_id):  # it may have characters that PostgreSQL takes in no value
        return None
    wanted = (WebhookRow.owner == owner, WebhookRow.job_id == job_id, WebhookRow.disabled_at.is_(None))
    earlier = session.scalars(select(WebhookRow).where(*wanted)).first()
    if earlier is None:
        return None
    same = ("owner", "url", "events", "labels", "payload", "secret", "signed_by", "key_id", *_PREVIOUS)
    return _insert(session, job_id=new_job_id, **{name: getattr(earlier, name) for name in same})


def get(session: Session, webhook_id: str, *, owner: str) -> Webhook:
    """Raises `NotFound`."""
    return _to_webhook(_find(session, webhook_id, owner=owner))


def _find(session: Session, webhook_id: str, *, owner: str, lock: bool = False) -> WebhookRow:
    """The row. Raises `NotFound`, also if the webhook belongs to another owner."""
    row = None
    if is_uuid(webhook_id):
        query = select(WebhookRow).where(WebhookRow.id == webhook_id, WebhookRow.owner == owner)
        query = query.with_for_update(key_share=True) if lock else query
        row = session.scalars(query).one_or_none()
    if row is None:
        raise NotFound(f"there is no webhook {webhook_id[:64]!r}")
    return row


def page(
    session: Session, *, owner: str, limit: int, job_id: str | None = None, cursor: str | None = None
) -> Page[Webhook]:
    """The newest first: those for all jobs, or those of one job. Raises `InvalidInput` (field `cursor`)."""
    of_job = WebhookRow.job_id.is_(None) if job_id is None else WebhookRow.job_id == job_id
    query = select(WebhookRow).where(WebhookRow.owner == owner, of_job, after_place(cursor, WebhookRow.number))
    query = query.order_by(WebhookRow.number.desc()).limit(limit + 1)
    rows = session.scalars(query).all()
    return page_of(rows, limit, _to_webhook, cursor=to_place)


def change(
    session: Session, webhook_id: str, *, owner: str, values: Mapping[str, object], enabled: bool | None = None
) -> Webhook:
    """Set columns, and enable or disable. Raises `NotFound`."""
    row = _find(session, webhook_id, owner=owner, lock=True)
    changes = dict(values)
    if enabled is True:
        changes |= {"disabled_at": None, "disabled_by": None}
    elif enabled is False and row.disabled_at is None:
        changes |= {"disabled_at": now(), "disabled_by": DisabledBy.OWNER}
        _end_pending(session, webhook_id)
    return _update(session, webhook_id, changes) if changes else _to_webhook(row)


def _update(session: Session, webhook_id: str, values: Mapping[str, object]) -> Webhook:
    changed = update(WebhookRow).where(WebhookRow.id == webhook_id).values(**values).returning(WebhookRow)
    return _to_webhook(session.scalars(changed).one())


def rotate(session: Session, webhook_id: str, *, owner: str, secret: str, overlap_seconds: float) -> Webhook:
    """Sign with `secret` from now on, and for `overlap_seconds` also with the one before. Raises as below.

    At most two secrets are live: one that was still live from the rotation before is revoked. Raises `NotFound`, and
    `Conflict` if another webhook signs for this one.
    """
    row = _find(session, webhook_id, owner=owner, lock=True)
    if row.signed_by is not None:
        raise Conflict(f"the messages are signed by webhook {row.signed_by}; rotate its secret")
    kept = overlap_seconds > 0
    values = {
        "secret": secret,
        "previous_secret": row.secret if kept else None,
        "previous_expires_at": now(plus_seconds=overlap_seconds) if kept else None,
    }
    return _update(session, webhook_id, values)


def remove(session: Session, webhook_id: str, *, owner: str) -> None:
    """Delete a webhook with its deliveries, and those that it signs for. Raises `NotFound`."""
    _find(session, webhook_id, owner=owner)
    session.execute(delete(WebhookRow).where(WebhookRow.id == webhook_id))


def _end_pending(session: Session, webhook_id: str) -> None:
    """End what is still to be sent as failed: the webhook gets nothing more. What is on the way keeps its claim."""
    session.execute(
        update(DeliveryRow)
        .where(DeliveryRow.webhook_id == webhook_id, DeliveryRow.state == DeliveryState.PENDING)
        .values(state=DeliveryState.FAILED, next_try_at=None, finished_at=now(), claimed_until=None)
    )


def delete_old(session: Session, *, older_than_seconds: float, limit: int) -> int:
    """Delete up to `limit` finished deliveries, and as many webhooks of finished jobs that have none left; returns how
    many of both.

    Expired secrets are deleted as well: what is not there cannot be revealed.
    """
    old = now(plus_seconds=-older_than_seconds)
    deleted = delete_oldest(session, DeliveryRow.number, DeliveryRow.finished_at, until=old, limit=limit)
    active = select(JobRow.id).where(JobRow.id == WebhookRow.job_id, JobRow.status.in_(ACTIVE))
    left = select(DeliveryRow.number).where(DeliveryRow.webhook_id == WebhookRow.id)
    signed = aliased(WebhookRow)  # by an earlier release; they would be deleted with it
    signs = select(signed.number).where(signed.signed_by == WebhookRow.id)
    unused = (
        select(WebhookRow.number)
        .where(WebhookRow.job_id.is_not(None), WebhookRow.created_at < old)
        .where(~active.exists(), ~left.exists(), ~signs.exists())
        .limit(limit)
    )
    removed = delete(WebhookRow).where(WebhookRow.number.in_(unused)).returning(WebhookRow.number)
    deleted += len(session.scalars(removed).all())
    session.execute(
        update(WebhookRow)
        .where(WebhookRow.previous_secret.is_not(None), WebhookRow.previous_expires_at <= now())
        .values(previous_secret=None, previous_expires_at=None)
    )
    return deleted


def _to_webhook(row: WebhookRow) -> Webhook:
    """The record of a row."""
    known = set(EventType)
    return Webhook.of(
        row,
        events=tuple(event for event in row.events if event in known),
        labels={name: str(value) for name, value in row.labels.items()},
        enabled=row.disabled_at is None,
        previous_secret_expires_at=row.previous_expires_at,
    )


MOST_AT_ONCE, MOST_TO_ONE = 4, 2
"""Messages of one owner, and to one webhook, that are on the way at the same time, in all processes together."""


def _is_due() -> tuple[ColumnElement[bool], ...]:
    return (
        DeliveryRow.state == DeliveryState.PENDING,
        DeliveryRow.next_try_at <= now(),
        DeliveryRow.claimed_until.is_(None) | (DeliveryRow.claimed_until <= now()),
    )


def has_due(session: Session) -> bool:
    """Whether some delivery may be due."""
    return session.scalars(select(DeliveryRow.number).where(*_is_due()).limit(1)).first() is not None


def claim(session: Session, *, claim_seconds: float) -> ClaimedDelivery | None:
    """Take a delivery that is due; `None` if there is none.

    Those of the owner with the fewest messages on the way come first, and of these the one that has been due for
    longest. Owners with `MOST_AT_ONCE` on the way are passed over, and webhooks with `MOST_TO_ONE`. So slow receivers
    of some do not hold up others.
    """
    lock_until_commit(session, "claims of messages")  # each of several at once counts
    claimed = select(DeliveryRow.owner, DeliveryRow.webhook_id).where(DeliveryRow.claimed_until > now())
    under_way = session.execute(claimed).all()
    owners, receivers = (Counter(row[place] for row in under_way) for place in (0, 1))
    slow = [receiver for receiver, count in receivers.items() if count >= MOST_TO_ONE]
    groups = [tuple(sorted(one for one in owners if owners[one] >= fewer)) for fewer in range(1, MOST_AT_ONCE + 1)]
    row = None
    # a query each, so that it reads the index in its order: with a long backlog of a busy owner, all of that
    for busy in dict.fromkeys(groups):
        row = session.scalars(
            select(DeliveryRow)
            .where(*_is_due(), DeliveryRow.owner.not_in(busy), DeliveryRow.webhook_id.not_in(slow))
            .order_by(DeliveryRow.next_try_at)
            .limit(1)
            .with_for_update(skip_locked=True)
        ).first()
        if row is not None:
            break
    if row is None:
        return None
    webhook = session.scalars(select(WebhookRow).where(WebhookRow.id == row.webhook_id)).one()
    signer = session.execute(
        select(
            WebhookRow.secret,
            WebhookRow.previous_secret,
            (WebhookRow.previous_expires_at > now()).label("previous_is_live"),
        ).where(WebhookRow.id == (webhook.signed_by or webhook.id))
    ).one()
    token, tries = secrets.token_hex(16), row.tries + 1
    session.execute(
        update(DeliveryRow)
        .where(DeliveryRow.number == row.number)
        .values(claim_token=token, claimed_until=now(plus_seconds=claim_seconds), tries=tries)
    )
    previous = (signer.previous_secret,) if signer.previous_is_live else ()
    return ClaimedDelivery(
        number=row.number,
        token=token,
        webhook_id=row.webhook_id,
        message_id=message_id(row.job_id, row.seq),
        tries=tries,
        may_be_sent=webhook.key_id is None or Keys(session).may(webhook.key_id, OF_WEBHOOKS),
        url=webhook.url,
        body=row.body,
        secrets=(signer.secret, *previous),
    )


def record(
    session: Session,
    claimed: ClaimedDelivery,
    *,
    status: int | None,
    error: str | None,
    seconds: float,
    retry_in: float | None,
    is_gone: bool = False,
) -> bool:
    """Write what became of a try. Returns false and writes nothing if the claim is over and another process took it.

    Without `error` it is delivered, else sent again after `retry_in` seconds; `None`: it has failed. `is_gone` disables
    the webhook.
    """
    if is_gone:  # locked before its deliveries, as elsewhere: two messages may be answered at the same time
        webhook = select(WebhookRow.number).where(WebhookRow.id == claimed.webhook_id)
        session.execute(webhook.with_for_update(key_share=True))
    values: dict[str, object] = {"claim_token": None, "claimed_until": None}
    if error is not None and retry_in is not None and not is_gone:
        is_pending = DeliveryRow.state == DeliveryState.PENDING  # else its webhook was disabled meanwhile
        values |= {"next_try_at": case((is_pending, now(plus_seconds=retry_in)))}
    else:
        state = DeliveryState.DELIVERED if error is None else DeliveryState.FAILED
        values |= {"state": state, "next_try_at": None, "finished_at": now()}
    written = session.scalars(
        update(DeliveryRow)
        .where(DeliveryRow.number == claimed.number, DeliveryRow.claim_token == claimed.token)
        .values(**values)
        .returning(DeliveryRow.number)
    ).first()
    if written is None:
        return False
    earlier = select(func.count()).where(TryRow.delivery == claimed.number).scalar_subquery()
    session.execute(
        insert(TryRow).values(
            delivery=claimed.number, number=earlier + 1, at=now(), status=status, error=error, seconds=seconds
        )
    )
    if is_gone:
        session.execute(
            update(WebhookRow)
            .where(WebhookRow.id == claimed.webhook_id, WebhookRow.disabled_at.is_(None))
            .values(disabled_at=now(), disabled_by=DisabledBy.RECEIVER)
        )
        _end_pending(session, claimed.webhook_id)
    return True


def deliveries(
    session: Session,
    webhook_id: str,
    *,
    owner: str,
    limit: int,
    state: DeliveryState | None = None,
    cursor: str | None = None,
) -> Page[WholeDelivery]:
    """The log of a webhook, newest first. Raises `NotFound`, or `InvalidInput` (field `cursor`)."""
    _find(session, webhook_id, owner=owner)
    query = select(DeliveryRow).where(DeliveryRow.webhook_id == webhook_id, after_place(cursor, DeliveryRow.number))
    query = query.order_by(DeliveryRow.number.desc()).limit(limit + 1)
    if state is not None:
        query = query.where(DeliveryRow.state == state)
    rows = session.scalars(query).all()
    found = dict(zip(rows, _to_deliveries(session, rows), strict=True))
    return page_of(rows, limit, found.__getitem__, cursor=to_place)


def delivery(session: Session, webhook_id: str, delivery_id: str, *, owner: str) -> WholeDelivery:
    """Raises `NotFound`."""
    _find(session, webhook_id, owner=owner)
    return _to_deliveries(session, [_find_delivery(session, webhook_id, delivery_id)])[0]


def redeliver(session: Session, webhook_id: str, delivery_id: str, *, owner: str) -> WholeDelivery:
    """Send a message again, now and as often as a new one. Raises `NotFound`; `Conflict` if the webhook is disabled."""
    if _find(session, webhook_id, owner=owner, lock=True).disabled_at is not None:
        raise Conflict("the webhook is disabled; enable it before its messages are sent again")
    row = _find_delivery(session, webhook_id, delivery_id)
    again = {"state": DeliveryState.PENDING, "tries": 0, "next_try_at": now(), "finished_at": None}
    changed = update(DeliveryRow).where(DeliveryRow.number == row.number).values(**again).returning(DeliveryRow)
    return _to_deliveries(session, [session.scalars(changed).one()])[0]


def _find_delivery(session: Session, webhook_id: str, delivery_id: str) -> DeliveryRow:
    event = parse_message_id(delivery_id)
    row = None
    if event is not None:
        job_id, seq = event
        row = session.scalars(
            select(DeliveryRow).where(
                DeliveryRow.webhook_id == webhook_id, DeliveryRow.job_id == job_id, DeliveryRow.seq == seq
            )
        ).one_or_none()
    if row is None:
        raise NotFound(f"webhook {webhook_id} has no delivery {delivery_id[:64]!r}")
    return row


def _to_deliveries(session: Session, rows: Sequence[DeliveryRow]) -> list[WholeDelivery]:
    tries: dict[int, list[Try]] = defaultdict(list)
    found = select(TryRow).where(TryRow.delivery.in_([row.number for row in rows]))
    for row in session.scalars(found.order_by(TryRow.delivery, TryRow.number)):
        tries[row.delivery].append(Try.of(row, seconds=round(row.seconds, 3)))
    return [
        WholeDelivery.of(
            row,
            id=message_id(row.job_id, row.seq),
            type=f"{TYPE_PREFIX}{row.type}",
            tries=tuple(tries[row.number]),
        )
        for row in rows
    ]


def body_of(payload: Payload, job: shapes.Job, event: JobEvent) -> str:
    """The JSON text of a message about one event. `job` is as it is right after the event."""
    is_full = payload is Payload.FULL
    data = shapes.MessageData(
        job_id=job.id,
        seq=event.seq,
        attempt=event.attempt,
        status=job.status,
        labels=dict(job.labels),
        event=json_safe(event.data),
        job=shapes.Job.of(job) if is_full else None,  # without links, which depend on how the API is reached
    )
    message = shapes.Message(type=f"{TYPE_PREFIX}{event.type}", timestamp=event.at, data=data)
    whole = message.model_dump(mode="json", exclude=None if is_full else {"data": {"job"}})
    return json.dumps(whole, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
