"""What became of the gate of a job.

Only adds a column: the version before keeps working, and refuses specifications that have a gate.
"""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    op.add_column("jobs", sa.Column("gate", sa.JSON(), nullable=True))  # in place, on SQLite too


def downgrade() -> None:
    op.drop_column("jobs", "gate")
