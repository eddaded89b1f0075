"""The lease of a job, and the outcome of an attempt whose runner was killed."""

import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from datetime import datetime
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy import select, update

from benchmarks.harness.processes import WAIT_SECONDS, wait_until
from benchmarks.harness.servers import free_port
from replaceme_core.errors import Cancelled, DatabaseUnreachable, LeaseLost, OutOfTime
from replaceme_core.ledger import attempts
from replaceme_core.ledger.database import Database
from replaceme_core.ledger.records import Claim
from replaceme_core.ledger.states import JobStatus
from replaceme_core.ledger.tables import JobRow
from replaceme_core.runner.process import PerhapsOutOfMemory, RunnerKilled
from tests.fixtures.jobs.ledger import Ledger
from worker import lease as lease_module
from worker.attempt import outcome_after_sigkill
from worker.lease import Lease, ShutDown


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease_module, "POLL_SECONDS", 0.05)


@pytest.fixture
def claim(ledger: Ledger) -> Claim:
    return ledger.claim(ledger.add())


def held(ledger: Ledger, claim: Claim, *, lease_seconds: float = 60, **options: Callable[[], Any]) -> Lease:
    return Lease(ledger.database, claim, lease_seconds=lease_seconds, claimed_at=time.monotonic(), **options)


@pytest.fixture
def renewed_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """A lease of a minute ten times a second: a busy machine's pauses are no loss."""
    monkeypatch.setattr(lease_module, "RENEWALS_PER_LEASE", 600)


@pytest.mark.usefixtures("renewed_often")
def test_it_is_renewed_during_the_work(ledger: Ledger, claim: Claim) -> None:
    def expires_at() -> datetime | None:
        with ledger.database.session(read_only=True) as session:
            return session.scalars(select(JobRow.lease_expires_at)).one()

    before = expires_at()
    with held(ledger, claim) as lease:
        wait_until(lambda: expires_at() != before, what="a renewal")
        lease.check()


def test_a_renewal_that_updates_nothing_is_loss(ledger: Ledger, claim: Claim) -> None:
    called, again = threading.Event(), threading.Event()
    with held(ledger, claim, lease_seconds=0.6) as lease:
        lease.on_end(called.set)
        with ledger.database.session() as session:
            session.execute(update(JobRow).where(JobRow.id == claim.job_id).values(lease_token="someone-else"))
        assert called.wait(WAIT_SECONDS)
        assert lease.lost
        with pytest.raises(LeaseLost):
            lease.check()
        lease.on_end(again.set)
        assert again.is_set()


@pytest.fixture
def nowhere() -> Iterator[Ledger]:
    """A database that cannot be reached."""
    database = Database(f"postgresql+psycopg://nobody@127.0.0.1:{free_port()}/none")
    yield Ledger(database)
    database.close()


@pytest.fixture
def lost_early(monkeypatch: pytest.MonkeyPatch) -> None:
    """A lease of a minute after a second, so that the loss is early on a busy machine too."""
    monkeypatch.setattr(lease_module, "SAFE_PART", 1 / 60)


@pytest.mark.usefixtures("lost_early", "renewed_often")
def test_a_renewal_that_cannot_reach_the_database_is_retried_while_the_lease_lasts(
    nowhere: Ledger, claim: Claim
) -> None:
    began = time.monotonic()
    with held(nowhere, claim) as lease:
        assert lease.ended.wait(WAIT_SECONDS)
        assert 1 <= time.monotonic() - began < 60
        assert lease.lost


def test_the_last_check_does_not_wait_for_a_database(nowhere: Ledger, claim: Claim) -> None:
    with held(nowhere, claim) as lease, pytest.raises(LeaseLost):
        lease.last_check()


@pytest.mark.usefixtures("lost_early", "renewed_often")
def test_a_renewal_that_hangs_is_loss_before_the_lease_runs_out(sqlite_url: str, ledger: Ledger, claim: Claim) -> None:
    with closing(sqlite3.connect(sqlite_url.removeprefix("sqlite:///"), isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")  # nobody else can write now, and all wait
        began = time.monotonic()
        with held(ledger, claim) as lease:
            assert lease.ended.wait(WAIT_SECONDS)
            assert time.monotonic() - began < 60
            assert lease.lost
            other.execute("ROLLBACK")


def test_a_cancel_is_noticed_between_renewals(ledger: Ledger, claim: Claim) -> None:
    with held(ledger, claim) as lease:
        ledger.cancel(claim.job_id)
        assert lease.ended.wait(WAIT_SECONDS)
        assert not lease.lost
        for check in (lease.check, lease.last_check):
            with pytest.raises(Cancelled):
                check()


@pytest.mark.usefixtures("renewed_often")
def test_a_cancel_after_the_last_check_comes_too_late(ledger: Ledger, claim: Claim) -> None:
    with held(ledger, claim) as lease:
        lease.last_check()
        ledger.cancel(claim.job_id)
        assert not lease.ended.wait(0.4)
        lease.check()


def test_a_shutdown_after_the_last_check_releases_the_job(ledger: Ledger, claim: Claim) -> None:
    """A Hub that is away may be waited for much longer than a worker that shuts down has."""
    shut = threading.Event()
    with held(ledger, claim, must_release=shut.is_set) as lease:
        lease.last_check()
        shut.set()
        assert lease.ended.wait(WAIT_SECONDS)
        with pytest.raises(ShutDown):
            lease.check()


def test_the_deadline_of_the_job_ends_it(ledger: Ledger, claim: Claim) -> None:
    called, began = threading.Event(), time.monotonic()
    with held(ledger, replace(claim, seconds_left=0.2)) as lease:
        lease.on_end(called.set)
        assert called.wait(WAIT_SECONDS)
        assert time.monotonic() - began >= 0.2
        assert not lease.lost
        for check in (lease.check, lease.last_check):
            with pytest.raises(OutOfTime):
                check()
        with ledger.database.session() as session:  # so that its end can be written
            attempts.assert_held(session, claim)


def test_after_a_refused_commit_the_deadline_counts_again(
    ledger: Ledger, claim: Claim, monkeypatch: pytest.MonkeyPatch
) -> None:
    with held(ledger, replace(claim, seconds_left=30)) as lease:
        lease.last_check()
        monkeypatch.setattr(lease_module, "time", SimpleNamespace(monotonic=lambda: time.monotonic() + 30))
        assert not lease.ended.wait(0.4)
        lease.commit_refused()
        assert lease.ended.wait(WAIT_SECONDS)
        with pytest.raises(OutOfTime):
            lease.check()


def test_progress_that_cannot_be_stored_is_not_loss(ledger: Ledger, claim: Claim) -> None:
    beats = []

    def fails() -> None:
        beats.append(1)
        raise DatabaseUnreachable("unreachable")

    with held(ledger, claim, on_heartbeat=fails) as lease:
        wait_until(lambda: len(beats) > 1, what="a second heartbeat")
        lease.check()


BY_HAND, UNKNOWN = RunnerKilled("SIGKILL"), PerhapsOutOfMemory("SIGKILL")


@pytest.mark.parametrize(
    ("killed", "max_attempts", "retries", "code"),
    [
        (BY_HAND, 4, 2, "worker_lost"),
        (BY_HAND, 2, 0, "worker_lost"),
        (UNKNOWN, 5, 1, "out_of_memory"),
        (UNKNOWN, 2, 0, "out_of_memory"),
    ],
)
def test_after_a_kill_the_job_is_retried(
    ledger: Ledger, killed: RunnerKilled | PerhapsOutOfMemory, max_attempts: int, retries: int, code: str
) -> None:
    """By hand until its attempts are used up; once where memory may be the cause. Other releases do not count."""
    job_id = ledger.add()
    ledger.release(ledger.claim(job_id))
    for number in range(retries + 1):
        claim = ledger.claim(job_id)
        with ledger.database.session() as session:
            outcome_after_sigkill(killed, claim, max_attempts=max_attempts)(session)
        assert ledger.status(job_id) is (JobStatus.QUEUED if number < retries else JobStatus.FAILED)
    error = ledger.get(job_id).error
    assert error is not None
    assert error.code == code


def test_attempts_that_do_not_count_are_in_the_number_of_all(ledger: Ledger) -> None:
    job_id = ledger.add()
    claim = ledger.claim(job_id)
    with ledger.database.session() as session:
        attempts.release(session, claim, reason="the worker was shut down", counts=False)
    claim = ledger.claim(job_id)
    with ledger.database.session() as session:
        outcome_after_sigkill(BY_HAND, claim, max_attempts=1)(session)
    error = ledger.get(job_id).error
    assert error is not None
    assert error.message == "SIGKILL (attempt 2 of 2)"
