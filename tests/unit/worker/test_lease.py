"""The lease of a job, and the outcome of an attempt whose runner was killed."""

import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import update

from benchmarks.harness.jobs import owner_of
from benchmarks.harness.servers import free_port
from benchmarks.harness.specs import a_spec
from replaceme_core.errors import Cancelled, DatabaseUnreachable, LeaseLost, OutOfTime
from replaceme_core.ledger import attempts, changes
from replaceme_core.ledger.database import Database
from replaceme_core.ledger.records import Claim, Job
from replaceme_core.ledger.states import JobStatus
from replaceme_core.ledger.tables import JobRow
from replaceme_core.runner.process import PerhapsOutOfMemory, RunnerKilled
from tests.fixtures.jobs.ledger import Ledger, claim_job
from worker.attempt import outcome_after_sigkill
from worker.lease import Lease


def claimed(database: Database) -> Claim:
    with database.session() as session:
        return claim_job(
            session, changes.add(session, spec=a_spec(), owner="tests").id, worker="tests", lease_seconds=30
        )


@contextmanager
def held(database: Database, claim: Claim, *, lease_seconds: float) -> Iterator[Lease]:
    lease = Lease(database, claim, lease_seconds=lease_seconds, claimed_at=time.monotonic())
    with lease:
        yield lease


def steal(database: Database, claim: Claim) -> None:
    with database.session() as session:
        session.execute(update(JobRow).where(JobRow.id == claim.job_id).values(lease_token="someone-else"))


def test_it_is_renewed_during_the_work(sqlite_database: Database) -> None:
    claim = claimed(sqlite_database)
    with held(sqlite_database, claim, lease_seconds=1.2) as lease:  # a third of it must outlast a busy machine's pauses
        assert not lease.ended.wait(3.0)
        lease.check()
        with sqlite_database.session() as session:
            attempts.assert_held(session, claim)


def test_a_renewal_that_updates_nothing_is_loss(sqlite_database: Database) -> None:
    claim = claimed(sqlite_database)
    called = threading.Event()
    with held(sqlite_database, claim, lease_seconds=0.6) as lease:
        lease.on_end(called.set)
        steal(sqlite_database, claim)
        assert called.wait(5)
        assert lease.lost
        with pytest.raises(LeaseLost):
            lease.check()
        again = threading.Event()
        lease.on_end(again.set)
        assert again.is_set()


def test_a_renewal_that_raises_is_loss(sqlite_database: Database) -> None:
    claim = claimed(sqlite_database)
    nowhere = Database(f"postgresql+psycopg://nobody@127.0.0.1:{free_port()}/none")
    with held(nowhere, claim, lease_seconds=0.6) as lease:
        assert lease.ended.wait(5)
        assert lease.lost
    nowhere.close()


def test_a_renewal_that_hangs_is_loss_before_the_lease_runs_out(sqlite_url: str, sqlite_database: Database) -> None:
    claim = claimed(sqlite_database)
    path = Path(sqlite_url.removeprefix("sqlite:///"))
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")  # nobody else can write now, and all wait
        began = time.monotonic()
        with held(sqlite_database, claim, lease_seconds=1.5) as lease:
            assert lease.ended.wait(5)
            assert time.monotonic() - began < 1.5
            assert lease.lost
            other.execute("ROLLBACK")


def test_a_cancel_is_noticed_between_renewals(sqlite_database: Database) -> None:
    claim = claimed(sqlite_database)
    with held(sqlite_database, claim, lease_seconds=60) as lease:
        with sqlite_database.session() as session:
            changes.request_cancel(session, claim.job_id, owner=owner_of(session, claim.job_id))
        assert lease.ended.wait(2.5)
        assert not lease.lost
        with pytest.raises(Cancelled):
            lease.check()
        with pytest.raises(Cancelled):
            lease.last_check()


def test_a_cancel_after_the_last_check_comes_too_late(sqlite_database: Database) -> None:
    claim = claimed(sqlite_database)
    with held(sqlite_database, claim, lease_seconds=0.6) as lease:
        lease.last_check()
        with sqlite_database.session() as session:
            changes.request_cancel(session, claim.job_id, owner=owner_of(session, claim.job_id))
        assert not lease.ended.wait(1)
        lease.check()


def late(claim: Claim, seconds_left: float) -> Claim:
    return replace(claim, seconds_left=seconds_left)


def test_the_deadline_of_the_job_ends_it(sqlite_database: Database) -> None:
    claim = late(claimed(sqlite_database), 0.3)
    called = threading.Event()
    with held(sqlite_database, claim, lease_seconds=60) as lease:
        lease.on_end(called.set)
        lease.check()
        assert called.wait(5)
        assert not lease.lost
        for check in (lease.check, lease.last_check):
            with pytest.raises(OutOfTime):
                check()
        with sqlite_database.session() as session:  # so that its end can be written
            attempts.assert_held(session, claim)


def test_after_a_refused_commit_the_deadline_counts_again(sqlite_database: Database) -> None:
    with held(sqlite_database, late(claimed(sqlite_database), 0.3), lease_seconds=60) as lease:
        lease.last_check()
        assert not lease.ended.wait(0.6)
        lease.commit_refused()
        assert lease.ended.wait(5)
        with pytest.raises(OutOfTime):
            lease.check()


def test_progress_that_cannot_be_stored_is_not_loss(sqlite_database: Database) -> None:
    claim = claimed(sqlite_database)
    beats = []

    def fails() -> None:
        beats.append(1)
        raise DatabaseUnreachable("unreachable")

    lease = Lease(sqlite_database, claim, lease_seconds=0.6, claimed_at=time.monotonic(), on_heartbeat=fails)
    with lease:
        assert not lease.ended.wait(1)
        lease.check()
    assert len(beats) > 1


BY_HAND, UNKNOWN = RunnerKilled("SIGKILL"), PerhapsOutOfMemory("SIGKILL")


def after_kill(
    ledger: Ledger, killed: RunnerKilled | PerhapsOutOfMemory, claim: Claim, *, max_attempts: int = 5
) -> Job:
    with ledger.database.session() as session:
        outcome_after_sigkill(killed, claim, max_attempts=max_attempts)(session)
    return ledger.get(claim.job_id)


def test_a_kill_by_hand_costs_an_attempt_each_time(sqlite_database: Database) -> None:
    ledger = Ledger(sqlite_database)
    job_id = ledger.add()
    for _ in range(2):
        assert after_kill(ledger, BY_HAND, ledger.claim(job_id), max_attempts=3).status is JobStatus.QUEUED
    job = after_kill(ledger, BY_HAND, ledger.claim(job_id), max_attempts=3)
    assert job.error is not None
    assert job.error.code == "worker_lost"


def test_after_an_unexplained_kill_the_job_is_retried_once(sqlite_database: Database) -> None:
    ledger = Ledger(sqlite_database)
    job_id = ledger.add()
    ledger.release(ledger.claim(job_id))  # released for another reason: does not count
    assert after_kill(ledger, UNKNOWN, ledger.claim(job_id)).status is JobStatus.QUEUED
    job = after_kill(ledger, UNKNOWN, ledger.claim(job_id))
    assert job.error is not None
    assert job.error.code == "out_of_memory"


@pytest.mark.parametrize(("killed", "code"), [(BY_HAND, "worker_lost"), (UNKNOWN, "out_of_memory")])
def test_the_last_attempt_is_the_last(
    sqlite_database: Database, killed: RunnerKilled | PerhapsOutOfMemory, code: str
) -> None:
    ledger = Ledger(sqlite_database)
    job = after_kill(ledger, killed, ledger.claim(ledger.add()), max_attempts=1)
    assert job.error is not None
    assert job.error.code == code
