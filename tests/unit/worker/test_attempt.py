"""A runner that was killed: which error it is, and whether the job is retried."""

import pytest

from replaceme_core.ledger.database import Database
from replaceme_core.ledger.records import Claim, Job
from replaceme_core.ledger.states import JobStatus
from replaceme_core.runner.process import PerhapsOutOfMemory, RunnerKilled
from tests.fixtures.jobs.ledger import Ledger
from worker.attempt import outcome_after_sigkill

BY_HAND, UNKNOWN = RunnerKilled("SIGKILL"), PerhapsOutOfMemory("SIGKILL")


def after(ledger: Ledger, killed: RunnerKilled | PerhapsOutOfMemory, claim: Claim, *, max_attempts: int = 5) -> Job:
    with ledger.database.session() as session:
        outcome_after_sigkill(killed, claim, max_attempts=max_attempts)(session)
    return ledger.get(claim.job_id)


def test_a_kill_by_hand_costs_an_attempt_each_time(sqlite_database: Database) -> None:
    ledger = Ledger(sqlite_database)
    job_id = ledger.add()
    for _ in range(2):
        assert after(ledger, BY_HAND, ledger.claim(job_id), max_attempts=3).status is JobStatus.QUEUED
    job = after(ledger, BY_HAND, ledger.claim(job_id), max_attempts=3)
    assert job.error is not None
    assert job.error.code == "worker_lost"


def test_after_an_unexplained_kill_the_job_is_retried_once(sqlite_database: Database) -> None:
    ledger = Ledger(sqlite_database)
    job_id = ledger.add()
    ledger.release(ledger.claim(job_id))  # released for another reason: does not count
    assert after(ledger, UNKNOWN, ledger.claim(job_id)).status is JobStatus.QUEUED
    job = after(ledger, UNKNOWN, ledger.claim(job_id))
    assert job.error is not None
    assert job.error.code == "out_of_memory"


@pytest.mark.parametrize(("killed", "code"), [(BY_HAND, "worker_lost"), (UNKNOWN, "out_of_memory")])
def test_the_last_attempt_is_the_last(
    sqlite_database: Database, killed: RunnerKilled | PerhapsOutOfMemory, code: str
) -> None:
    ledger = Ledger(sqlite_database)
    job = after(ledger, killed, ledger.claim(ledger.add()), max_attempts=1)
    assert job.error is not None
    assert job.error.code == code
