"""The ledger: jobs with all about them; the feed, logs, workers and totals; keys, owners and credentials; webhooks.

It stands for the twelve migrations before the first release, hence its number: a database that has them needs nothing.
"""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = None

# SQLite increments only a column of type INTEGER
NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
ID = sa.String(length=36)
OWNER = sa.String(length=100)
TIME = sa.DateTime(timezone=True)
WORD = sa.String(length=32)
OBJECT = sa.JSON(none_as_null=True)
TABLES = (
    "jobs",
    "job_labels",
    "job_events",
    "metrics",
    "idempotency_keys",
    "event_feed",
    "job_logs",
    "workers",
    "event_totals",
    "stage_totals",
    "api_keys",
    "owners",
    "credentials",
    "ended_sessions",
    "webhooks",
    "webhook_deliveries",
    "webhook_tries",
)
"""Each after those that it refers to."""
INDEXES = (
    ("jobs", "ix_jobs_owner_number", ["owner", "number"]),
    ("jobs", "ix_jobs_owner_status_number", ["owner", "status", "number"]),
    ("jobs", "ix_jobs_status_number", ["status", "number"]),
    ("jobs", "ix_jobs_owner_created_at", ["owner", "created_at"]),
    ("jobs", "ix_jobs_owner_model_number", ["owner", "model", "number"]),
    ("job_labels", "ix_job_labels_name_value", ["name", "value", "job_id"]),
    ("metrics", "ix_metrics_job", ["job_id", "attempt", "number"]),
    ("metrics", "ix_metrics_name", ["name"]),
    ("idempotency_keys", "ix_idempotency_keys_expires_at", ["expires_at"]),
    ("api_keys", "ix_api_keys_owner_number", ["owner", "number"]),
    ("webhooks", "ix_webhooks_owner_job", ["owner", "job_id"]),
    ("webhooks", "ix_webhooks_signed_by", ["signed_by"]),
    ("webhook_deliveries", "ix_webhook_deliveries_webhook", ["webhook_id", "number"]),
    ("webhook_deliveries", "ix_webhook_deliveries_finished", ["finished_at"]),
)
PARTIAL_INDEXES = (
    ("jobs", "ix_jobs_queued", ["last_rung_at"], "status = 'queued'"),
    ("jobs", "ix_jobs_turn", ["priority", "owner", "number"], "status = 'queued'"),
    ("jobs", "ix_jobs_route_turn", ["route", "priority", "owner", "number"], "status = 'queued'"),
    ("jobs", "ix_jobs_deadline", ["deadline_at"], "status = 'queued'"),
    ("jobs", "ix_jobs_running", ["lease_expires_at"], "status = 'running'"),
    ("jobs", "ix_jobs_owner_started_at", ["owner", "started_at"], "started_at IS NOT NULL"),
    ("jobs", "ix_jobs_owner_finished_at", ["owner", "finished_at", "number"], "finished_at IS NOT NULL"),
    ("jobs", "ix_jobs_finished_at", ["finished_at"], "finished_at IS NOT NULL"),
    ("webhook_deliveries", "ix_webhook_deliveries_due", ["next_try_at"], "state = 'pending'"),
    ("webhook_deliveries", "ix_webhook_deliveries_claimed", ["claimed_until"], "claimed_until IS NOT NULL"),
)


def upgrade() -> None:
    op.create_table(
        "jobs",
        sa.Column("number", NUMBER, autoincrement=True, nullable=False),
        sa.Column("id", ID, nullable=False),
        sa.Column("owner", sa.String(), nullable=False),
        sa.Column("status", WORD, nullable=False),
        sa.Column("spec", OBJECT, nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("event_count", sa.Integer(), nullable=False),
        sa.Column("stage", WORD, nullable=True),
        sa.Column("overall", sa.Float(), nullable=False),
        sa.Column("stage_fraction", sa.Float(), nullable=False),
        sa.Column("eta_seconds", sa.Float(), nullable=True),
        sa.Column("lease_token", WORD, nullable=True),
        sa.Column("lease_expires_at", TIME, nullable=True),
        sa.Column("worker", sa.String(), nullable=True),
        sa.Column("cancel_requested_at", TIME, nullable=True),
        sa.Column("last_rung_at", TIME, nullable=True),
        sa.Column("error_code", sa.String(), nullable=True),
        sa.Column("error_message", sa.String(), nullable=True),
        sa.Column("result", OBJECT, nullable=True),
        sa.Column("report", OBJECT, nullable=True),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("started_at", TIME, nullable=True),
        sa.Column("finished_at", TIME, nullable=True),
        sa.Column("priority", sa.Integer(), server_default=sa.text("5"), nullable=False),
        sa.Column("max_queue_seconds", sa.Float(), nullable=True),
        sa.Column("max_runtime_seconds", sa.Float(), nullable=True),
        sa.Column("deadline_at", TIME, nullable=True),
        sa.Column("not_before", TIME, nullable=True),
        sa.Column("route", WORD, nullable=True),
        sa.Column("spared", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("credential", sa.String(length=63), nullable=True),
        sa.Column("eta_error_seconds", sa.Float(), nullable=True),
        sa.Column("model", sa.String(), nullable=True),
        sa.Column("retry_of", ID, nullable=True),
        sa.Column("retried_as", ID, nullable=True),
        sa.Column("gate", sa.JSON(), nullable=True),
        sa.Column("request_id", sa.String(length=64), nullable=True),
        sa.Column("traceparent", sa.String(length=55), nullable=True),
        sa.Column("key_id", ID, nullable=True),
        sa.CheckConstraint(
            "status IN ('queued', 'running', 'succeeded', 'failed', 'cancelled')", name=op.f("ck_jobs_status")
        ),
        sa.CheckConstraint(
            "status <> 'running' OR (lease_token IS NOT NULL AND lease_expires_at IS NOT NULL)",
            name=op.f("ck_jobs_running_has_lease"),
        ),
        sa.CheckConstraint(
            "(status IN ('succeeded', 'failed', 'cancelled')) = (finished_at IS NOT NULL)",
            name=op.f("ck_jobs_finished_has_time"),
        ),
        sa.CheckConstraint("status <> 'succeeded' OR result IS NOT NULL", name=op.f("ck_jobs_succeeded_has_result")),
        sa.CheckConstraint("status <> 'failed' OR error_code IS NOT NULL", name=op.f("ck_jobs_failed_has_code")),
        sa.PrimaryKeyConstraint("number", name=op.f("pk_jobs")),
        sa.UniqueConstraint("id", name=op.f("uq_jobs_id")),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "job_labels",
        sa.Column("job_id", ID, nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("value", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_job_labels_job_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("job_id", "name", name=op.f("pk_job_labels")),
    )
    op.create_table(
        "job_events",
        sa.Column("job_id", ID, nullable=False),
        sa.Column("seq", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("type", WORD, nullable=False),
        sa.Column("at", TIME, nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("data", OBJECT, nullable=False),
        sa.Column("position", sa.BigInteger(), nullable=True),
        sa.CheckConstraint("seq >= 1", name=op.f("ck_job_events_seq")),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_job_events_job_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("job_id", "seq", name=op.f("pk_job_events")),
    )
    op.create_table(
        "metrics",
        sa.Column("number", NUMBER, autoincrement=True, nullable=False),
        sa.Column("job_id", ID, nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("stage", WORD, nullable=False),
        sa.Column("block", sa.Integer(), nullable=True),
        sa.Column("candidate", sa.String(), nullable=True),
        sa.Column("value", sa.Float(), nullable=False),
        sa.Column("unit", sa.String(), nullable=False),
        sa.Column("at", TIME, nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_metrics_job_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("number", name=op.f("pk_metrics")),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "idempotency_keys",
        sa.Column("owner", sa.String(), nullable=False),
        sa.Column("key", sa.String(length=255), nullable=False),
        sa.Column("fingerprint", sa.String(length=64), nullable=False),
        sa.Column("job_id", ID, nullable=False),
        sa.Column("expires_at", TIME, nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_idempotency_keys_job_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("owner", "key", name=op.f("pk_idempotency_keys")),
        sa.UniqueConstraint("job_id", name=op.f("uq_idempotency_keys_job_id")),
    )
    op.create_table(
        "event_feed",
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("last", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_event_feed")),
    )
    op.create_table(
        "job_logs",
        sa.Column("job_id", ID, nullable=False),
        sa.Column("number", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("at", TIME, nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("text", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_job_logs_job_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("job_id", "number", name=op.f("pk_job_logs")),
    )
    op.create_table(
        "workers",
        sa.Column("name", sa.String(length=255), nullable=False),
        sa.Column("host", sa.String(), nullable=False),
        sa.Column("kinds", sa.JSON(), nullable=False),
        sa.Column("device", sa.String(), nullable=False),
        sa.Column("sandbox", WORD, nullable=False),
        sa.Column("processes", sa.JSON(), nullable=False),
        sa.Column("started_at", TIME, nullable=False),
        sa.Column("heartbeat_at", TIME, nullable=False),
        sa.Column("expires_at", TIME, nullable=False),
        sa.Column("memory_bytes", sa.BigInteger(), nullable=True),
        sa.Column("memory_used_bytes", sa.BigInteger(), nullable=True),
        sa.Column("gpu_memory_bytes", sa.BigInteger(), nullable=True),
        sa.Column("gpu_memory_used_bytes", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_workers")),
    )
    op.create_table(
        "event_totals",
        sa.Column("type", WORD, nullable=False),
        sa.Column("code", sa.String(length=64), nullable=False),
        sa.Column("count", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("type", "code", name=op.f("pk_event_totals")),
    )
    op.create_table(
        "stage_totals",
        sa.Column("stage", WORD, nullable=False),
        sa.Column("up_to", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("count", sa.BigInteger(), nullable=False),
        sa.Column("seconds", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("stage", "up_to", name=op.f("pk_stage_totals")),
    )
    op.create_table(
        "api_keys",
        sa.Column("number", NUMBER, autoincrement=True, nullable=False),
        sa.Column("id", ID, nullable=False),
        sa.Column("owner", OWNER, nullable=False),
        sa.Column("name", sa.String(length=100), nullable=False),
        sa.Column("hash", sa.String(length=64), nullable=False),
        sa.Column("start", sa.String(length=16), nullable=False),
        sa.Column("scopes", sa.JSON(), nullable=False),
        sa.Column("is_local", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.Column("requests_per_minute", sa.Integer(), nullable=True),
        sa.Column("jobs", sa.Integer(), nullable=True),
        sa.Column("model_bytes", sa.BigInteger(), nullable=True),
        sa.Column("tokens", sa.BigInteger(), nullable=True),
        sa.Column("lifetime_seconds", sa.Integer(), nullable=True),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("expires_at", TIME, nullable=True),
        sa.Column("last_used_at", TIME, nullable=True),
        sa.Column("revoked_at", TIME, nullable=True),
        sa.Column("running_jobs", sa.Integer(), nullable=True),
        sa.PrimaryKeyConstraint("number", name=op.f("pk_api_keys")),
        sa.UniqueConstraint("id", name=op.f("uq_api_keys_id")),
        sa.UniqueConstraint("hash", name=op.f("uq_api_keys_hash")),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "owners",
        sa.Column("owner", OWNER, nullable=False),
        sa.Column("output_namespaces", sa.JSON(), nullable=True),
        sa.PrimaryKeyConstraint("owner", name=op.f("pk_owners")),
    )
    op.create_table(
        "credentials",
        sa.Column("owner", OWNER, nullable=False),
        sa.Column("name", sa.String(length=63), nullable=False),
        sa.Column("sealed", sa.Text(), nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("updated_at", TIME, nullable=False),
        sa.PrimaryKeyConstraint("owner", "name", name=op.f("pk_credentials")),
    )
    op.create_table(
        "ended_sessions",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("expires_at", TIME, nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_ended_sessions")),
    )
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
        sa.Column("key_id", ID, nullable=True),
        sa.CheckConstraint("(disabled_at IS NULL) = (disabled_by IS NULL)", name=op.f("ck_webhooks_disabled")),
        sa.ForeignKeyConstraint(["signed_by"], ["webhooks.id"], name=op.f("fk_webhooks_signed_by"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("number", name=op.f("pk_webhooks")),
        sa.UniqueConstraint("id", name=op.f("uq_webhooks_id")),
        sqlite_autoincrement=True,
    )
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
    for table, name, columns in INDEXES:
        op.create_index(name, table, columns)
    for table, name, columns, where in PARTIAL_INDEXES:
        op.create_index(name, table, columns, postgresql_where=sa.text(where), sqlite_where=sa.text(where))
    op.create_index("ix_job_events_position", "job_events", ["position"], unique=True)
    op.execute("INSERT INTO event_feed (id, last) VALUES (1, 0)")


def downgrade() -> None:
    for table in reversed(TABLES):
        op.drop_table(table)
