"""Totals of events and stages, memory of workers, and of each job the request and the key that made it.

Only adds columns and tables: the version before keeps working. Events that it numbers while both run are not counted;
jobs that it adds have neither request nor key.
"""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"

COLUMNS = (
    ("jobs", "request_id", sa.String(length=64)),
    ("jobs", "traceparent", sa.String(length=55)),
    ("jobs", "key_id", sa.String(length=36)),
    ("workers", "memory_bytes", sa.BigInteger()),
    ("workers", "memory_used_bytes", sa.BigInteger()),
    ("workers", "gpu_memory_bytes", sa.BigInteger()),
    ("workers", "gpu_memory_used_bytes", sa.BigInteger()),
    ("api_keys", "running_jobs", sa.Integer()),
)


def upgrade() -> None:
    for table, name, kind in COLUMNS:
        op.add_column(table, sa.Column(name, kind, nullable=True))  # in place, on SQLite too
    op.create_table(
        "event_totals",
        sa.Column("type", sa.String(length=32), nullable=False),
        sa.Column("code", sa.String(length=64), nullable=False),
        sa.Column("count", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("type", "code", name=op.f("pk_event_totals")),
    )
    op.create_table(
        "stage_totals",
        sa.Column("stage", sa.String(length=32), nullable=False),
        sa.Column("up_to", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("count", sa.BigInteger(), nullable=False),
        sa.Column("seconds", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("stage", "up_to", name=op.f("pk_stage_totals")),
    )


def downgrade() -> None:
    for table in ("stage_totals", "event_totals"):
        op.drop_table(table)
    for table, name, _ in reversed(COLUMNS):
        op.drop_column(table, name)
