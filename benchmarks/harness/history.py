"""Replays the events of a job: they alone determine the content of its row."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from sqlalchemy import select

from replaceme_core.ledger.database import LedgerSession
from replaceme_core.ledger.records import JobEvent
from replaceme_core.ledger.states import ACTIVE, EventType, JobStatus
from replaceme_core.ledger.tables import JobRow


@dataclass(frozen=True, kw_only=True)
class State:
    """The part of a row that follows from the events."""

    status: JobStatus | None = None
    attempt: int = 0
    events: int = 0
    stage: str | None = None
    worker: str | None = None
    cancel_requested: bool = False
    error_code: str | None = None
    revision: object = None


def written(session: LedgerSession, job_id: str) -> State:
    """The state in the row."""
    row = session.scalars(select(JobRow).where(JobRow.id == job_id)).one()
    return State(
        status=row.status,
        attempt=row.attempt,
        events=row.event_count,
        stage=row.stage,
        worker=row.worker,
        cancel_requested=row.cancel_requested_at is not None,
        error_code=row.error_code,
        revision=row.result["revision"] if row.result is not None else None,
    )


def replayed(events: Sequence[JobEvent]) -> State:
    """The state that follows from the events. Raises `AssertionError` for an impossible history."""
    state = State()
    for event in events:
        assert event.seq == state.events + 1, f"a gap before event {event.seq}"
        state = replace(state, events=event.seq)
        match event.type:
            case EventType.CREATED:
                assert state.status is None
                state = replace(state, status=JobStatus.QUEUED)
            case EventType.CLAIMED:
                worker = str(event.data["worker"])
                state = replace(_to(state, JobStatus.RUNNING), attempt=state.attempt + 1, stage=None, worker=worker)
            case EventType.STAGE:
                assert state.status is JobStatus.RUNNING
                assert state.stage != event.data["stage"], "a stage that begins twice"
                state = replace(state, stage=str(event.data["stage"]))
            case EventType.CANCEL_REQUESTED:
                state = replace(state, cancel_requested=True)
            case EventType.LEASE_LAPSED | EventType.RELEASED:
                state = replace(_to(state, JobStatus.QUEUED), stage=None, worker=None)
            case EventType.SUCCEEDED:
                state = replace(_to(state, JobStatus.SUCCEEDED), revision=event.data["revision"])
            case EventType.FAILED:
                state = replace(_to(state, JobStatus.FAILED), error_code=str(event.data["code"]))
            case EventType.CANCELLED:
                state = _to(state, JobStatus.CANCELLED)
        assert event.attempt == state.attempt, f"event {event.seq} counts attempt {event.attempt}"
    return state


def _to(state: State, new: JobStatus) -> State:
    assert state.status is not None
    before = {
        JobStatus.RUNNING: JobStatus.QUEUED,
        JobStatus.SUCCEEDED: JobStatus.RUNNING,
        JobStatus.QUEUED: JobStatus.RUNNING,
    }
    assert state.status in ((before[new],) if new in before else ACTIVE), f"{state.status} -> {new}"
    return replace(state, status=new)
