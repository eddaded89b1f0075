"""How long stages took in earlier jobs, relative to the stated model of time (`planning.duration`)."""

import statistics
from collections import defaultdict

from sqlalchemy import and_, select
from sqlalchemy.orm import Session

from replaceme_core.admission.worker_kind import WorkerKind
from replaceme_core.jobs.states import JobStatus
from replaceme_core.jobs.tables import JobRow, MetricRow
from replaceme_core.planning.duration import Rates
from replaceme_core.runner.messages import Stage

RECENT_JOBS = 20
ACTUAL, MODELLED = "seconds", "modelled_seconds"


def stage_rates(session: Session, worker_kind: WorkerKind) -> Rates:
    """The medians over the latest jobs that succeeded at their first attempt on a worker of this kind.

    Later attempts resume from checkpoints, so that their stages are shorter. Jobs of all owners count; nothing of them
    but these ratios is used.
    """
    recent = (
        select(JobRow.id)
        .where(JobRow.status == JobStatus.SUCCEEDED, JobRow.worker_kind == worker_kind, JobRow.attempt == 1)
        .order_by(JobRow.number.desc())
        .limit(RECENT_JOBS)
        .subquery()
    )
    rows = session.execute(
        select(MetricRow.job_id, MetricRow.stage, MetricRow.name, MetricRow.value)
        .join(recent, and_(MetricRow.job_id == recent.c.id, MetricRow.attempt == 1))
        .where(MetricRow.name.in_((ACTUAL, MODELLED)))
    )
    found: dict[tuple[str, Stage], dict[str, float]] = defaultdict(lambda: {ACTUAL: 0.0, MODELLED: 0.0})
    for job_id, stage, name, value in rows:
        if name == ACTUAL:  # a stage that is entered twice reports the sum of both
            value = max(value, found[job_id, stage][name])
        found[job_id, stage][name] = value
    ratios: dict[Stage, list[float]] = defaultdict(list)
    for (_, stage), each in found.items():
        if each[ACTUAL] > 0 and each[MODELLED] > 0:
            ratios[stage].append(each[ACTUAL] / each[MODELLED])
    jobs = len({job_id for (job_id, _), each in found.items() if each[MODELLED] > 0})
    return Rates(factors={stage: statistics.median(some) for stage, some in ratios.items()}, jobs=jobs)
