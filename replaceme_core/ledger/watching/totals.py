"""Running totals of events and of the time that stages took, for monitoring.

They are written by the process that gives events their positions, in the same transaction: each event counts once,
whichever processes run, no transition of a job waits for a shared row, and a job that is deleted still counts.
"""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import insert, select, update
from sqlalchemy.orm import Session

from replaceme_core.ledger.states import EventType
from replaceme_core.ledger.tables import JobEventRow
from replaceme_core.ledger.watching.tables import EventTotalRow, StageTotalRow

BOUNDS = (1, 5, 15, 60, 300, 900, 3600, 14400, 86400)
"""Seconds: upper bounds of the groups in which stages are counted."""
COUNTED = frozenset(set(EventType) - {EventType.STAGE, EventType.CANCEL_REQUESTED})
_ENDS = COUNTED - {EventType.CREATED, EventType.CLAIMED}
_CODE_LENGTH = 64


@dataclass(frozen=True, kw_only=True)
class NumberedEvent:
    """An event that gets its position now."""

    job_id: str
    seq: int
    type: EventType
    code: str


@dataclass(frozen=True, kw_only=True)
class StageTotal:
    """The stages of one name: how many took up to each of `BOUNDS` (and, last, longer), and their seconds together."""

    counts: tuple[int, ...]
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Totals:
    """`events` by type and error code ("" for all but failures); `stages` by name."""

    events: dict[tuple[str, str], int]
    stages: dict[str, StageTotal]


def code_of(kind: EventType, data: dict[str, object]) -> str:
    """The error code in an event of a job that failed, else ""."""
    return str(data.get("code", ""))[:_CODE_LENGTH] if kind is EventType.FAILED else ""


def count(session: Session, events: Collection[NumberedEvent]) -> None:
    """Add `events`, and the stages that they end. Needs the lock on the numbering of events."""
    for (kind, code), number in Counter((one.type, one.code) for one in events if one.type in COUNTED).items():
        known = session.execute(
            update(EventTotalRow)
            .where(EventTotalRow.type == kind.value, EventTotalRow.code == code)
            .values(count=EventTotalRow.count + number)
            .returning(EventTotalRow.type)
        ).first()
        if known is None:
            session.execute(insert(EventTotalRow).values(type=kind.value, code=code, count=number))
    took: dict[tuple[str, int], list[float]] = defaultdict(list)
    for stage, seconds in _ended_stages(session, events):
        took[stage, _bound_of(seconds)].append(seconds)
    for (stage, up_to), each in took.items():
        known = session.execute(
            update(StageTotalRow)
            .where(StageTotalRow.stage == stage, StageTotalRow.up_to == up_to)
            .values(count=StageTotalRow.count + len(each), seconds=StageTotalRow.seconds + sum(each))
            .returning(StageTotalRow.stage)
        ).first()
        if known is None:
            values = {"stage": stage, "up_to": up_to, "count": len(each), "seconds": sum(each)}
            session.execute(insert(StageTotalRow).values(**values))


def read_totals(session: Session) -> Totals:
    """All totals. The tables have a row for each type, error code and stage, not for each job."""
    events = session.execute(select(EventTotalRow.type, EventTotalRow.code, EventTotalRow.count))
    stages: dict[str, dict[int, tuple[int, float]]] = defaultdict(dict)
    rows = session.execute(select(StageTotalRow.stage, StageTotalRow.up_to, StageTotalRow.count, StageTotalRow.seconds))
    for stage, up_to, number, seconds in rows:
        stages[stage][up_to] = number, seconds
    return Totals(
        events={(kind, code): number for kind, code, number in events},
        stages={
            stage: StageTotal(
                counts=tuple(groups.get(bound, (0, 0.0))[0] for bound in (*BOUNDS, 0)),
                seconds=sum(seconds for _, seconds in groups.values()),
            )
            for stage, groups in stages.items()
        },
    )


def _bound_of(seconds: float) -> int:
    return next((bound for bound in BOUNDS if seconds <= bound), 0)


def _ended_stages(session: Session, events: Collection[NumberedEvent]) -> Iterator[tuple[str, float]]:
    """Name and seconds of each stage that one of `events` has ended."""
    ends = {(one.job_id, one.seq) for one in events if one.type in _ENDS or one.type is EventType.STAGE}
    if not ends:
        return
    rows = session.execute(
        select(JobEventRow.job_id, JobEventRow.seq, JobEventRow.type, JobEventRow.at, JobEventRow.data)
        .where(JobEventRow.job_id.in_({job_id for job_id, _ in ends}))
        .order_by(JobEventRow.job_id, JobEventRow.seq)
    )
    for job_id, seq, stage, seconds in _stages_in((row.job_id, row.seq, row.type, row.at, row.data) for row in rows):
        if (job_id, seq) in ends:
            yield stage, seconds


def _stages_in(
    history: Iterable[tuple[str, int, EventType, datetime, dict[str, object]]],
) -> Iterator[tuple[str, int, str, float]]:
    """Job, `seq` of the event that ended it, name and seconds of each stage in the events of several jobs."""
    present: tuple[str, str, datetime] | None = None  # job, name and start of the stage that goes on
    for job_id, seq, kind, at, data in history:
        if present is not None and present[0] == job_id and (kind in _ENDS or kind is EventType.STAGE):
            # a clock that was set back takes no time away
            yield job_id, seq, present[1], max((at - present[2]).total_seconds(), 0.0)
        if kind is EventType.STAGE:
            present = job_id, str(data["stage"]), at
        elif kind is not EventType.CANCEL_REQUESTED:
            present = None
