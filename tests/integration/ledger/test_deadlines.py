"""Deadlines: of the queue until the first start, and then of the run, however often it is interrupted."""

from datetime import timedelta

import pytest
from sqlalchemy import update

from benchmarks.harness.specs import a_spec
from replaceme_core.errors import LeaseLost, StaleTransition
from replaceme_core.ledger import attempts, changes
from replaceme_core.ledger.database import Database, now
from replaceme_core.ledger.states import JobStatus
from replaceme_core.ledger.sweep import fail_overdue as fail_overdue_in
from replaceme_core.ledger.tables import JobRow
from tests.fixtures.jobs.ledger import Ledger

EXPIRED = -1.0


@pytest.fixture
def ledger(database: Database) -> Ledger:
    return Ledger(database)


def add(ledger: Ledger, **limits: float) -> str:
    with ledger.database.session() as session:
        return changes.add(session, spec=a_spec(**limits), owner="ada").id


def advance_time(ledger: Ledger, job_id: str, *, seconds: float) -> None:
    """Move the deadline as if so much time had passed, so that no test waits."""
    with ledger.database.session() as session:
        deadline = session.query(JobRow).where(JobRow.id == job_id).one().deadline_at
        assert deadline is not None
        session.execute(
            update(JobRow).where(JobRow.id == job_id).values(deadline_at=deadline - timedelta(seconds=seconds))
        )


def fail_overdue(ledger: Ledger, *, limit: int = 10) -> list[str]:
    with ledger.database.session() as session:
        return fail_overdue_in(session, limit=limit)


def test_a_job_that_waited_too_long(ledger: Ledger) -> None:
    unlimited, job_id, other = add(ledger), add(ledger, max_queue_seconds=60), add(ledger, max_queue_seconds=90)
    assert fail_overdue(ledger) == []
    for each in (job_id, other):
        advance_time(ledger, each, seconds=61)
    assert fail_overdue(ledger) == [job_id]
    job = ledger.get(job_id)
    assert job.error is not None
    assert (job.status, job.error.code, job.attempt, job.started_at) == (JobStatus.FAILED, "out_of_time", 0, None)
    assert "60 s" in job.error.message
    assert job.finished_at is not None
    assert ledger.history(job_id) == ["created", "failed"]
    assert fail_overdue(ledger) == []
    assert ledger.status(unlimited) is ledger.status(other) is JobStatus.QUEUED
    for change in (ledger.claim, ledger.cancel):
        with pytest.raises(StaleTransition):
            change(job_id)


def test_the_limit_of_the_queue_ends_with_the_first_start(ledger: Ledger) -> None:
    job_id = add(ledger, max_queue_seconds=60)
    claim = ledger.claim(job_id)
    assert claim.seconds_left is None
    ledger.release(claim)
    assert fail_overdue(ledger) == []
    ledger.succeed(ledger.claim(job_id))


def test_the_run_is_measured_from_the_first_start(ledger: Ledger) -> None:
    job_id = add(ledger, max_queue_seconds=60, max_runtime_seconds=1000)
    first = ledger.claim(job_id, lease_seconds=EXPIRED)
    assert first.seconds_left is not None
    assert 999 < first.seconds_left <= 1000
    advance_time(ledger, job_id, seconds=400)
    assert ledger.requeue_expired() == [job_id]
    second = ledger.claim(job_id)
    assert second.seconds_left is not None
    assert 590 < second.seconds_left <= 600
    advance_time(ledger, job_id, seconds=700)
    assert fail_overdue(ledger) == []  # a running job is left to its worker
    ledger.release(second)
    assert fail_overdue(ledger) == [job_id]
    error = ledger.get(job_id).error
    assert error is not None
    assert error.code == "out_of_time"
    assert "1000 s of its first start" in error.message
    assert ledger.history(job_id) == ["created", "claimed", "lease_lapsed", "claimed", "released", "failed"]
    with pytest.raises(LeaseLost):
        ledger.succeed(second)


def test_a_job_of_a_lost_worker_fails_at_its_deadline(ledger: Ledger) -> None:
    job_id = add(ledger, max_runtime_seconds=10)
    ledger.claim(job_id, lease_seconds=EXPIRED)
    advance_time(ledger, job_id, seconds=11)
    ledger.requeue_expired()
    assert fail_overdue(ledger) == [job_id]


def test_a_claim_after_the_deadline_has_negative_seconds_left(ledger: Ledger) -> None:
    job_id = add(ledger, max_runtime_seconds=10)
    ledger.release(ledger.claim(job_id))
    advance_time(ledger, job_id, seconds=15)
    left = ledger.claim(job_id).seconds_left
    assert left is not None
    assert left < 0


def test_without_limits_there_is_no_deadline(ledger: Ledger) -> None:
    job_id = add(ledger)
    ledger.release(ledger.claim(job_id))
    with ledger.database.session() as session:
        session.execute(update(JobRow).values(created_at=now(plus_seconds=-1e8), started_at=now(plus_seconds=-1e8)))
    assert fail_overdue(ledger) == []


def test_a_resolved_specification_leaves_the_limits_alone(ledger: Ledger) -> None:
    job_id = add(ledger, max_runtime_seconds=10, priority=7)
    claim = ledger.claim(job_id)
    with ledger.database.session() as session:
        attempts.record_spec(session, claim, a_spec(max_runtime_seconds=99, method="drop"))
    spec = ledger.get(job_id).spec
    assert (spec.max_runtime_seconds, spec.priority, spec.method.name) == (10, 7, "drop")


def test_two_sweeps_share_the_work(postgres_url: str) -> None:
    database = Database(postgres_url)
    try:
        ledger = Ledger(database)
        jobs = [add(ledger, max_queue_seconds=60) for _ in range(2)]
        for number, job_id in enumerate(jobs):
            advance_time(ledger, job_id, seconds=70 - number)
        with database.session() as session:
            assert fail_overdue(session, limit=1) == jobs[:1]
            assert fail_overdue(ledger) == jobs[1:]
    finally:
        database.close()
