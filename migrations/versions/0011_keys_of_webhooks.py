"""Of each webhook the key that has made it.

Only adds a column: the version before keeps working. Webhooks that it makes belong to no key, as those from before.
"""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"


def upgrade() -> None:
    op.add_column("webhooks", sa.Column("key_id", sa.String(length=36), nullable=True))  # in place, on SQLite too


def downgrade() -> None:
    op.drop_column("webhooks", "key_id")
