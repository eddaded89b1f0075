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

from replaceme_core.admission.worker_kind import WorkerKind
from replaceme_core.jobs.clock import UtcDateTime
from replaceme_core.jobs.states import EventType, JobStatus, ShardState
from replaceme_core.runner.messages import Stage
from replaceme_core.spec import DEFAULT_PRIORITY

JsonObject = dict[str, object]


def _words(kind: type[StrEnum]) -> Enum:
    """Stored as its words; native enums of a database are hard to change."""
    return Enum(kind, native_enum=False, length=32, values_callable=lambda words: [word.value for word in words])


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
        JobStatus: _words(JobStatus),
        EventType: _words(EventType),
        ShardState: _words(ShardState),
        Stage: _words(Stage),
        WorkerKind: _words(WorkerKind),
        JsonObject: JSON(none_as_null=True),
        datetime: UtcDateTime(),
        float: Float(),
    }


_NUMBER = BigInteger().with_variant(Integer, "sqlite")  # SQLite counts up only in a column of type INTEGER


class JobRow(Base):
    """One job. `number` orders jobs by arrival and never leaves the ledger; `id` is the UUID that clients know."""

    __tablename__ = "jobs"

    number: Mapped[int] = mapped_column(_NUMBER, primary_key=True, autoincrement=True)
    id: Mapped[str] = mapped_column(String(36), unique=True)
    owner: Mapped[str]
    status: Mapped[JobStatus]
    spec: Mapped[JsonObject]
    attempt: Mapped[int]
    event_count: Mapped[int]
    """Events written so far: the next one's `seq` less one. It grows under the row's lock, hence no gaps."""

    stage: Mapped[Stage | None]
    overall: Mapped[float]
    stage_fraction: Mapped[float]
    eta_seconds: Mapped[float | None]

    lease_token: Mapped[str | None] = mapped_column(String(32))
    """Of the present or, once finished, the last claim: so that finishing twice is told from having lost the job."""
    lease_expires_at: Mapped[datetime | None]
    worker: Mapped[str | None]
    cancel_requested_at: Mapped[datetime | None]
    enqueued_at: Mapped[datetime | None] = mapped_column("last_rung_at")

    priority: Mapped[int] = mapped_column(server_default=text(str(DEFAULT_PRIORITY)))
    """This, the two limits and `shards` are part of the specification; they live here and not in `spec`, whose new
    fields the version before would refuse."""
    max_queue_seconds: Mapped[float | None]
    max_runtime_seconds: Mapped[float | None]
    shards: Mapped[int | None]
    deadline_at: Mapped[datetime | None]
    """Before the first claim the latest time to start, after it the latest time to end; null: no limit."""
    not_before: Mapped[datetime | None]
    """Of a job that was taken back: whoever looks for work passes over it until then."""
    worker_kind: Mapped[WorkerKind | None] = mapped_column("route")
    """The workers that may take it; null: all."""
    uncounted_attempts: Mapped[int] = mapped_column("spared", server_default=text("0"))
    """Attempts that do not count: given back by a worker that was shut down, through no fault of the job."""

    error_code: Mapped[str | None]
    error_message: Mapped[str | None]
    result: Mapped[JsonObject | None]
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
    """The labels of a job's specification once more, so that a filter finds them by index."""

    __tablename__ = "job_labels"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    name: Mapped[str] = mapped_column(primary_key=True)
    value: Mapped[str]

    __table_args__ = (Index("ix_job_labels_name_value", "name", "value", "job_id"),)


class IdempotencyKeyRow(Base):
    """Which job a client's key stands for, written in the transaction that made the job."""

    __tablename__ = "idempotency_keys"

    owner: Mapped[str] = mapped_column(primary_key=True)
    key: Mapped[str] = mapped_column(String(255), primary_key=True)
    fingerprint: Mapped[str] = mapped_column(String(64))
    """SHA-256 of the request, so that the same key with another request is noticed."""
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), unique=True)
    expires_at: Mapped[datetime]

    __table_args__ = (Index("ix_idempotency_keys_expires_at", "expires_at"),)


class JobEventRow(Base):
    """One line of a job's history, written in the transaction that made it true."""

    __tablename__ = "job_events"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    seq: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    type: Mapped[EventType]
    at: Mapped[datetime]
    attempt: Mapped[int]
    data: Mapped[JsonObject]

    __table_args__ = (CheckConstraint("seq >= 1", name="seq"),)


class MetricRow(Base):
    """One measured value. Rows of lost attempts stay, each with its attempt."""

    __tablename__ = "metrics"

    number: Mapped[int] = mapped_column(_NUMBER, primary_key=True, autoincrement=True)
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


class ShardRow(Base):
    """A part of the calibration of a running job. The result is a file; the row says whose turn it is to make it."""

    __tablename__ = "shards"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    plan: Mapped[str] = mapped_column(String(32))
    """Stands in a file as well: who does not find it there does not see the job's workspace."""
    state: Mapped[ShardState]
    attempt: Mapped[int]
    lease_token: Mapped[str | None] = mapped_column(String(32))
    """Of the present or, once done, the last holder: the job's own token, or that of another worker's visit."""
    lease_expires_at: Mapped[datetime | None]
    """Null: held by the job's own worker, for as long as that holds the job."""
    worker: Mapped[str | None]
    enqueued_at: Mapped[datetime | None] = mapped_column("last_rung_at")

    __table_args__ = (
        CheckConstraint("state IN ('waiting', 'running', 'done')", name="state"),
        CheckConstraint("state <> 'running' OR lease_token IS NOT NULL", name="running_has_token"),
    )
