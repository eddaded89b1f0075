"""Idempotency keys, deadlines, priorities, and the pause before another attempt.

Only adds columns and a table: the version before keeps working, and jobs that it adds get the defaults.
"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

TIME = sa.DateTime(timezone=True)
COLUMNS = (
    ("priority", sa.Integer(), "5"),
    ("max_queue_seconds", sa.Float(), None),
    ("max_runtime_seconds", sa.Float(), None),
    ("deadline_at", TIME, None),
    ("not_before", TIME, None),
)
INDEXES = (
    ("ix_jobs_turn", ["priority", "owner", "number"], "status = 'queued'"),
    ("ix_jobs_deadline", ["deadline_at"], "status = 'queued'"),
    ("ix_jobs_owner_started_at", ["owner", "started_at"], "started_at IS NOT NULL"),
)


def upgrade() -> None:
    for name, kind, default in COLUMNS:
        # added in place, on SQLite too
        server_default = None if default is None else sa.text(default)
        op.add_column("jobs", sa.Column(name, kind, nullable=default is None, server_default=server_default))
    for name, columns, where in INDEXES:
        only = sa.text(where)
        op.create_index(name, "jobs", columns, postgresql_where=only, sqlite_where=only)
    op.create_table(
        "idempotency_keys",
        sa.Column("owner", sa.String(), nullable=False),
        sa.Column("key", sa.String(length=255), nullable=False),
        sa.Column("fingerprint", sa.String(length=64), nullable=False),
        sa.Column("job_id", sa.String(length=36), nullable=False),
        sa.Column("expires_at", TIME, nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_idempotency_keys_job_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("owner", "key", name=op.f("pk_idempotency_keys")),
        sa.UniqueConstraint("job_id", name=op.f("uq_idempotency_keys_job_id")),
    )
    op.create_index("ix_idempotency_keys_expires_at", "idempotency_keys", ["expires_at"])


def downgrade() -> None:
    op.drop_table("idempotency_keys")
    for name, _, _ in INDEXES:
        op.drop_index(name, "jobs")
    for name, _, _ in reversed(COLUMNS):
        op.drop_column("jobs", name)
