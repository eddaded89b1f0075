"""The table of shards."""

from datetime import datetime

from sqlalchemy import CheckConstraint, ForeignKey, String
from sqlalchemy.orm import Mapped, mapped_column

from replaceme_core.ledger.states import ShardState
from replaceme_core.ledger.tables import Base


class ShardRow(Base):
    """A part of the calibration of a running job. The row says which worker computes it; the result is a file.

    `enqueued_at` is stored as `last_rung_at`.
    """

    __tablename__ = "shards"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    plan: Mapped[str] = mapped_column(String(32))
    """Also written to a file in the job's workspace: a worker that does not find it there cannot see the workspace."""
    state: Mapped[ShardState]
    attempt: Mapped[int]
    lease_token: Mapped[str | None] = mapped_column(String(32))
    """Token of the present or, once done, the last claim: the job's own, or that of another worker."""
    lease_expires_at: Mapped[datetime | None]
    """Null: computed by the job's own worker, under the lease on the job."""
    worker: Mapped[str | None]
    enqueued_at: Mapped[datetime | None] = mapped_column("last_rung_at")

    __table_args__ = (
        CheckConstraint("state IN ('waiting', 'running', 'done')", name="state"),
        CheckConstraint("state <> 'running' OR lease_token IS NOT NULL", name="running_has_token"),
    )
