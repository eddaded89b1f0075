"""The tables: jobs with all about them; the feed, logs, workers and totals; keys, owners and credentials; webhooks.

Migrations are checked against this metadata.
"""

import re
from datetime import datetime
from enum import StrEnum
from typing import Annotated

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
    Text,
    UniqueConstraint,
    false,
    text,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from replaceme_core.hardware import WorkerKind
from replaceme_core.ledger.database import UtcDateTime
from replaceme_core.ledger.states import DeliveryState, DisabledBy, EventType, JobStatus, Payload
from replaceme_core.request.spec import DEFAULT_PRIORITY
from replaceme_core.runner.messages import Stage
from replaceme_core.runner.sandbox import SandboxMode

JsonObject = dict[str, object]
JsonList = list[object]
Names = list[str]

_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def is_uuid(text: str) -> bool:
    """Whether `text` is a UUID in lower case, as ids of jobs, keys and webhooks are."""
    return _UUID.fullmatch(text) is not None


# SQLite increments only a column of type INTEGER
Number = Annotated[
    int, mapped_column(BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True)
]
Large = Annotated[int, mapped_column(BigInteger)]
Uuid = Annotated[str, mapped_column(String(36))]
JobId = Annotated[str, mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"))]
"""Of a row that is deleted with its job."""


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
        # as text, since native enums of a database are hard to change
        StrEnum: Enum(
            StrEnum, native_enum=False, length=32, values_callable=lambda kind: [each.value for each in kind]
        ),
        JsonObject: JSON(none_as_null=True),
        JsonList: JSON(none_as_null=True),
        Names: JSON(none_as_null=True),
        datetime: UtcDateTime(),
        float: Float(),
    }


def _partial_index(name: str, *columns: str, where: str) -> Index:
    return Index(name, *columns, postgresql_where=text(where), sqlite_where=text(where))


class JobRow(Base):
    """One job. `number` orders jobs by arrival and is internal; `id` is the UUID that clients know.

    Three columns are stored under older names: `enqueued_at` as `last_rung_at`, `worker_kind` as `route`, and
    `uncounted_attempts` as `spared`.
    """

    __tablename__ = "jobs"

    number: Mapped[Number]
    id: Mapped[Uuid] = mapped_column(unique=True)
    owner: Mapped[str]
    status: Mapped[JobStatus]
    spec: Mapped[JsonObject]
    attempt: Mapped[int]
    event_count: Mapped[int]
    """The `seq` of the last event. It grows under the row's lock, hence no gaps but that of a restored backup."""

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
    retry_of: Mapped[Uuid | None]
    retried_as: Mapped[Uuid | None]
    """The latest retry of this job. Either job may be deleted before the other, so neither column is a foreign key."""

    request_id: Mapped[str | None] = mapped_column(String(64))
    traceparent: Mapped[str | None] = mapped_column(String(55))
    """Like `key_id`, of the request that made the job: logs and spans of its attempts name them."""
    key_id: Mapped[Uuid | None]
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
        _partial_index("ix_jobs_owner_finished_at", "owner", "finished_at", "number", where="finished_at IS NOT NULL"),
        _partial_index("ix_jobs_finished_at", "finished_at", where="finished_at IS NOT NULL"),
        _partial_index("ix_jobs_queued", "last_rung_at", where="status = 'queued'"),
        _partial_index("ix_jobs_turn", "priority", "owner", "number", where="status = 'queued'"),
        _partial_index("ix_jobs_route_turn", "route", "priority", "owner", "number", where="status = 'queued'"),
        _partial_index("ix_jobs_owner_started_at", "owner", "started_at", where="started_at IS NOT NULL"),
        _partial_index("ix_jobs_deadline", "deadline_at", where="status = 'queued'"),
        _partial_index("ix_jobs_running", "lease_expires_at", where="status = 'running'"),
        {"sqlite_autoincrement": True},
    )


class JobLabelRow(Base):
    """The labels of a job's specification, repeated here so that a filter finds them by index."""

    __tablename__ = "job_labels"

    job_id: Mapped[JobId] = mapped_column(primary_key=True)
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
    job_id: Mapped[JobId] = mapped_column(unique=True)
    expires_at: Mapped[datetime]

    __table_args__ = (Index("ix_idempotency_keys_expires_at", "expires_at"),)


class JobEventRow(Base):
    """One event in a job's history, written in the same transaction as the change that it reports."""

    __tablename__ = "job_events"

    job_id: Mapped[JobId] = mapped_column(primary_key=True)
    seq: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    type: Mapped[EventType]
    at: Mapped[datetime]
    attempt: Mapped[int]
    data: Mapped[JsonObject]
    position: Mapped[Large | None]
    """The place among the events of all jobs, given after the commit (`watching.py`); null: not given yet."""

    __table_args__ = (
        CheckConstraint("seq >= 1", name="seq"),
        Index("ix_job_events_position", "position", unique=True),
    )


class MetricRow(Base):
    """One measured value. Rows of earlier attempts are kept."""

    __tablename__ = "metrics"

    number: Mapped[Number]
    job_id: Mapped[JobId]
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


class EventFeedRow(Base):
    """The last number that an event has got. One row; its lock is held by the process that gives numbers.

    Not the highest number in `job_events`, which sinks when jobs are deleted: a client that resumes at a number would
    then miss the events that get it a second time.
    """

    __tablename__ = "event_feed"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    last: Mapped[Large]


class JobLogRow(Base):
    """A line that a runner wrote on standard error. Only the last lines of a job are kept."""

    __tablename__ = "job_logs"

    job_id: Mapped[JobId] = mapped_column(primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    """Counts from 1 within the job."""
    at: Mapped[datetime]
    attempt: Mapped[int]
    text: Mapped[str]


class WorkerRow(Base):
    """A worker that has reported itself. Its main process writes the row at each sweep and deletes it at its end."""

    __tablename__ = "workers"

    name: Mapped[str] = mapped_column(String(255), primary_key=True)
    host: Mapped[str]
    kinds: Mapped[JsonList]
    """The kinds of jobs that it serves."""
    device: Mapped[str]
    sandbox: Mapped[SandboxMode]
    """What its runners are started in."""
    processes: Mapped[JsonList]
    """Process ids of its pool, as in `jobs.worker`."""
    started_at: Mapped[datetime]
    heartbeat_at: Mapped[datetime]
    expires_at: Mapped[datetime]
    """Without another heartbeat until then the worker counts as lost."""
    total_bytes: Mapped[Large | None] = mapped_column("memory_bytes")
    """What its processes may use; the three below: what they use, and the same of its GPU. Null: not known."""
    used_bytes: Mapped[Large | None] = mapped_column("memory_used_bytes")
    gpu_total_bytes: Mapped[Large | None] = mapped_column("gpu_memory_bytes")
    gpu_used_bytes: Mapped[Large | None] = mapped_column("gpu_memory_used_bytes")


class EventTotalRow(Base):
    """How many events of a type have been numbered since this table exists. Deleted jobs still count."""

    __tablename__ = "event_totals"

    type: Mapped[str] = mapped_column(String(32), primary_key=True)
    code: Mapped[str] = mapped_column(String(64), primary_key=True)
    """The error code of a job that failed, else ""."""
    count: Mapped[Large]


class StageTotalRow(Base):
    """How many stages took up to `up_to` seconds and longer than the next lower bound, and how long all together."""

    __tablename__ = "stage_totals"

    stage: Mapped[str] = mapped_column(String(32), primary_key=True)
    up_to: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    """0: longer than all bounds."""
    count: Mapped[Large]
    seconds: Mapped[float]


class ApiKeyRow(Base):
    """An API key. Rows are never deleted: that a key was ever issued decides whether requests need one."""

    __tablename__ = "api_keys"

    number: Mapped[Number]
    id: Mapped[Uuid] = mapped_column(unique=True)
    owner: Mapped[str] = mapped_column(String(100))
    name: Mapped[str] = mapped_column(String(100))
    hash: Mapped[str] = mapped_column(String(64), unique=True)
    """SHA-256 of the key. A slow hash is for passwords; this has 256 random bits."""
    start: Mapped[str] = mapped_column(String(16))
    """The beginning of the key, to recognise it by."""
    scopes: Mapped[Names]
    is_local: Mapped[bool] = mapped_column(server_default=false())
    """Made by `replaceme serve` for the command line on the same machine, not issued by a person."""
    requests_per_minute: Mapped[int | None]
    jobs: Mapped[int | None]
    model_bytes: Mapped[Large | None]
    tokens: Mapped[Large | None]
    running_jobs: Mapped[int | None]
    lifetime_seconds: Mapped[int | None]
    """From creation to expiry; a key that replaces this one gets as much again. Null: it does not expire by itself."""
    created_at: Mapped[datetime]
    expires_at: Mapped[datetime | None]
    last_used_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]

    __table_args__ = (Index("ix_api_keys_owner_number", "owner", "number"), {"sqlite_autoincrement": True})


class EndedSessionRow(Base):
    """A session of the dashboard that somebody has ended by signing out, until it would have ended by itself."""

    __tablename__ = "ended_sessions"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    expires_at: Mapped[datetime]


class OwnerRow(Base):
    """What an operator has decided about an owner; one without a row has the defaults of the settings."""

    __tablename__ = "owners"

    owner: Mapped[str] = mapped_column(String(100), primary_key=True)
    output_namespaces: Mapped[Names | None]


class CredentialRow(Base):
    """A token for the Hub that an owner keeps here under a name, encrypted."""

    __tablename__ = "credentials"

    owner: Mapped[str] = mapped_column(String(100), primary_key=True)
    name: Mapped[str] = mapped_column(String(63), primary_key=True)
    sealed: Mapped[str] = mapped_column(Text)
    created_at: Mapped[datetime]
    updated_at: Mapped[datetime]


class WebhookRow(Base):
    """A receiver of events. With `job_id` it belongs to that job, else to all jobs of its owner.

    Secrets are encrypted. There is no foreign key to jobs: a job may be deleted while its last message is on the way.
    """

    __tablename__ = "webhooks"

    number: Mapped[Number]
    id: Mapped[Uuid] = mapped_column(unique=True)
    owner: Mapped[str]
    job_id: Mapped[Uuid | None]
    url: Mapped[str] = mapped_column(Text)
    events: Mapped[Names]
    labels: Mapped[JsonObject]
    payload: Mapped[Payload]
    secret: Mapped[str] = mapped_column(Text)
    previous_secret: Mapped[str | None] = mapped_column(Text)
    previous_expires_at: Mapped[datetime | None]
    signed_by: Mapped[str | None] = mapped_column(ForeignKey("webhooks.id", ondelete="CASCADE"))
    """The webhook whose secrets sign the messages; null: its own."""
    key_id: Mapped[Uuid | None]
    """The API key that has made it, or has changed it last; null: none, or the release before."""
    disabled_at: Mapped[datetime | None]
    disabled_by: Mapped[DisabledBy | None]
    created_at: Mapped[datetime]

    __table_args__ = (
        CheckConstraint("(disabled_at IS NULL) = (disabled_by IS NULL)", name="disabled"),
        Index("ix_webhooks_owner_job", "owner", "job_id"),
        Index("ix_webhooks_signed_by", "signed_by"),
        {"sqlite_autoincrement": True},
    )


class DeliveryRow(Base):
    """One message to one webhook, written in the same transaction as its event. `body` is what is sent, to the byte.

    A try begins with a claim: the row gets a token and a time until which no other process takes it.
    """

    __tablename__ = "webhook_deliveries"

    number: Mapped[Number]
    webhook_id: Mapped[str] = mapped_column(ForeignKey("webhooks.id", ondelete="CASCADE"))
    owner: Mapped[str]
    job_id: Mapped[Uuid]
    seq: Mapped[int]
    type: Mapped[EventType]
    body: Mapped[str] = mapped_column(Text)
    state: Mapped[DeliveryState]
    tries: Mapped[int]
    """Since it was last made pending; this decides the pause before the next one."""
    next_try_at: Mapped[datetime | None]
    claim_token: Mapped[str | None] = mapped_column(String(32))
    claimed_until: Mapped[datetime | None]
    created_at: Mapped[datetime]
    finished_at: Mapped[datetime | None]

    __table_args__ = (
        UniqueConstraint("webhook_id", "job_id", "seq", name="uq_webhook_deliveries_event"),
        CheckConstraint("state IN ('pending', 'delivered', 'failed')", name="state"),
        CheckConstraint("(state = 'pending') = (next_try_at IS NOT NULL)", name="pending_has_time"),
        CheckConstraint("(state = 'pending') = (finished_at IS NULL)", name="finished_has_time"),
        Index("ix_webhook_deliveries_webhook", "webhook_id", "number"),
        _partial_index("ix_webhook_deliveries_due", "next_try_at", where="state = 'pending'"),
        _partial_index("ix_webhook_deliveries_claimed", "claimed_until", where="claimed_until IS NOT NULL"),
        Index("ix_webhook_deliveries_finished", "finished_at"),
        {"sqlite_autoincrement": True},
    )


class TryRow(Base):
    """One try to send a message, and what became of it."""

    __tablename__ = "webhook_tries"

    delivery: Mapped[int] = mapped_column(
        ForeignKey("webhook_deliveries.number", ondelete="CASCADE"), primary_key=True, autoincrement=False
    )
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    at: Mapped[datetime]
    status: Mapped[int | None]
    error: Mapped[str | None] = mapped_column(String(32))
    seconds: Mapped[float]
