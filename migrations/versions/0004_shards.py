"""Shards of a job's calibration, and their number as a part of its specification.

Only adds a column and a table: the version before keeps working. Jobs that it adds have no shards. If it runs a job
with shards, it computes everything itself; the sweep deletes the rows that it leaves behind.
"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"

TIME = sa.DateTime(timezone=True)
WORD = sa.String(length=32)


def upgrade() -> None:
    op.add_column("jobs", sa.Column("shards", sa.Integer(), nullable=True))  # in place, on SQLite too
    op.create_table(
        "shards",
        sa.Column("job_id", sa.String(length=36), nullable=False),
        sa.Column("number", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("plan", WORD, nullable=False),
        sa.Column("state", WORD, nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("lease_token", WORD, nullable=True),
        sa.Column("lease_expires_at", TIME, nullable=True),
        sa.Column("worker", sa.String(), nullable=True),
        sa.Column("last_rung_at", TIME, nullable=True),
        sa.CheckConstraint("state IN ('waiting', 'running', 'done')", name=op.f("ck_shards_state")),
        sa.CheckConstraint("state <> 'running' OR lease_token IS NOT NULL", name=op.f("ck_shards_running_has_token")),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_shards_job_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("job_id", "number", name=op.f("pk_shards")),
    )


def downgrade() -> None:
    op.drop_table("shards")
    op.drop_column("jobs", "shards")
