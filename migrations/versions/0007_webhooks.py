"""Webhooks, their deliveries (outbox and log), and each try to send one.

Only adds tables: the version before keeps working. Events that it writes while both run reach no webhook.
"""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"

TIME = sa.DateTime(timezone=True)
WORD = sa.String(length=32)
ID = sa.String(length=36)
NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
PENDING = sa.text("state = 'pending'")
CLAIMED = sa.text("claimed_until IS NOT NULL")


def upgrade() -> None:
    op.create_table(
        "webhooks",
        sa.Column("number", NUMBER, autoincrement=True, nullable=False),
        sa.Column("id", ID, nullable=False),
        sa.Column("owner", sa.String(), nullable=False),
        sa.Column("job_id", ID, nullable=True),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("events", sa.JSON(), nullable=False),
        sa.Column("labels", sa.JSON(), nullable=False),
        sa.Column("payload", WORD, nullable=False),
        sa.Column("secret", sa.Text(), nullable=False),
        sa.Column("previous_secret", sa.Text(), nullable=True),
        sa.Column("previous_expires_at", TIME, nullable=True),
        sa.Column("signed_by", ID, nullable=True),
        sa.Column("disabled_at", TIME, nullable=True),
        sa.Column("disabled_by", WORD, nullable=True),
        sa.Column("created_at", TIME, nullable=False),
        sa.CheckConstraint("(disabled_at IS NULL) = (disabled_by IS NULL)", name=op.f("ck_webhooks_disabled")),
        sa.ForeignKeyConstraint(["signed_by"], ["webhooks.id"], name=op.f("fk_webhooks_signed_by"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("number", name=op.f("pk_webhooks")),
        sa.UniqueConstraint("id", name=op.f("uq_webhooks_id")),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_webhooks_owner_job", "webhooks", ["owner", "job_id"])
    op.create_index("ix_webhooks_signed_by", "webhooks", ["signed_by"])
    op.create_table(
        "webhook_deliveries",
        sa.Column("number", NUMBER, autoincrement=True, nullable=False),
        sa.Column("webhook_id", ID, nullable=False),
        sa.Column("owner", sa.String(), nullable=False),
        sa.Column("job_id", ID, nullable=False),
        sa.Column("seq", sa.Integer(), nullable=False),
        sa.Column("type", WORD, nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.Column("state", WORD, nullable=False),
        sa.Column("tries", sa.Integer(), nullable=False),
        sa.Column("next_try_at", TIME, nullable=True),
        sa.Column("claim_token", WORD, nullable=True),
        sa.Column("claimed_until", TIME, nullable=True),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("finished_at", TIME, nullable=True),
        sa.CheckConstraint("state IN ('pending', 'delivered', 'failed')", name=op.f("ck_webhook_deliveries_state")),
        sa.CheckConstraint(
            "(state = 'pending') = (next_try_at IS NOT NULL)", name=op.f("ck_webhook_deliveries_pending_has_time")
        ),
        sa.CheckConstraint(
            "(state = 'pending') = (finished_at IS NULL)", name=op.f("ck_webhook_deliveries_finished_has_time")
        ),
        sa.ForeignKeyConstraint(
            ["webhook_id"], ["webhooks.id"], name=op.f("fk_webhook_deliveries_webhook_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("number", name=op.f("pk_webhook_deliveries")),
        sa.UniqueConstraint("webhook_id", "job_id", "seq", name=op.f("uq_webhook_deliveries_event")),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_webhook_deliveries_webhook", "webhook_deliveries", ["webhook_id", "number"])
    op.create_index(
        "ix_webhook_deliveries_due",
        "webhook_deliveries",
        ["next_try_at"],
        postgresql_where=PENDING,
        sqlite_where=PENDING,
    )
    op.create_index(
        "ix_webhook_deliveries_claimed",
        "webhook_deliveries",
        ["claimed_until"],
        postgresql_where=CLAIMED,
        sqlite_where=CLAIMED,
    )
    op.create_index("ix_webhook_deliveries_finished", "webhook_deliveries", ["finished_at"])
    op.create_table(
        "webhook_tries",
        sa.Column("delivery", NUMBER, autoincrement=False, nullable=False),
        sa.Column("number", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("at", TIME, nullable=False),
        sa.Column("status", sa.Integer(), nullable=True),
        sa.Column("error", WORD, nullable=True),
        sa.Column("seconds", sa.Float(), nullable=False),
        sa.ForeignKeyConstraint(
            ["delivery"], ["webhook_deliveries.number"], name=op.f("fk_webhook_tries_delivery"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("delivery", "number", name=op.f("pk_webhook_tries")),
    )


def downgrade() -> None:
    op.drop_table("webhook_tries")
    op.drop_table("webhook_deliveries")
    op.drop_table("webhooks")
