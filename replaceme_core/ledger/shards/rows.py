"""The row of one shard, and events about shards in the history of its job."""

from sqlalchemy import ColumnElement, and_
from sqlalchemy.orm import Session

from replaceme_core.ledger.shards.tables import ShardRow
from replaceme_core.ledger.states import EventType, JobStatus, ShardNews
from replaceme_core.ledger.tables import JobRow
from replaceme_core.ledger.transitions import lock_job, update_job
from replaceme_core.runner.messages import Stage


def is_shard(job_id: str, number: int) -> ColumnElement[bool]:
    """The condition for the row of one shard."""
    return and_(ShardRow.job_id == job_id, ShardRow.number == number)


def write_news(session: Session, job_id: str, news: ShardNews, **data: object) -> None:
    """Write an event about the shards of a running job. Locks the job's row.

    It is an event of the present stage, not of a type of its own, which the version before could not read.
    """
    shards: dict[str, object] = {"news": news.value, **data}
    stage = lock_job(session, job_id).stage or Stage.RESOLVE
    event = (EventType.STAGE, {"stage": stage.value, "shards": shards})
    update_job(session, job_id, JobRow.status == JobStatus.RUNNING, values={}, events=[event])
