"""Expired leases, lost messages, deadlines of the queue and of the run, and many sweeps at once."""

from datetime import UTC, datetime, timedelta

from sqlalchemy import select, update

from benchmarks.harness.specs import a_spec
from replaceme_core.ledger import attempts
from replaceme_core.ledger.database import Database, now
from replaceme_core.ledger.states import JobStatus
from replaceme_core.ledger.sweep import collect_wake_ups as collect_in
from replaceme_core.ledger.sweep import fail_overdue as fail_overdue_in
from replaceme_core.ledger.sweep import requeue_expired
from replaceme_core.ledger.tables import JobRow
from tests.fixtures.jobs.ledger import Ledger, at_once

EXPIRED = -1.0
"""Lease seconds that make a lease expire at once, so that no test waits."""


def collect_wake_ups(ledger: Ledger, *, older_than_seconds: float, limit: int = 100) -> list[str]:
    with ledger.database.session() as session:
        wake_ups = collect_in(session, older_than_seconds=older_than_seconds, limit=limit)
    return [job_id for job_id, _ in wake_ups]


def test_the_clock_is_the_databases_and_in_utc(ledger_on_both: Ledger) -> None:
    ledger = ledger_on_both
    with ledger.database.session(read_only=True) as session:
        present, later = session.execute(select(now(), now(plus_seconds=90.5))).one()
    assert present.utcoffset() == timedelta(0)
    assert abs(datetime.now(UTC) - present) < timedelta(minutes=5)
    assert timedelta(seconds=90) < later - present < timedelta(seconds=91)


def test_the_lease_is_as_long_as_asked(ledger: Ledger) -> None:
    job_id = ledger.add()
    claim = ledger.claim(job_id, lease_seconds=60)
    job = ledger.get(job_id)
    assert job.started_at is not None
    assert job.lease_expires_at is not None
    assert timedelta(seconds=59) < job.lease_expires_at - job.started_at < timedelta(seconds=61)
    with ledger.database.session() as session:
        attempts.renew(session, claim, lease_seconds=600)
        attempts.assert_held(session, claim)
    renewed = ledger.get(job_id)
    assert renewed.lease_expires_at is not None
    assert renewed.lease_expires_at - job.lease_expires_at > timedelta(seconds=500)


def test_wake_ups(ledger: Ledger) -> None:
    first, second, third = ledger.add(), ledger.add(), ledger.add()
    ledger.claim(second)
    assert collect_wake_ups(ledger, older_than_seconds=30) == []  # the message of a new job was just sent
    assert collect_wake_ups(ledger, older_than_seconds=-1, limit=1) == [first]
    assert collect_wake_ups(ledger, older_than_seconds=-1) == [third, first]  # the oldest message first
    assert collect_wake_ups(ledger, older_than_seconds=30) == []
    ledger.cancel(first)
    assert collect_wake_ups(ledger, older_than_seconds=-1) == [third]
    ledger.release(ledger.claim(third))  # the next sweep enqueues it at once
    assert collect_wake_ups(ledger, older_than_seconds=3600) == [third]
    assert collect_wake_ups(ledger, older_than_seconds=3600) == []


def test_many_sweeps_at_once_share_the_work(ledger_on_both: Ledger) -> None:
    ledger = ledger_on_both
    jobs = [ledger.add() for _ in range(12)]
    for job_id in jobs:
        ledger.claim(job_id, lease_seconds=EXPIRED)
    requeued: list[str] = []

    def sweep() -> None:
        for _ in range(12):  # each sweep requeues at most two
            requeued.extend(ledger.requeue_expired(limit=2))

    at_once(*[sweep] * 4)
    assert sorted(requeued) == sorted(jobs)
    assert all(ledger.history(job_id) == ["created", "claimed", "lease_lapsed"] for job_id in jobs)


def test_a_sweep_skips_rows_that_another_one_has_locked(postgres_database: Database) -> None:
    database = postgres_database
    ledger = Ledger(database)
    locked, free = ledger.add(), ledger.add()
    with database.session() as session:
        assert collect_in(session, older_than_seconds=-1, limit=1) == [(locked, None)]
        assert collect_wake_ups(ledger, older_than_seconds=-1) == [free]
    for job_id in (locked, free):
        ledger.claim(job_id, lease_seconds=EXPIRED)
    with database.session() as session:
        (first,) = requeue_expired(session, max_attempts=3, limit=1)
        assert ledger.requeue_expired() == [({locked, free} - {first}).pop()]
    overdue = {ledger.add_spec(a_spec(max_queue_seconds=60)) for _ in range(2)}
    for job_id in overdue:
        advance_time(ledger, job_id, seconds=70)
    with database.session() as session:
        [first] = fail_overdue_in(session, limit=1)
        assert {first, *fail_overdue(ledger)} == overdue


def test_attempts_released_by_a_shutdown_do_not_count(ledger: Ledger) -> None:
    job_id = ledger.add()
    for number in (1, 2, 3):
        claim = ledger.claim(job_id)
        assert (claim.attempt, claim.counted) == (number, 1)
        with ledger.database.session() as session:
            attempts.release(session, claim, reason="shut down", counts=False)
    ledger.claim(job_id, lease_seconds=EXPIRED)
    assert ledger.requeue_expired(max_attempts=2) == [job_id]
    assert ledger.claim(job_id, lease_seconds=EXPIRED).counted == 2
    assert ledger.requeue_expired(max_attempts=2) == []
    job = ledger.get(job_id)
    assert (job.status, job.attempt) == (JobStatus.FAILED, 5)
    assert job.error is not None
    assert job.error.code == "worker_lost"
    assert "attempt 5 of 5" in job.error.message


def advance_time(ledger: Ledger, job_id: str, *, seconds: float) -> None:
    """Move the deadline as if so much time had passed, so that no test waits."""
    with ledger.database.session() as session:
        deadline = session.query(JobRow).where(JobRow.id == job_id).one().deadline_at
        assert deadline is not None
        session.execute(
            update(JobRow).where(JobRow.id == job_id).values(deadline_at=deadline - timedelta(seconds=seconds))
        )


def fail_overdue(ledger: Ledger) -> list[str]:
    with ledger.database.session() as session:
        return fail_overdue_in(session, limit=10)


def test_a_job_that_waited_too_long(ledger: Ledger) -> None:
    limits = (None, 1_234_567, 2_000_000)
    unlimited, job_id, other = (ledger.add_spec(a_spec(max_queue_seconds=seconds)) for seconds in limits)
    assert fail_overdue(ledger) == []
    for each in (job_id, other):
        advance_time(ledger, each, seconds=1_234_568)
    assert fail_overdue(ledger) == [job_id]
    job = ledger.get(job_id)
    assert job.error is not None
    assert (job.status, job.error.code, job.attempt, job.started_at) == (JobStatus.FAILED, "out_of_time", 0, None)
    assert "1234567 s" in job.error.message
    assert fail_overdue(ledger) == []
    assert ledger.status(unlimited) is ledger.status(other) is JobStatus.QUEUED


def test_the_run_is_measured_from_the_first_start(ledger: Ledger) -> None:
    job_id = ledger.add_spec(a_spec(max_queue_seconds=60, max_runtime_seconds=1000))
    first = ledger.claim(job_id, lease_seconds=EXPIRED)
    assert first.seconds_left is not None
    assert 999 < first.seconds_left <= 1000
    started = ledger.get(job_id).started_at
    advance_time(ledger, job_id, seconds=400)
    assert ledger.requeue_expired() == [job_id]
    queued = ledger.get(job_id)
    assert (queued.attempt, queued.worker, queued.lease_expires_at) == (1, None, None)
    second = ledger.claim(job_id)
    assert second.seconds_left is not None
    assert 590 < second.seconds_left <= 600
    advance_time(ledger, job_id, seconds=700)
    assert fail_overdue(ledger) == []  # a running job is left to its worker
    ledger.release(second)
    assert fail_overdue(ledger) == [job_id]
    ended = ledger.get(job_id)
    assert ended.error is not None
    assert "1000 s of its first start" in ended.error.message
    assert ended.started_at == started
    events = ledger.events(job_id)
    assert [event.type for event in events] == ["created", "claimed", "lease_lapsed", "claimed", "released", "failed"]
    assert [dict(event.data) for event in events[1:3]] == [{"worker": "w"}, {"worker": "w"}]


def test_a_resolved_specification_leaves_the_limits_alone(ledger: Ledger) -> None:
    job_id = ledger.add_spec(a_spec(max_runtime_seconds=10, priority=7))
    claim = ledger.claim(job_id)
    with ledger.database.session() as session:
        attempts.record_spec(session, claim, a_spec(max_runtime_seconds=99, method="drop"))
    spec = ledger.get(job_id).spec
    assert (spec.max_runtime_seconds, spec.priority, spec.method.name) == (10, 7, "drop")
