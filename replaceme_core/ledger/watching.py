"""The service as a whole: one order of the events of all jobs, totals of them, the workers, figures for monitoring.

A client that was cut off can resume in the order of events. They are written by many transactions at once, and a number
taken inside of a transaction would become visible in another order than it was taken: a reader that has seen 7 could
miss 6. So an event gets its position after the commit. The process that holds the lock on `event_feed` numbers what is
visible, and commits before another process numbers more: a reader that sees a position sees all lower ones.

The same transaction adds to the totals. Each event counts once, whichever processes run, no transition of a job waits
for a shared row, and a job that is deleted still counts.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime

from sqlalchemy import ColumnElement, Row, bindparam, delete, func, literal, select, true, update
from sqlalchemy.orm import Session

from replaceme_core.hardware import WorkerKind
from replaceme_core.ledger.database import Database, change_or_insert, now
from replaceme_core.ledger.records import JobEvent, Worker, WorkerReport
from replaceme_core.ledger.scheduling import QUEUED, RUNNING
from replaceme_core.ledger.states import ACTIVE, ATTEMPT_ENDS, DeliveryState, EventType, JobStatus
from replaceme_core.ledger.tables import (
    DeliveryRow,
    EventFeedRow,
    EventTotalRow,
    JobEventRow,
    JobRow,
    JsonObject,
    StageTotalRow,
    WorkerRow,
)
from replaceme_core.runner.sandbox import SandboxMode

MOST_AT_ONCE = 1000


@dataclass(frozen=True, kw_only=True)
class FeedEvent:
    """An event with its place among the events of all jobs. Positions rise; they may have gaps."""

    position: int
    owner: str
    event: JobEvent


def has_unnumbered(session: Session, *, job_id: str | None = None) -> bool:
    """Whether an event, of this job or of any, has no position yet."""
    return session.scalars(select(JobEventRow.seq).where(*_unnumbered(job_id)).limit(1)).first() is not None


def _unnumbered(job_id: str | None) -> tuple[ColumnElement[bool], ...]:
    of_job = () if job_id is None else (JobEventRow.job_id == job_id,)
    return (JobEventRow.position.is_(None), *of_job)


def number_events(session: Session, *, job_id: str | None = None) -> int:
    """Give positions to events that have none, at most `MOST_AT_ONCE`, and count them; returns how many there were.

    None if another process is doing it; with a `job_id`, whose events alone it is for, it waits for the other process.
    Needs a transaction that writes.
    """
    feed = session.scalars(select(EventFeedRow).with_for_update(skip_locked=job_id is None)).one_or_none()
    if feed is None:
        return 0
    found = session.execute(
        select(JobEventRow.seq, JobEventRow.at, JobEventRow.job_id, JobEventRow.type, JobEventRow.data)
        .where(*_unnumbered(job_id))
        .order_by(JobEventRow.seq, JobEventRow.at)  # no event of a job before an earlier one that the limit cuts off
        .limit(MOST_AT_ONCE)
    ).all()
    if not found:
        return 0
    # by time; but a clock that was set back may not turn the order within a job around
    waiting: dict[str, list[int]] = {}
    for row in found:
        waiting.setdefault(row.job_id, []).append(row.seq)
    rows = [
        {"its_job": row.job_id, "its_seq": waiting[row.job_id].pop(0), "its_position": position}
        for position, row in enumerate(sorted(found, key=lambda row: (row.at, row.job_id, row.seq)), feed.last + 1)
    ]
    session.connection().execute(
        update(JobEventRow)
        .where(JobEventRow.job_id == bindparam("its_job"), JobEventRow.seq == bindparam("its_seq"))
        .values(position=bindparam("its_position")),
        rows,
    )
    session.execute(update(EventFeedRow).values(last=feed.last + len(rows)))
    _count(session, found)
    return len(rows)


def number_all(database: Database, *, most: int = 1) -> None:
    """Number what has no position yet, in at most `most` transactions; without news it only reads."""
    for _ in range(most):
        with database.session(read_only=True) as session:
            if not has_unnumbered(session):
                return
        with database.session() as session:
            if number_events(session) < MOST_AT_ONCE:
                return


def last_position(session: Session) -> int:
    """The position of the newest numbered event; 0 if there has been none."""
    return session.scalars(select(EventFeedRow.last)).one()


def events_after(session: Session, position: int, *, limit: int, owner: str | None) -> list[FeedEvent]:
    """Events of an owner behind `position`, in order; `None`: of all, for a process that gives each client its own."""
    rows = session.execute(
        select(JobEventRow, JobRow.owner)
        .join(JobRow, JobRow.id == JobEventRow.job_id)
        .where(JobEventRow.position > position, true() if owner is None else JobRow.owner == owner)
        .order_by(JobEventRow.position)
        .limit(limit)
    )
    return [FeedEvent(position=row.position or 0, owner=owner, event=JobEvent.of(row)) for row, owner in rows]


BOUNDS = (1, 5, 15, 60, 300, 900, 3600, 14400, 86400)
"""Seconds: upper bounds of the groups in which stages are counted."""
COUNTED = frozenset({EventType.CREATED, EventType.CLAIMED, *ATTEMPT_ENDS})
_CODE_LENGTH = 64


@dataclass(frozen=True, kw_only=True)
class StageTotal:
    """The stages of one name: how many took up to each of `BOUNDS` (and, last, longer), and their seconds together."""

    counts: tuple[int, ...]
    seconds: float


def _count(session: Session, numbered: Sequence[Row[int, datetime, str, EventType, JsonObject]]) -> None:
    """Add these events, and the stages that they end. Needs the lock on the numbering of events."""
    types = Counter(
        (one.type, str(one.data.get("code", ""))[:_CODE_LENGTH] if one.type is EventType.FAILED else "")
        for one in numbered
        if one.type in COUNTED
    )
    for (kind, code), number in types.items():
        key, more = {"type": kind.value, "code": code}, {"count": EventTotalRow.count + number}
        change_or_insert(session, EventTotalRow, key, change=more, new={"count": number})
    took: dict[tuple[str, int], list[float]] = defaultdict(list)
    for stage, seconds in _ended_stages(session, numbered):
        took[stage, next((bound for bound in BOUNDS if seconds <= bound), 0)].append(seconds)
    for (stage, up_to), each in took.items():
        new = {"count": len(each), "seconds": sum(each)}
        more = {name: getattr(StageTotalRow, name) + value for name, value in new.items()}
        change_or_insert(session, StageTotalRow, {"stage": stage, "up_to": up_to}, change=more, new=new)


def event_totals(session: Session) -> dict[tuple[str, str], int]:
    """Events by type and error code ("" for all but failures). There are rows for these, not for each job."""
    found = session.execute(select(EventTotalRow.type, EventTotalRow.code, EventTotalRow.count))
    return {(kind, code): number for kind, code, number in found}


def stage_totals(session: Session) -> dict[str, StageTotal]:
    """The same of stages, by name."""
    groups: dict[str, dict[int, int]] = defaultdict(dict)
    sums: dict[str, float] = defaultdict(float)
    rows = session.execute(select(StageTotalRow.stage, StageTotalRow.up_to, StageTotalRow.count, StageTotalRow.seconds))
    for stage, up_to, number, seconds in rows:
        groups[stage][up_to] = number
        sums[stage] += seconds
    return {
        stage: StageTotal(counts=tuple(counts.get(bound, 0) for bound in (*BOUNDS, 0)), seconds=sums[stage])
        for stage, counts in groups.items()
    }


def _ended_stages(
    session: Session, numbered: Sequence[Row[int, datetime, str, EventType, JsonObject]]
) -> Iterator[tuple[str, float]]:
    """Name and seconds of each stage that one of these events has ended."""
    ends = {(one.job_id, one.seq) for one in numbered if one.type in (*ATTEMPT_ENDS, EventType.STAGE)}
    if not ends:
        return
    history = session.execute(
        select(JobEventRow.job_id, JobEventRow.seq, JobEventRow.type, JobEventRow.at, JobEventRow.data)
        .where(JobEventRow.job_id.in_({job_id for job_id, _ in ends}))
        .order_by(JobEventRow.job_id, JobEventRow.seq)
    )
    present: tuple[str, str, datetime] | None = None  # job, name and start of the stage that goes on
    for job_id, seq, kind, at, data in history:
        if present is not None and present[0] == job_id and (job_id, seq) in ends:
            yield present[1], max((at - present[2]).total_seconds(), 0.0)  # a clock that was set back takes no time
        if kind is EventType.STAGE:
            present = job_id, str(data["stage"]), at
        elif kind in COUNTED:
            present = None


REMEMBERED_SECONDS = 3600.0
"""How long a worker is listed after it was lost."""


class Workers:
    """The workers within one transaction."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def report(self, report: WorkerReport, *, alive_seconds: float) -> None:
        """Store a heartbeat: without another one within `alive_seconds`, the worker counts as lost."""
        values = asdict(report)
        key = {"name": values.pop("name")}
        values |= {"heartbeat_at": now(), "expires_at": now(plus_seconds=alive_seconds)}
        change_or_insert(self._session, WorkerRow, key, change=values, new={**values, "started_at": now()})

    def remove(self, name: str) -> None:
        """The worker has ended."""
        self._session.execute(delete(WorkerRow).where(WorkerRow.name == name))

    def forget_lost(self) -> None:
        """Delete workers that were lost longer than `REMEMBERED_SECONDS` ago."""
        self._session.execute(delete(WorkerRow).where(WorkerRow.expires_at < now(plus_seconds=-REMEMBERED_SECONDS)))

    def list(self, *, owner: str) -> tuple[Worker, ...]:
        """All of them by name, each with the ids of the jobs of `owner` that it runs."""
        rows = self._session.execute(select(WorkerRow, WorkerRow.expires_at > now()).order_by(WorkerRow.name)).all()
        running: dict[str | None, list[tuple[str, str]]] = {}
        for job_id, whose, worker in self._session.execute(
            select(JobRow.id, JobRow.owner, JobRow.worker).where(RUNNING)
        ):
            running.setdefault(worker, []).append((job_id, whose))
        found = []
        for row, alive in rows:
            jobs = [one for process in row.processes for one in running.get(f"{row.host}:{process}", ()) if alive]
            own = tuple(job_id for job_id, whose in jobs if whose == owner)
            found.append(Worker.of(row, alive=bool(alive), busy=bool(jobs), jobs=own))
        return tuple(found)

    def count_alive(self) -> dict[WorkerKind, int]:
        """How many live workers serve each kind of job."""
        rows = self._session.scalars(select(WorkerRow.kinds).where(WorkerRow.expires_at > now()))
        counts = Counter(WorkerKind(str(kind)) for kinds in rows for kind in kinds)
        return {kind: counts[kind] for kind in WorkerKind}

    def sandboxes_alive(self) -> tuple[SandboxMode, ...]:
        """The sandbox of each live worker, by the name of the worker."""
        alive = select(WorkerRow.sandbox).where(WorkerRow.expires_at > now()).order_by(WorkerRow.name)
        return tuple(self._session.scalars(alive))


MOST_WORKERS = 500
# written into the statement, for the partial index
_PENDING: ColumnElement[bool] = DeliveryRow.state == literal(
    DeliveryState.PENDING, DeliveryRow.state.type, literal_execute=True
)


@dataclass(frozen=True, kw_only=True)
class Gauge:
    """A number of the service as it is now, all owners together, by the values of its `labels`.

    `/metrics` shows all that `gauges` yields, as `replaceme_NAME`. Labels have few values, whatever clients send.
    """

    name: str
    text: str
    labels: tuple[str, ...] = ()
    values: Mapping[tuple[str, ...], float]


ANY_KIND = "any"
"""The label of jobs that any worker may take."""


def _label_of(kind: WorkerKind | None) -> str:
    return ANY_KIND if kind is None else kind.value


def gauges(session: Session) -> Iterator[Gauge]:
    """All of them, with the memory of at most `MOST_WORKERS` workers."""
    yield from _of_jobs(session)
    yield Gauge(
        name="workers",
        text="Live workers that serve each kind of job.",
        labels=("kind",),
        values={(kind.value,): number for kind, number in Workers(session).count_alive().items()},
    )
    yield from _of_memory(session)
    pending, due_at = session.execute(select(func.count(), func.min(DeliveryRow.next_try_at)).where(_PENDING)).one()
    yield Gauge(
        name="webhook_deliveries_pending",
        text="Messages to webhooks that are still to be sent.",
        values={(): pending},
    )
    yield Gauge(
        name="webhook_delivery_delay_seconds",
        text="How long the first message that is due has been due; 0 if none is.",
        values={(): 0.0 if due_at is None else _seconds_since(due_at, _present(session))},
    )


def _of_jobs(session: Session) -> Iterator[Gauge]:
    kinds = [_label_of(kind) for kind in (None, *WorkerKind)]
    jobs: dict[tuple[str, ...], float] = {(status.value, kind): 0 for kind in kinds for status in ACTIVE}
    oldest: dict[int, str] = {}
    queued = select(JobRow.worker_kind, func.count(), func.min(JobRow.number)).where(QUEUED)
    for kind, number, first in session.execute(queued.group_by(JobRow.worker_kind)):
        jobs[JobStatus.QUEUED.value, _label_of(kind)] = number
        oldest[first] = _label_of(kind)
    running = select(JobRow.worker_kind, func.count()).where(RUNNING).group_by(JobRow.worker_kind)
    for kind, number in session.execute(running):
        jobs[JobStatus.RUNNING.value, _label_of(kind)] = number
    yield Gauge(
        name="jobs",
        text="Jobs that are queued or running, by the kind of worker that may run them.",
        labels=("status", "kind"),
        values=jobs,
    )
    present = _present(session)
    ages: dict[tuple[str, ...], float] = {(kind,): 0.0 for kind in kinds}
    for number, at in session.execute(select(JobRow.number, JobRow.created_at).where(JobRow.number.in_(oldest))):
        ages[(oldest[number],)] = _seconds_since(at, present)
    yield Gauge(
        name="oldest_queued_job_age_seconds",
        text="Time since the oldest of the queued jobs was submitted; 0 if none is queued.",
        labels=("kind",),
        values=ages,
    )


def _of_memory(session: Session) -> Iterator[Gauge]:
    alive = select(WorkerRow).where(WorkerRow.expires_at > now()).order_by(WorkerRow.heartbeat_at.desc())
    rows = session.scalars(alive.limit(MOST_WORKERS)).all()
    for column, name, text in (
        ("total_bytes", "memory_limit", "Memory that the worker may use"),
        ("used_bytes", "memory_used", "Memory of all its processes"),
        ("gpu_total_bytes", "gpu_memory_limit", "Memory of its GPU"),
        ("gpu_used_bytes", "gpu_memory_used", "Memory in use on its GPU"),
    ):
        sizes = {(row.name,): getattr(row, column) for row in rows}
        yield Gauge(
            name=f"worker_{name}_bytes",
            text=f"{text}, as each live worker has reported last.",
            labels=("worker",),
            values={worker: size for worker, size in sorted(sizes.items()) if size is not None},
        )


def _present(session: Session) -> datetime:
    return session.scalars(select(now())).one()


def _seconds_since(since: datetime, present: datetime) -> float:
    return max((present - since).total_seconds(), 0.0)
