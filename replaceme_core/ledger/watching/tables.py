"""Tables beside the ledger's own: the numbering of all events, the logs of jobs, the workers."""

from datetime import datetime

from sqlalchemy import BigInteger, ForeignKey, Integer, String
from sqlalchemy.orm import Mapped, mapped_column

from replaceme_core.ledger.tables import Base, JsonList, stored_enum
from replaceme_core.runner.sandbox import SandboxMode


class EventFeedRow(Base):
    """The last number that an event has got. One row; its lock is held by the process that gives numbers.

    Not the highest number in `job_events`, which sinks when jobs are deleted: a client that resumes at a number would
    then miss the events that get it a second time.
    """

    __tablename__ = "event_feed"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    last: Mapped[int] = mapped_column(BigInteger)


class JobLogRow(Base):
    """A line that a runner wrote on standard error. Only the last lines of a job are kept."""

    __tablename__ = "job_logs"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
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
    sandbox: Mapped[SandboxMode] = mapped_column(stored_enum(SandboxMode))
    """What its runners are started in."""
    processes: Mapped[JsonList]
    """Process ids of its pool, as in `jobs.worker`."""
    started_at: Mapped[datetime]
    heartbeat_at: Mapped[datetime]
    expires_at: Mapped[datetime]
    """Without another heartbeat until then the worker counts as lost."""
    memory_bytes: Mapped[int | None] = mapped_column(BigInteger)
    """What its processes may use; the three below: what they use, and the same of its GPU. Null: not known."""
    memory_used_bytes: Mapped[int | None] = mapped_column(BigInteger)
    gpu_memory_bytes: Mapped[int | None] = mapped_column(BigInteger)
    gpu_memory_used_bytes: Mapped[int | None] = mapped_column(BigInteger)


class EventTotalRow(Base):
    """How many events of a type have been numbered since this table exists. Deleted jobs still count."""

    __tablename__ = "event_totals"

    type: Mapped[str] = mapped_column(String(32), primary_key=True)
    code: Mapped[str] = mapped_column(String(64), primary_key=True)
    """The error code of a job that failed, else ""."""
    count: Mapped[int] = mapped_column(BigInteger)


class StageTotalRow(Base):
    """How many stages took up to `up_to` seconds and longer than the next lower bound, and how long all together."""

    __tablename__ = "stage_totals"

    stage: Mapped[str] = mapped_column(String(32), primary_key=True)
    up_to: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    """0: longer than all bounds."""
    count: Mapped[int] = mapped_column(BigInteger)
    seconds: Mapped[float]
