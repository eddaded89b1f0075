"""The ledger: jobs, their labels, events and metrics."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

# SQLite increments only a column of type INTEGER
NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
TIME = sa.DateTime(timezone=True)
WORD = sa.String(length=32)
OBJECT = sa.JSON(none_as_null=True)


def upgrade() -> None:
    op.create_table(
        "jobs",
        sa.Column("number", NUMBER, autoincrement=True, nullable=False),
        sa.Column("id", sa.String(length=36), nullable=False),
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
    op.create_index("ix_jobs_owner_number", "jobs", ["owner", "number"])
    op.create_index("ix_jobs_owner_status_number", "jobs", ["owner", "status", "number"])
    op.create_index("ix_jobs_status_number", "jobs", ["status", "number"])
    for name, column, status in (
        ("ix_jobs_queued", "last_rung_at", "queued"),
        ("ix_jobs_running", "lease_expires_at", "running"),
    ):
        only = sa.text(f"status = '{status}'")
        op.create_index(name, "jobs", [column], postgresql_where=only, sqlite_where=only)

    op.create_table(
        "job_labels",
        sa.Column("job_id", sa.String(length=36), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("value", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_job_labels_job_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("job_id", "name", name=op.f("pk_job_labels")),
    )
    op.create_index("ix_job_labels_name_value", "job_labels", ["name", "value", "job_id"])

    op.create_table(
        "job_events",
        sa.Column("job_id", sa.String(length=36), nullable=False),
        sa.Column("seq", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("type", WORD, nullable=False),
        sa.Column("at", TIME, nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("data", OBJECT, nullable=False),
        sa.CheckConstraint("seq >= 1", name=op.f("ck_job_events_seq")),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_job_events_job_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("job_id", "seq", name=op.f("pk_job_events")),
    )

    op.create_table(
        "metrics",
        sa.Column("number", NUMBER, autoincrement=True, nullable=False),
        sa.Column("job_id", sa.String(length=36), nullable=False),
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
    op.create_index("ix_metrics_job", "metrics", ["job_id", "attempt", "number"])
    op.create_index("ix_metrics_name", "metrics", ["name"])


def downgrade() -> None:
    op.drop_table("metrics")
    op.drop_table("job_events")
    op.drop_table("job_labels")
    op.drop_table("jobs")
