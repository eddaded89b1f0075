"""Filters of lists, retries, one order of the events of all jobs, logs of jobs, and workers.

Only adds columns, indexes and tables: the version before keeps working. Jobs that it adds have no `model`, which the
filter finds in the specification; its events get their position from the sweep of the new version.
"""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"

TIME = sa.DateTime(timezone=True)
ID = sa.String(length=36)
COLUMNS = (("eta_error_seconds", sa.Float()), ("model", sa.String()), ("retry_of", ID), ("retried_as", ID))
FINISHED = sa.text("finished_at IS NOT NULL")
INDEXES = (
    ("ix_jobs_owner_created_at", ["owner", "created_at"], None),
    ("ix_jobs_owner_model_number", ["owner", "model", "number"], None),
    ("ix_jobs_owner_finished_at", ["owner", "finished_at", "number"], FINISHED),
    ("ix_jobs_finished_at", ["finished_at"], FINISHED),
)
MODEL = {
    "postgresql": "UPDATE jobs SET model = spec -> 'model' ->> 'repo_id'",
    "sqlite": "UPDATE jobs SET model = json_extract(spec, '$.model.repo_id')",
}
POSITIONS = """
UPDATE job_events SET position = numbered.position
FROM (
    SELECT job_id, seq, row_number() OVER (ORDER BY at, job_id, seq) AS position FROM job_events
) AS numbered
WHERE job_events.job_id = numbered.job_id AND job_events.seq = numbered.seq
"""


def upgrade() -> None:
    for name, kind in COLUMNS:
        op.add_column("jobs", sa.Column(name, kind, nullable=True))  # in place, on SQLite too
    op.execute(MODEL[op.get_context().dialect.name])
    for name, columns, where in INDEXES:
        op.create_index(name, "jobs", columns, postgresql_where=where, sqlite_where=where)
    op.add_column("job_events", sa.Column("position", sa.BigInteger(), nullable=True))
    op.execute(POSITIONS)
    op.create_index("ix_job_events_position", "job_events", ["position"], unique=True)
    op.create_table(
        "event_feed",
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("last", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_event_feed")),
    )
    op.execute("INSERT INTO event_feed (id, last) SELECT 1, coalesce(max(position), 0) FROM job_events")
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
        sa.Column("sandbox", sa.String(length=32), nullable=False),
        sa.Column("processes", sa.JSON(), nullable=False),
        sa.Column("started_at", TIME, nullable=False),
        sa.Column("heartbeat_at", TIME, nullable=False),
        sa.Column("expires_at", TIME, nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_workers")),
    )


def downgrade() -> None:
    for table in ("workers", "job_logs", "event_feed"):
        op.drop_table(table)
    op.drop_index("ix_job_events_position", "job_events")
    op.drop_column("job_events", "position")
    for name, _, _ in INDEXES:
        op.drop_index(name, "jobs")
    for name, _ in reversed(COLUMNS):
        op.drop_column("jobs", name)
