"""Deliveries: claim one that is due, write what became of it, read the log, send again.

A claim is a lease without renewal: the row stays pending, and once the claim is over any process may take it. So a
process that is killed loses no message; at worst one is sent twice, with the same id. On PostgreSQL each process skips
the rows that another one has locked; on SQLite the second waits for the first and finds the next row.
"""

import secrets
from collections import defaultdict
from collections.abc import Sequence

from sqlalchemy import ColumnElement, func, insert, select, update
from sqlalchemy.orm import Session, aliased

from replaceme_core.errors import Conflict, NotFound
from replaceme_core.ledger.access.keys import Keys
from replaceme_core.ledger.access.records import OF_WEBHOOKS
from replaceme_core.ledger.clock import now
from replaceme_core.ledger.page_cursor import from_cursor, to_cursor
from replaceme_core.ledger.records import Page
from replaceme_core.ledger.webhooks.records import ClaimedDelivery, Delivery, Try, message_id, parse_message_id
from replaceme_core.ledger.webhooks.registry import end_pending, find
from replaceme_core.ledger.webhooks.states import DeliveryState, DisabledBy
from replaceme_core.ledger.webhooks.tables import DeliveryRow, TryRow, WebhookRow

MOST_AT_ONCE = 4
"""Messages of one owner that are on the way at the same time, in all processes together."""
_FRESH = {"populate_existing": True}


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
    """Take the delivery that has been due for longest; `None` if there is none.

    Owners with `MOST_AT_ONCE` messages on the way are passed over, so that slow receivers of one do not hold up others.
    """
    under_way = aliased(DeliveryRow)
    busy = (
        select(under_way.owner)
        .where(under_way.claimed_until > now())
        .group_by(under_way.owner)
        .having(func.count() >= MOST_AT_ONCE)
    )
    row = session.scalars(
        select(DeliveryRow)
        .where(*_is_due(), DeliveryRow.owner.not_in(busy))
        .order_by(DeliveryRow.next_try_at)
        .limit(1)
        .with_for_update(skip_locked=True),
        execution_options=_FRESH,
    ).first()
    if row is None:
        return None
    webhook = session.scalars(select(WebhookRow).where(WebhookRow.id == row.webhook_id), execution_options=_FRESH).one()
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
    is_gone: bool,
) -> bool:
    """Write what became of a try. Returns false and writes nothing if the claim is over and another process took it.

    Without `error` it is delivered, else sent again after `retry_in` seconds; `None`: it has failed. `is_gone` disables
    the webhook.
    """
    values: dict[str, object] = {"claim_token": None, "claimed_until": None}
    if error is not None and retry_in is not None and not is_gone:
        values |= {"next_try_at": now(plus_seconds=retry_in)}
    else:
        state = DeliveryState.DELIVERED if error is None else DeliveryState.FAILED
        values |= {"state": state, "next_try_at": None, "finished_at": now()}
    written = session.scalars(
        update(DeliveryRow)
        .where(DeliveryRow.number == claimed.number, DeliveryRow.claim_token == claimed.token)
        .values(**values)
        .returning(DeliveryRow.number),
        execution_options={"synchronize_session": False},
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
        end_pending(session, claimed.webhook_id)
    return True


def page(
    session: Session, webhook_id: str, *, owner: str, state: DeliveryState | None, limit: int, cursor: str | None
) -> Page[Delivery]:
    """The log of a webhook, newest first. Raises `NotFound`, or `InvalidInput` (field `cursor`)."""
    find(session, webhook_id, owner=owner)
    query = select(DeliveryRow).where(DeliveryRow.webhook_id == webhook_id)
    query = query.order_by(DeliveryRow.number.desc()).limit(limit + 1)
    if state is not None:
        query = query.where(DeliveryRow.state == state)
    if cursor is not None:
        query = query.where(DeliveryRow.number < from_cursor(cursor))
    rows = session.scalars(query, execution_options=_FRESH).all()
    return Page(
        items=_to_deliveries(session, rows[:limit]),
        next_cursor=to_cursor(rows[limit - 1].number) if len(rows) > limit else None,
    )


def get(session: Session, webhook_id: str, delivery_id: str, *, owner: str) -> Delivery:
    """Raises `NotFound`."""
    return _to_deliveries(session, [_find(session, webhook_id, delivery_id, owner=owner)])[0]


def redeliver(session: Session, webhook_id: str, delivery_id: str, *, owner: str) -> Delivery:
    """Send a message again, now and as often as a new one. Raises `NotFound`; `Conflict` if the webhook is disabled."""
    if find(session, webhook_id, owner=owner, lock=True).disabled_at is not None:
        raise Conflict("the webhook is disabled; enable it before its messages are sent again")
    row = _find(session, webhook_id, delivery_id, owner=owner)
    session.execute(
        update(DeliveryRow)
        .where(DeliveryRow.number == row.number)
        .values(state=DeliveryState.PENDING, tries=0, next_try_at=now(), finished_at=None)
    )
    return get(session, webhook_id, delivery_id, owner=owner)


def _find(session: Session, webhook_id: str, delivery_id: str, *, owner: str) -> DeliveryRow:
    find(session, webhook_id, owner=owner)
    event = parse_message_id(delivery_id)
    row = None
    if event is not None:
        job_id, seq = event
        row = session.scalars(
            select(DeliveryRow).where(
                DeliveryRow.webhook_id == webhook_id, DeliveryRow.job_id == job_id, DeliveryRow.seq == seq
            ),
            execution_options=_FRESH,
        ).one_or_none()
    if row is None:
        raise NotFound(f"webhook {webhook_id} has no delivery {delivery_id[:64]!r}")
    return row


def _to_deliveries(session: Session, rows: Sequence[DeliveryRow]) -> tuple[Delivery, ...]:
    tries: dict[int, list[Try]] = defaultdict(list)
    for row in session.scalars(
        select(TryRow).where(TryRow.delivery.in_([row.number for row in rows])).order_by(TryRow.delivery, TryRow.number)
    ):
        one = Try(number=row.number, at=row.at, status=row.status, error=row.error, seconds=row.seconds)
        tries[row.delivery].append(one)
    return tuple(
        Delivery(
            webhook_id=row.webhook_id,
            job_id=row.job_id,
            seq=row.seq,
            type=row.type,
            body=row.body,
            state=row.state,
            next_try_at=row.next_try_at,
            created_at=row.created_at,
            finished_at=row.finished_at,
            tries=tuple(tries[row.number]),
        )
        for row in rows
    )
