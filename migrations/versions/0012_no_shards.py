"""Sharded calibration is gone: its table and its column of jobs.

Drops what no release has used, so no process of a release needs it. Jobs that asked for shards keep the rest of their
specification, and the `stage` events in their histories that report on shards are read as before.

Revision: 0012; follows: 0011.
"""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None

CONTRACTS = {
    "jobs.shards",
    *(
        f"shards.{column}"
        for column in (
            *("job_id", "number", "plan", "state", "attempt"),
            *("lease_token", "lease_expires_at", "worker", "last_rung_at"),
        )
    ),
}

TIME = sa.DateTime(timezone=True)
WORD = sa.String(length=32)


def upgrade() -> None:
    op.drop_table("shards")
    op.drop_column("jobs", "shards")  # in place, on SQLite too


def downgrade() -> None:
    op.add_column("jobs", sa.Column("shards", sa.Integer(), nullable=True))
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
