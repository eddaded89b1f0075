"""Sharded calibration is gone: its table and its column of jobs.

Drops what no release has used, so no process of a release needs it. Jobs that asked for shards keep the rest of their
specification, and the `stage` events in their histories that report on shards are read as before.
"""

from importlib import import_module

from alembic import op

revision = "0012"
down_revision = "0011"

CONTRACTS = {"jobs.shards", "shards"}


def upgrade() -> None:
    op.drop_table("shards")
    op.drop_column("jobs", "shards")  # in place, on SQLite too


def downgrade() -> None:
    import_module("migrations.versions.0004_shards").upgrade()
