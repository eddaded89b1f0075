"""How a job begins and ends: one claim, one idempotency key, one job. `test_random_walks.py` has every transition."""

from collections.abc import Callable
from contextlib import suppress

import pytest
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from benchmarks.harness.jobs import report_of
from benchmarks.harness.specs import a_spec
from replaceme_core.errors import DatabaseUnreachable, JobNotFound, LeaseLost, NotFound, StaleTransition
from replaceme_core.ledger import attempts, changes, reading
from replaceme_core.ledger.database import Database
from replaceme_core.ledger.records import Claim, IdempotencyKey
from replaceme_core.ledger.states import JobStatus
from replaceme_core.shapes import JobWarning
from tests.fixtures.jobs.ledger import REPORT, Ledger, at_once

UNKNOWN = "00000000-0000-4000-8000-000000000000"


def test_of_two_claims_at_once_one_wins(ledger_on_both: Ledger) -> None:
    ledger = ledger_on_both
    for _ in range(10):
        job_id = ledger.add()

        def contend(job_id: str = job_id) -> str:
            try:
                ledger.claim(job_id)
            except StaleTransition:
                return "stale"
            return "won"

        outcomes = at_once(contend, contend)
        assert sorted(outcomes) == ["stale", "won"]
        assert ledger.get(job_id).attempt == 1
        assert ledger.history(job_id) == ["created", "claimed"]


def test_a_job_that_succeeds(ledger_on_both: Ledger) -> None:
    ledger = ledger_on_both
    spec = a_spec(labels={"team": "a"}, method="drop")
    job = ledger.get(ledger.add_spec(spec, owner="ada"))
    assert (job.status, job.spec, job.labels, job.attempt) == (JobStatus.QUEUED, spec, {"team": "a"}, 0)
    assert job.created_at.utcoffset() is not None
    with pytest.raises(NotFound):
        report_of(ledger.database, job.id)
    claim = ledger.claim(job.id)
    resolved = spec.model_copy(update={"compute": spec.compute.model_copy(update={"threads": 2})})
    with ledger.database.session() as session:
        attempts.record_spec(session, claim, resolved)
    warning = {"code": "answers_loop", "message": "3 of 5 answers repeat themselves"}
    report = {**REPORT, "warnings": [warning, {"unknown": 1}, "unknown"]}
    ledger.succeed(claim, report=report)
    done = ledger.get(job.id)
    assert (done.status, done.spec, done.progress.overall, done.error) == (JobStatus.SUCCEEDED, resolved, 1.0, None)
    assert done.result is not None
    assert (done.result.removed_blocks, done.result.kept_blocks) == ((12, 13), (0, 1, 2))
    assert done.result.warnings == (JobWarning(**warning),)
    assert list(report_of(ledger.database, job.id).items()) == list(report.items()), "in the same order"
    assert done.started_at is not None
    assert done.finished_at is not None
    assert job.created_at <= done.started_at <= done.finished_at


def test_a_job_that_fails(ledger_on_both: Ledger) -> None:
    ledger = ledger_on_both
    job_id = ledger.add()
    ledger.fail(job_id, code="broken_model", message="a\0b \ud800 " + "x" * 10_000)
    error = ledger.get(job_id).error
    assert error is not None
    assert error.code == "broken_model"
    assert error.message.startswith("ab ? xxx")
    assert len(error.message) == 4000
    assert ledger.events(job_id)[-1].data == {"code": error.code, "message": error.message}


@pytest.mark.parametrize("job_id", [UNKNOWN, "", "no", "\0", "\ud800", UNKNOWN + "\n", "x" * 100_000])
def test_unknown_jobs(ledger_on_both: Ledger, job_id: str) -> None:
    database, invented = ledger_on_both.database, Claim(job_id=job_id, token="0" * 32, attempt=1)
    calls: list[Callable[[Session], object]] = [
        lambda session: reading.get(session, job_id, owner="someone"),
        lambda session: changes.request_cancel(session, job_id, owner="someone"),
        lambda session: reading.events(session, job_id, limit=1, owner="someone"),
        lambda session: reading.metrics(session, job_id, owner="someone"),
        lambda session: reading.report(session, job_id, owner="someone"),
    ]
    for call in calls:
        with pytest.raises(JobNotFound), database.session() as session:
            call(session)
    with pytest.raises(LeaseLost), database.session() as session:
        attempts.renew(session, invented, lease_seconds=1)
    with pytest.raises(LeaseLost), database.session() as session:  # of a worker that was frozen past its lease
        attempts.finish_cancelled(session, invented)


KEY = IdempotencyKey(key="k", fingerprint="f" * 64, keep_seconds=3600)


def add_with_key(database: Database, *, job_id: str | None = None) -> str:
    with database.session() as session:
        changes.lock_key(session, KEY, owner="ada")
        for found in changes.find_by_keys(session, [KEY], owner="ada"):
            return found.id
        return changes.add(session, spec=a_spec(), owner="ada", job_id=job_id, idempotency_key=KEY).id


def test_fifty_requests_at_once_make_one_job(database: Database) -> None:
    def submit() -> str:
        while True:
            with suppress(DatabaseUnreachable):  # all connections are in use: the client is asked to retry
                return add_with_key(database)

    assert len(set(at_once(*[submit] * 50))) == 1
    with database.session(read_only=True) as session:
        (job,) = reading.page(session, owner="ada", limit=10).items
        assert [event.type.value for event in reading.events(session, job.id, owner="ada").items] == ["created"]


def test_what_is_undone_or_refused_leaves_the_key_free(database: Database) -> None:
    with suppress(ZeroDivisionError), database.session() as session:
        lost = changes.add(session, spec=a_spec(), owner="ada", idempotency_key=KEY)
        raise ZeroDivisionError  # the process dies before its commit
    existing = Ledger(database).add()
    with pytest.raises(IntegrityError):
        add_with_key(database, job_id=existing)
    assert add_with_key(database) not in (lost.id, existing)
