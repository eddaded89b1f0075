"""Messages are written with the events they are about, in one transaction: neither exists without the other."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import bindparam, insert, select, union_all
from sqlalchemy.orm import Session

from replaceme_core.ledger.clock import now
from replaceme_core.ledger.row_mapping import to_job
from replaceme_core.ledger.states import EventType
from replaceme_core.ledger.tables import JobRow
from replaceme_core.ledger.webhooks.payload import body_of
from replaceme_core.ledger.webhooks.states import DeliveryState
from replaceme_core.ledger.webhooks.tables import DeliveryRow, WebhookRow


@dataclass(frozen=True, kw_only=True)
class WrittenEvent:
    """An event that this transaction has written."""

    seq: int
    type: EventType
    at: datetime
    data: Mapping[str, object]


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
    # who deletes a webhook waits for this transaction: the messages refer to it
    .with_for_update(read=True, key_share=True)
)
"""Built once, since every event reads by it."""


def write_messages(session: Session, row: JobRow, events: Sequence[WrittenEvent]) -> None:
    """Insert a message for each of `events` and each webhook that wants it. `row` is the job after all of them."""
    asked = {"owner": row.owner, "job_id": row.id}
    webhooks = session.scalars(_WEBHOOKS, asked, execution_options={"populate_existing": True}).all()
    if not webhooks:
        return
    job = to_job(row)
    for webhook in webhooks:
        if not webhook.labels.items() <= job.labels.items():
            continue
        for event in events:
            if event.type.value in webhook.events:
                body = body_of(
                    webhook.payload,
                    job,
                    seq=event.seq,
                    event=event.type,
                    at=event.at,
                    attempt=row.attempt,
                    event_data=event.data,
                )
                session.execute(
                    insert(DeliveryRow).values(
                        webhook_id=webhook.id,
                        owner=row.owner,
                        job_id=row.id,
                        seq=event.seq,
                        type=event.type,
                        body=body,
                        state=DeliveryState.PENDING,
                        tries=0,
                        next_try_at=now(),
                        created_at=now(),
                    )
                )
