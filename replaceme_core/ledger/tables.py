"""The tables of the ledger. Migrations are checked against this metadata."""

from datetime import datetime
from enum import StrEnum

from sqlalchemy import (
    JSON,
    BigInteger,
    CheckConstraint,
    Enum,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    text,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from replaceme_core.hardware import WorkerKind
from replaceme_core.ledger.clock import UtcDateTime
from replaceme_core.ledger.states import EventType, JobStatus
from replaceme_core.request.spec import DEFAULT_PRIORITY
from replaceme_core.runner.messages import Stage

JsonObject = dict[str, object]
JsonList = list[object]


def stored_enum(kind: type[StrEnum]) -> Enum:
    """A column type that stores the enum's values as text, since native enums of a database are hard to change."""
    return Enum(kind, native_enum=False, length=32, values_callable=lambda members: [each.value for each in members])


class Base(DeclarativeBase):
    metadata = MetaData(
        naming_convention={
            "pk": "pk_%(table_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s",
            "uq": "uq_%(table_name)s_%(column_0_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
        }
    )
    type_annotation_map = {  # noqa: RUF012 - SQLAlchemy's own way to declare it
        JobStatus: stored_enum(JobStatus),
        EventType: stored_enum(EventType),
        Stage: stored_enum(Stage),
        WorkerKind: stored_enum(WorkerKind),
        JsonObject: JSON(none_as_null=True),
        JsonList: JSON(none_as_null=True),
        datetime: UtcDateTime(),
        float: Float(),
    }


NUMBER = BigInteger().with_variant(Integer, "sqlite")  # SQLite increments only a column of type INTEGER


class JobRow(Base):
    """One job. `number` orders jobs by arrival and is internal; `id` is the UUID that clients know.

    Three columns are stored under older names: `enqueued_at` as `last_rung_at`, `worker_kind` as `route`, and
    `uncounted_attempts` as `spared`.
    """

    __tablename__ = "jobs"

    number: Mapped[int] = mapped_column(NUMBER, primary_key=True, autoincrement=True)
    id: Mapped[str] = mapped_column(String(36), unique=True)
    owner: Mapped[str]
    status: Mapped[JobStatus]
    spec: Mapped[JsonObject]
    attempt: Mapped[int]
    event_count: Mapped[int]
    """The number of events, which is the `seq` of the last one. It grows under the row's lock, hence no gaps."""

    stage: Mapped[Stage | None]
    overall: Mapped[float]
    stage_fraction: Mapped[float]
    eta_seconds: Mapped[float | None]
    eta_error_seconds: Mapped[float | None]

    lease_token: Mapped[str | None] = mapped_column(String(32))
    """Token of the present or, in a finished job, the last claim: so a worker that finishes twice gets another error
    than one that has lost its lease."""
    lease_expires_at: Mapped[datetime | None]
    worker: Mapped[str | None]
    cancel_requested_at: Mapped[datetime | None]
    enqueued_at: Mapped[datetime | None] = mapped_column("last_rung_at")

    priority: Mapped[int] = mapped_column(server_default=text(str(DEFAULT_PRIORITY)))
    """Like the two limits a part of the specification. They are not in `spec`, because the version before
    refuses fields that it does not know."""
    max_queue_seconds: Mapped[float | None]
    max_runtime_seconds: Mapped[float | None]
    credential: Mapped[str | None] = mapped_column(String(63))
    """The name of the credential that the Hub is used with, part of the specification too."""
    deadline_at: Mapped[datetime | None]
    """Before the first claim the latest time to start, after it the latest time to end; null: no limit."""
    not_before: Mapped[datetime | None]
    """Set when the job is requeued: no worker starts it before this time."""
    worker_kind: Mapped[WorkerKind | None] = mapped_column("route")
    """The workers that may run it; null: all."""
    uncounted_attempts: Mapped[int] = mapped_column("spared", server_default=text("0"))
    """Attempts that do not count against the maximum: those released by a worker that was shut down."""

    model: Mapped[str | None]
    """The repository of the specification, for the filter; null in rows of the version before."""
    retry_of: Mapped[str | None] = mapped_column(String(36))
    retried_as: Mapped[str | None] = mapped_column(String(36))
    """The latest retry of this job. Either job may be deleted before the other, so neither column is a foreign key."""

    request_id: Mapped[str | None] = mapped_column(String(64))
    traceparent: Mapped[str | None] = mapped_column(String(55))
    """Like `key_id`, of the request that made the job: logs and spans of its attempts name them."""
    key_id: Mapped[str | None] = mapped_column(String(36))
    error_code: Mapped[str | None]
    error_message: Mapped[str | None]
    result: Mapped[JsonObject | None]
    gate: Mapped[JsonObject | None]
    """What became of the gate of the specification; null also in rows of the version before."""
    report: Mapped[JsonObject | None] = mapped_column(deferred=True)  # large, and lists do not show it

    created_at: Mapped[datetime]
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]

    __table_args__ = (
        CheckConstraint("status IN ('queued', 'running', 'succeeded', 'failed', 'cancelled')", name="status"),
        CheckConstraint(
            "status <> 'running' OR (lease_token IS NOT NULL AND lease_expires_at IS NOT NULL)",
            name="running_has_lease",
        ),
        CheckConstraint(
            "(status IN ('succeeded', 'failed', 'cancelled')) = (finished_at IS NOT NULL)", name="finished_has_time"
        ),
        CheckConstraint("status <> 'succeeded' OR result IS NOT NULL", name="succeeded_has_result"),
        CheckConstraint("status <> 'failed' OR error_code IS NOT NULL", name="failed_has_code"),
        Index("ix_jobs_owner_number", "owner", "number"),
        Index("ix_jobs_owner_status_number", "owner", "status", "number"),
        Index("ix_jobs_status_number", "status", "number"),
        Index("ix_jobs_owner_created_at", "owner", "created_at"),
        Index("ix_jobs_owner_model_number", "owner", "model", "number"),
        Index(
            "ix_jobs_owner_finished_at",
            "owner",
            "finished_at",
            "number",
            postgresql_where=text("finished_at IS NOT NULL"),
            sqlite_where=text("finished_at IS NOT NULL"),
        ),
        Index(
            "ix_jobs_finished_at",
            "finished_at",
            postgresql_where=text("finished_at IS NOT NULL"),
            sqlite_where=text("finished_at IS NOT NULL"),
        ),
        Index(
            "ix_jobs_queued",
            "last_rung_at",
            postgresql_where=text("status = 'queued'"),
            sqlite_where=text("status = 'queued'"),
        ),
        Index(
            "ix_jobs_turn",
            "priority",
            "owner",
            "number",
            postgresql_where=text("status = 'queued'"),
            sqlite_where=text("status = 'queued'"),
        ),
        Index(
            "ix_jobs_route_turn",
            "route",
            "priority",
            "owner",
            "number",
            postgresql_where=text("status = 'queued'"),
            sqlite_where=text("status = 'queued'"),
        ),
        Index(
            "ix_jobs_owner_started_at",
            "owner",
            "started_at",
            postgresql_where=text("started_at IS NOT NULL"),
            sqlite_where=text("started_at IS NOT NULL"),
        ),
        Index(
            "ix_jobs_deadline",
            "deadline_at",
            postgresql_where=text("status = 'queued'"),
            sqlite_where=text("status = 'queued'"),
        ),
        Index(
            "ix_jobs_running",
            "lease_expires_at",
            postgresql_where=text("status = 'running'"),
            sqlite_where=text("status = 'running'"),
        ),
        {"sqlite_autoincrement": True},
    )


class JobLabelRow(Base):
    """The labels of a job's specification, repeated here so that a filter finds them by index."""

    __tablename__ = "job_labels"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    name: Mapped[str] = mapped_column(primary_key=True)
    value: Mapped[str]

    __table_args__ = (Index("ix_job_labels_name_value", "name", "value", "job_id"),)


class IdempotencyKeyRow(Base):
    """The job that a client's idempotency key has made, written in the same transaction as the job."""

    __tablename__ = "idempotency_keys"

    owner: Mapped[str] = mapped_column(primary_key=True)
    key: Mapped[str] = mapped_column(String(255), primary_key=True)
    fingerprint: Mapped[str] = mapped_column(String(64))
    """SHA-256 of the request, so that the same key with another request is detected."""
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), unique=True)
    expires_at: Mapped[datetime]

    __table_args__ = (Index("ix_idempotency_keys_expires_at", "expires_at"),)


class JobEventRow(Base):
    """One event in a job's history, written in the same transaction as the change that it reports."""

    __tablename__ = "job_events"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    seq: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    type: Mapped[EventType]
    at: Mapped[datetime]
    attempt: Mapped[int]
    data: Mapped[JsonObject]
    position: Mapped[int | None] = mapped_column(BigInteger)
    """The place among the events of all jobs, given after the commit (`watching/feed.py`); null: not given yet."""

    __table_args__ = (
        CheckConstraint("seq >= 1", name="seq"),
        Index("ix_job_events_position", "position", unique=True),
    )


class MetricRow(Base):
    """One measured value. Rows of earlier attempts are kept."""

    __tablename__ = "metrics"

    number: Mapped[int] = mapped_column(NUMBER, primary_key=True, autoincrement=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"))
    attempt: Mapped[int]
    name: Mapped[str]
    stage: Mapped[Stage]
    block: Mapped[int | None]
    candidate: Mapped[str | None]
    value: Mapped[float]
    unit: Mapped[str]
    at: Mapped[datetime]

    __table_args__ = (
        Index("ix_metrics_job", "job_id", "attempt", "number"),
        Index("ix_metrics_name", "name"),
        {"sqlite_autoincrement": True},
    )
