"""The tables of webhooks: who receives what, the messages (the outbox, and later the log), and each try to send one."""

from datetime import datetime

from sqlalchemy import JSON, CheckConstraint, ForeignKey, Index, String, Text, UniqueConstraint, text
from sqlalchemy.orm import Mapped, mapped_column

from replaceme_core.ledger.states import EventType
from replaceme_core.ledger.tables import NUMBER, Base, JsonObject, stored_enum
from replaceme_core.ledger.webhooks.states import DeliveryState, DisabledBy, Payload

PENDING = "state = 'pending'"


class WebhookRow(Base):
    """A receiver of events. With `job_id` it belongs to that job, else to all jobs of its owner.

    Secrets are encrypted. There is no foreign key to jobs: a job may be deleted while its last message is on the way.
    """

    __tablename__ = "webhooks"

    number: Mapped[int] = mapped_column(NUMBER, primary_key=True, autoincrement=True)
    id: Mapped[str] = mapped_column(String(36), unique=True)
    owner: Mapped[str]
    job_id: Mapped[str | None] = mapped_column(String(36))
    url: Mapped[str] = mapped_column(Text)
    events: Mapped[list[str]] = mapped_column(JSON)
    labels: Mapped[JsonObject]
    payload: Mapped[Payload] = mapped_column(stored_enum(Payload))
    secret: Mapped[str] = mapped_column(Text)
    previous_secret: Mapped[str | None] = mapped_column(Text)
    previous_expires_at: Mapped[datetime | None]
    signed_by: Mapped[str | None] = mapped_column(ForeignKey("webhooks.id", ondelete="CASCADE"))
    """The webhook whose secrets sign the messages; null: its own."""
    key_id: Mapped[str | None] = mapped_column(String(36))
    """The API key that has made it, or has changed it last; null: none, or the release before."""
    disabled_at: Mapped[datetime | None]
    disabled_by: Mapped[DisabledBy | None] = mapped_column(stored_enum(DisabledBy))
    created_at: Mapped[datetime]

    __table_args__ = (
        CheckConstraint("(disabled_at IS NULL) = (disabled_by IS NULL)", name="disabled"),
        Index("ix_webhooks_owner_job", "owner", "job_id"),
        Index("ix_webhooks_signed_by", "signed_by"),
        {"sqlite_autoincrement": True},
    )


class DeliveryRow(Base):
    """One message to one webhook, written in the same transaction as its event. `body` is what is sent, to the byte.

    A try begins with a claim: the row gets a token and a time until which no other process takes it.
    """

    __tablename__ = "webhook_deliveries"

    number: Mapped[int] = mapped_column(NUMBER, primary_key=True, autoincrement=True)
    webhook_id: Mapped[str] = mapped_column(ForeignKey("webhooks.id", ondelete="CASCADE"))
    owner: Mapped[str]
    job_id: Mapped[str] = mapped_column(String(36))
    seq: Mapped[int]
    type: Mapped[EventType]
    body: Mapped[str] = mapped_column(Text)
    state: Mapped[DeliveryState] = mapped_column(stored_enum(DeliveryState))
    tries: Mapped[int]
    """Since it was last made pending; this decides the pause before the next one."""
    next_try_at: Mapped[datetime | None]
    claim_token: Mapped[str | None] = mapped_column(String(32))
    claimed_until: Mapped[datetime | None]
    created_at: Mapped[datetime]
    finished_at: Mapped[datetime | None]

    __table_args__ = (
        UniqueConstraint("webhook_id", "job_id", "seq", name="uq_webhook_deliveries_event"),
        CheckConstraint("state IN ('pending', 'delivered', 'failed')", name="state"),
        CheckConstraint("(state = 'pending') = (next_try_at IS NOT NULL)", name="pending_has_time"),
        CheckConstraint("(state = 'pending') = (finished_at IS NULL)", name="finished_has_time"),
        Index("ix_webhook_deliveries_webhook", "webhook_id", "number"),
        Index("ix_webhook_deliveries_due", "next_try_at", postgresql_where=text(PENDING), sqlite_where=text(PENDING)),
        Index(
            "ix_webhook_deliveries_claimed",
            "claimed_until",
            postgresql_where=text("claimed_until IS NOT NULL"),
            sqlite_where=text("claimed_until IS NOT NULL"),
        ),
        Index("ix_webhook_deliveries_finished", "finished_at"),
        {"sqlite_autoincrement": True},
    )


class TryRow(Base):
    """One try to send a message, and what became of it."""

    __tablename__ = "webhook_tries"

    delivery: Mapped[int] = mapped_column(
        ForeignKey("webhook_deliveries.number", ondelete="CASCADE"), primary_key=True, autoincrement=False
    )
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    at: Mapped[datetime]
    status: Mapped[int | None]
    error: Mapped[str | None] = mapped_column(String(32))
    seconds: Mapped[float]
