"""The kind of worker that a job is for (`route`), and the attempts that do not count (`spared`).

Only adds columns: the version before keeps working. Jobs that it adds are for any worker. It counts every attempt, and
it may start a job for any kind of worker.
"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"

COLUMNS = (
    ("route", sa.String(length=32), None),
    ("spared", sa.Integer(), "0"),
)
INDEX = "ix_jobs_route_turn"


def upgrade() -> None:
    for name, kind, default in COLUMNS:
        # added in place, on SQLite too
        server_default = None if default is None else sa.text(default)
        op.add_column("jobs", sa.Column(name, kind, nullable=default is None, server_default=server_default))
    only = sa.text("status = 'queued'")
    op.create_index(INDEX, "jobs", ["route", "priority", "owner", "number"], postgresql_where=only, sqlite_where=only)


def downgrade() -> None:
    op.drop_index(INDEX, "jobs")
    for name, _, _ in reversed(COLUMNS):
        op.drop_column("jobs", name)
