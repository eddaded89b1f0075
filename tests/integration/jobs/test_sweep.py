"""Leases that run out, messages that were lost, and many sweeps at once."""

import threading
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import select

from replaceme_core.errors import LeaseLost
from replaceme_core.jobs.clock import now
from replaceme_core.jobs.repository import Jobs
from replaceme_core.jobs.session import Database
from replaceme_core.jobs.states import JobStatus
from tests.fixtures.jobs.ledger import Ledger

LAPSED = -1.0
"""A lease that has run out as soon as it is given: no test waits for a clock."""


@pytest.fixture
def ledger(database: Database) -> Ledger:
    return Ledger(database)


def enqueue(ledger: Ledger, *, older_than_seconds: float, limit: int = 100) -> list[str]:
    with ledger.database.session() as session:
        due = Jobs(session).due_for_wake_up(older_than_seconds=older_than_seconds, limit=limit)
    return [enqueue.job_id for enqueue in due]


def test_the_clock_is_the_databases_and_in_utc(ledger: Ledger) -> None:
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
        Jobs(session).renew(claim, lease_seconds=600)
        Jobs(session).assert_held(claim)
    renewed = ledger.get(job_id)
    assert renewed.lease_expires_at is not None
    assert renewed.lease_expires_at - job.lease_expires_at > timedelta(seconds=500)


def test_a_lease_in_force_is_left_alone(ledger: Ledger) -> None:
    job_id = ledger.add()
    ledger.claim(job_id)
    assert ledger.take_back() == []
    assert ledger.status(job_id) is JobStatus.RUNNING


def test_a_lapsed_job_is_queued_again(ledger: Ledger) -> None:
    job_id = ledger.add()
    claim = ledger.claim(job_id, lease_seconds=LAPSED)
    assert ledger.take_back() == [job_id]
    job = ledger.get(job_id)
    assert (job.status, job.attempt, job.worker, job.lease_expires_at) == (JobStatus.QUEUED, 1, None, None)
    assert ledger.take_back() == []
    with pytest.raises(LeaseLost), ledger.database.session() as session:
        Jobs(session).renew(claim, lease_seconds=60)
    assert ledger.claim(job_id).attempt == 2
    events = ledger.events(job_id)
    assert [event.type.value for event in events] == ["created", "claimed", "lease_lapsed", "claimed"]
    assert events[2].data == {"worker": "w"}
    assert ledger.get(job_id).started_at == job.started_at


def test_a_late_renewal_holds_as_long_as_nobody_took_the_job(ledger: Ledger) -> None:
    job_id = ledger.add()
    claim = ledger.claim(job_id, lease_seconds=LAPSED)
    with pytest.raises(LeaseLost), ledger.database.session() as session:
        Jobs(session).assert_held(claim)  # but nothing may be published meanwhile
    with ledger.database.session() as session:
        Jobs(session).renew(claim, lease_seconds=60)
        Jobs(session).assert_held(claim)
    assert ledger.take_back() == []


def test_attempts_are_used_up(ledger: Ledger) -> None:
    job_id = ledger.add()
    for attempt in (1, 2):
        assert ledger.claim(job_id, lease_seconds=LAPSED).attempt == attempt
        assert ledger.take_back(max_attempts=3) == [job_id]
    last = ledger.claim(job_id, lease_seconds=LAPSED)
    assert ledger.take_back(max_attempts=3) == []
    job = ledger.get(job_id)
    assert job.error is not None
    assert (job.status, job.error.code, job.attempt) == (JobStatus.FAILED, "worker_lost", 3)
    assert "attempt 3 of 3" in job.error.message
    assert ledger.history(job_id)[-2:] == ["lease_lapsed", "failed"]
    assert job.finished_at is not None
    with pytest.raises(LeaseLost):
        ledger.succeed(last)


def test_a_lapsed_job_that_was_to_be_cancelled_is_cancelled(ledger: Ledger) -> None:
    job_id = ledger.add()
    claim = ledger.claim(job_id, lease_seconds=LAPSED)
    ledger.cancel(job_id)
    assert ledger.take_back(max_attempts=1) == []
    assert ledger.status(job_id) is JobStatus.CANCELLED
    assert ledger.history(job_id)[-3:] == ["cancel_requested", "lease_lapsed", "cancelled"]
    with pytest.raises(LeaseLost):
        ledger.finish_cancelled(claim)
    assert ledger.cancel(job_id).status is JobStatus.CANCELLED


def test_ringing(ledger: Ledger) -> None:
    first, second, third = ledger.add(), ledger.add(), ledger.add()
    ledger.claim(second)
    assert enqueue(ledger, older_than_seconds=30) == []  # the message of a new job is on its way
    assert enqueue(ledger, older_than_seconds=-1, limit=1) == [first]
    assert enqueue(ledger, older_than_seconds=-1) == [third, first]  # the one that was announced longest ago
    assert enqueue(ledger, older_than_seconds=30) == []
    ledger.cancel(first)
    assert enqueue(ledger, older_than_seconds=-1) == [third]


def test_a_released_job_is_rung_by_the_next_sweep(ledger: Ledger) -> None:
    job_id = ledger.add()
    ledger.release(ledger.claim(job_id))
    assert enqueue(ledger, older_than_seconds=3600) == [job_id]
    assert enqueue(ledger, older_than_seconds=3600) == []


def test_active_jobs(ledger: Ledger) -> None:
    wanted = {ledger.job_in(status)[0]: status for status in JobStatus}
    with ledger.database.session(read_only=True) as session:
        active = Jobs(session).active_among([*wanted, "nobody"])
        assert Jobs(session).active_among([]) == set()
    assert {wanted[job_id] for job_id in active} == {JobStatus.QUEUED, JobStatus.RUNNING}
    assert len(active) == 2


def test_many_sweeps_at_once_share_the_work(ledger: Ledger) -> None:
    jobs = [ledger.add() for _ in range(12)]
    for job_id in jobs:
        ledger.claim(job_id, lease_seconds=LAPSED)
    start = threading.Barrier(4, timeout=30)
    taken: list[str] = []

    def sweep() -> None:
        start.wait()
        for _ in range(12):  # each sweep takes two at most
            taken.extend(ledger.take_back(limit=2))

    threads = [threading.Thread(target=sweep) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert sorted(taken) == sorted(jobs)
    assert all(ledger.history(job_id) == ["created", "claimed", "lease_lapsed"] for job_id in jobs)


def test_a_sweep_passes_over_rows_that_another_one_holds(postgres_url: str) -> None:
    database = Database(postgres_url)
    try:
        ledger = Ledger(database)
        held, free = ledger.add(), ledger.add()
        with database.session() as session:
            [first] = Jobs(session).due_for_wake_up(older_than_seconds=-1, limit=1)
            assert first.job_id == held
            assert enqueue(ledger, older_than_seconds=-1) == [free]
        for job_id in (held, free):
            ledger.claim(job_id, lease_seconds=LAPSED)
        with database.session() as session:
            (first,) = Jobs(session).requeue_expired(max_attempts=3, limit=1)
            assert ledger.take_back() == [({held, free} - {first}).pop()]
    finally:
        database.close()


def test_attempts_that_were_given_back_do_not_count(ledger: Ledger) -> None:
    job_id = ledger.add()
    for number in (1, 2, 3):
        claim = ledger.claim(job_id)
        assert (claim.attempt, claim.counted) == (number, 1)
        with ledger.database.session() as session:
            Jobs(session).release(claim, reason="shut down", counts=False)
    ledger.claim(job_id, lease_seconds=LAPSED)
    assert ledger.take_back(max_attempts=2) == [job_id]
    assert ledger.claim(job_id, lease_seconds=LAPSED).counted == 2
    assert ledger.take_back(max_attempts=2) == []
    job = ledger.get(job_id)
    assert (job.status, job.attempt) == (JobStatus.FAILED, 5)
    assert job.error is not None
    assert job.error.code == "worker_lost"
    assert "attempt 5 of 5" in job.error.message
