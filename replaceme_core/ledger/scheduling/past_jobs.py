"""What the stages of earlier jobs took, beside what the stated model of time expected (`planning.duration`)."""

from collections import defaultdict
from datetime import datetime
from itertools import pairwise

from pydantic import ValidationError
from sqlalchemy import select
from sqlalchemy.orm import Session

from replaceme_core.hardware import WorkerKind
from replaceme_core.ledger.row_mapping import to_spec
from replaceme_core.ledger.states import EventType, JobStatus
from replaceme_core.ledger.tables import JobEventRow, JobRow, MetricRow
from replaceme_core.plan.duration import MODELLED, inputs_of
from replaceme_core.runner.messages import Stage
from replaceme_core.runner.requests import PastJob

RECENT_JOBS = 50


def past_jobs(session: Session, worker_kind: WorkerKind) -> tuple[PastJob, ...]:
    """The latest jobs that succeeded at their first attempt on a worker of this kind, the newest first.

    Later attempts resume from checkpoints, so that their stages are shorter. Jobs of all owners count; nothing of them
    reaches a caller but the estimate. A stage lasts until the next one begins, so that the stages of a job add up to
    the whole of it; `download` has what comes before it, and the start of the runner.
    """
    rows = session.scalars(
        select(JobRow)
        .where(JobRow.status == JobStatus.SUCCEEDED, JobRow.worker_kind == worker_kind, JobRow.attempt == 1)
        .order_by(JobRow.number.desc())
        .limit(RECENT_JOBS)
    ).all()
    ids = [row.id for row in rows]
    modelled: dict[str, dict[Stage, float]] = defaultdict(dict)
    for job_id, stage, value in session.execute(
        select(MetricRow.job_id, MetricRow.stage, MetricRow.value)
        .where(MetricRow.job_id.in_(ids), MetricRow.attempt == 1, MetricRow.name == MODELLED)
        .order_by(MetricRow.number)
    ):
        modelled[job_id][stage] = value
    entered: dict[str, list[tuple[datetime, Stage]]] = defaultdict(list)
    for job_id, at, data in session.execute(
        select(JobEventRow.job_id, JobEventRow.at, JobEventRow.data)
        .where(JobEventRow.job_id.in_(ids), JobEventRow.type == EventType.STAGE)
        .order_by(JobEventRow.job_id, JobEventRow.seq)
    ):
        entered[job_id].append((at, Stage(str(data["stage"]))))
    found = []
    for row in rows:
        assert row.started_at is not None
        assert row.finished_at is not None
        seconds: dict[Stage, float] = defaultdict(float)
        marks = [(row.started_at, Stage.DOWNLOAD), *entered[row.id], (row.finished_at, Stage.PUBLISH)]
        for (begin, stage), (end, _) in pairwise(marks):
            seconds[Stage.DOWNLOAD if stage is Stage.RESOLVE else stage] += max((end - begin).total_seconds(), 0.0)
        stages = {stage: (value, seconds[stage]) for stage, value in modelled[row.id].items() if stage in seconds}
        try:
            spec = to_spec(row)
        except ValidationError:  # of another release
            continue
        if stages:
            found.append(PastJob(method=spec.expected_method, inputs=inputs_of(spec), stages=stages))
    return tuple(found)
