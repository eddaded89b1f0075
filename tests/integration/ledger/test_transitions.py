"""Every transition, legal or not, on both databases."""

from collections.abc import Callable

import pytest
from sqlalchemy.orm import Session

from benchmarks.harness.jobs import job_of, report_of
from benchmarks.harness.specs import a_spec
from replaceme_core.errors import Conflict, JobNotFound, LeaseLost, NotFound, StaleTransition
from replaceme_core.ledger import attempts, changes, reading
from replaceme_core.ledger.records import Claim
from replaceme_core.ledger.states import ALLOWED, TERMINAL, JobStatus
from replaceme_core.runner.messages import Measured, Stage
from replaceme_core.shapes import JobWarning
from tests.fixtures.jobs.ledger import Ledger, claim_job, succeed
from tests.fixtures.jobs.threads import at_once

QUEUED, RUNNING, SUCCEEDED, FAILED, CANCELLED = JobStatus
UNKNOWN = "00000000-0000-4000-8000-000000000000"


def claim_again(ledger: Ledger, claim: Claim) -> None:
    ledger.claim(claim.job_id)


def request_cancel(ledger: Ledger, claim: Claim) -> None:
    ledger.cancel(claim.job_id)


CHANGES: dict[str, Callable[[Ledger, Claim], None]] = {
    "claim": claim_again,
    "cancel": request_cancel,
    "succeed": Ledger.succeed,
    "fail": Ledger.fail,
    "finish_cancelled": Ledger.finish_cancelled,
    "release": Ledger.release,
}
OUTCOMES: dict[JobStatus, dict[str, JobStatus | type[Exception]]] = {
    QUEUED: {
        "claim": RUNNING,
        "cancel": CANCELLED,
        **dict.fromkeys(("succeed", "fail", "finish_cancelled", "release"), LeaseLost),
    },
    RUNNING: {
        "claim": StaleTransition,
        "cancel": RUNNING,
        "succeed": SUCCEEDED,
        "fail": FAILED,
        "finish_cancelled": CANCELLED,
        "release": QUEUED,
    },
    SUCCEEDED: dict.fromkeys(CHANGES, StaleTransition),
    FAILED: dict.fromkeys(CHANGES, StaleTransition),
    CANCELLED: {**dict.fromkeys(CHANGES, StaleTransition), "cancel": CANCELLED},
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("status", JobStatus)
def test_each_change_from_each_status(ledger: Ledger, status: JobStatus, change: str) -> None:
    job_id, claim = ledger.job_in(status)
    before = ledger.events(job_id)
    expected = OUTCOMES[status][change]
    if isinstance(expected, JobStatus):
        CHANGES[change](ledger, claim)
        assert ledger.status(job_id) is expected
        assert expected is status or expected in ALLOWED[status]
    else:
        with pytest.raises(expected):
            CHANGES[change](ledger, claim)
        assert ledger.status(job_id) is status
        assert ledger.events(job_id) == before


WRITES: dict[str, Callable[[Session, Claim], object]] = {
    "renew": lambda session, claim: attempts.renew(session, claim, lease_seconds=60),
    "assert_held": lambda session, claim: attempts.assert_held(session, claim),
    "record_spec": lambda session, claim: attempts.record_spec(session, claim, a_spec()),
    "record_progress": lambda session, claim: attempts.record_progress(
        session, claim, stage=Stage.SOLVE, overall=0.5, fraction=0.5, eta_seconds=1.0
    ),
    "add_metrics": lambda session, claim: attempts.add_metrics(
        session, claim, [Measured(stage=Stage.SOLVE, name="residual", value=0.1, unit="1")]
    ),
    "add_no_metrics": lambda session, claim: attempts.add_metrics(session, claim, []),
}
FINISHES: dict[str, Callable[[Session, Claim], object]] = {
    "succeed": succeed,
    "fail": lambda session, claim: attempts.fail(session, claim, code="out_of_memory", message="too big"),
    "finish_cancelled": lambda session, claim: attempts.finish_cancelled(session, claim),
    "release": lambda session, claim: attempts.release(session, claim, reason="drain"),
}


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("status", sorted(TERMINAL))
def test_nothing_is_written_to_a_finished_job(ledger: Ledger, status: JobStatus, write: str) -> None:
    job_id, claim = ledger.job_in(status)
    before = ledger.get(job_id)
    with pytest.raises(LeaseLost), ledger.database.session() as session:
        WRITES[write](session, claim)
    assert ledger.get(job_id) == before


@pytest.mark.parametrize("write", [*WRITES, *FINISHES])
@pytest.mark.parametrize("successor", ["queued", "running", "finished"])
def test_an_old_token_writes_nothing(ledger: Ledger, successor: str, write: str) -> None:
    job_id = ledger.add()
    old = ledger.claim(job_id, lease_seconds=-1)
    assert ledger.requeue_expired() == [job_id]
    if successor != "queued":
        new = ledger.claim(job_id)
        assert (new.attempt, new.token != old.token) == (2, True)
        if successor == "finished":
            ledger.succeed(new)
    before, history = ledger.get(job_id), ledger.events(job_id)
    with pytest.raises(LeaseLost), ledger.database.session() as session:
        (WRITES | FINISHES)[write](session, old)
    assert (ledger.get(job_id), ledger.events(job_id)) == (before, history)


def test_of_two_claims_at_once_one_wins(ledger: Ledger) -> None:
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


def test_cancel_of_a_queued_job_is_immediate(ledger: Ledger) -> None:
    job_id = ledger.add()
    job = ledger.cancel(job_id)
    assert (job.status, job.cancel_requested, job.finished_at is not None) == (CANCELLED, True, True)
    assert ledger.history(job_id) == ["created", "cancel_requested", "cancelled"]
    with pytest.raises(StaleTransition):
        ledger.claim(job_id)


def test_cancel_of_a_running_job_is_reported_by_the_renewal(ledger: Ledger) -> None:
    job_id = ledger.add()
    claim = ledger.claim(job_id)
    with ledger.database.session() as session:
        assert attempts.renew(session, claim, lease_seconds=60) is False
    first = ledger.cancel(job_id)
    assert (first.status, first.cancel_requested) == (RUNNING, True)
    assert ledger.cancel(job_id) == first
    with ledger.database.session() as session:
        assert attempts.renew(session, claim, lease_seconds=60) is True
    ledger.finish_cancelled(claim)
    assert ledger.history(job_id) == ["created", "claimed", "cancel_requested", "cancelled"]


def test_a_released_job_with_a_cancel_request_is_cancelled(ledger: Ledger) -> None:
    job_id = ledger.add()
    claim = ledger.claim(job_id)
    ledger.cancel(job_id)
    ledger.release(claim)
    assert ledger.status(job_id) is CANCELLED
    with pytest.raises(StaleTransition):
        ledger.release(claim)


@pytest.mark.parametrize(
    "job_id", [UNKNOWN, "", "no", "\0", "\ud800", UNKNOWN + "\n", "x" * 100_000, UNKNOWN.upper()[:-1]]
)
def test_unknown_jobs(ledger: Ledger, job_id: str) -> None:
    invented = Claim(job_id=job_id, token="0" * 32, attempt=1)
    calls: list[Callable[[Session], object]] = [
        lambda session: reading.get(session, job_id, owner="someone"),
        lambda session: claim_job(session, job_id, worker="w", lease_seconds=1),
        lambda session: changes.request_cancel(session, job_id, owner="someone"),
        lambda session: reading.events(session, job_id, limit=1, owner="someone"),
        lambda session: reading.metrics(session, job_id, owner="someone"),
        lambda session: reading.report(session, job_id, owner="someone"),
        lambda session: attempts.finish_cancelled(session, invented),
    ]
    for call in calls:
        with pytest.raises(JobNotFound), ledger.database.session() as session:
            call(session)
    with pytest.raises(LeaseLost), ledger.database.session() as session:
        attempts.renew(session, invented, lease_seconds=1)


def test_a_job_of_someone_else_is_not_found(ledger: Ledger) -> None:
    job_id = ledger.add(owner="ada")
    with ledger.database.session() as session:
        assert reading.get(session, job_id, owner="ada").owner == "ada"
        with pytest.raises(JobNotFound):
            reading.get(session, job_id, owner="bob")
        with pytest.raises(JobNotFound):
            changes.request_cancel(session, job_id, owner="bob")
    assert ledger.status(job_id) is QUEUED


def test_an_id_is_unique(ledger: Ledger) -> None:
    with ledger.database.session() as session:
        assert changes.add(session, spec=a_spec(), owner="ada", job_id=UNKNOWN).id == UNKNOWN
    with pytest.raises(Conflict), ledger.database.session() as session:
        changes.add(session, spec=a_spec(), owner="ada", job_id=UNKNOWN)
    with pytest.raises(ValueError, match="UUID"), ledger.database.session() as session:
        changes.add(session, spec=a_spec(), owner="ada", job_id="seven")
    assert ledger.history(UNKNOWN) == ["created"]


def test_a_job_that_succeeds(ledger: Ledger) -> None:
    spec = a_spec(labels={"team": "a"}, method="drop")
    with ledger.database.session() as session:
        job = changes.add(session, spec=spec, owner="ada")
    assert (job.status, job.spec, job.labels, job.attempt) == (QUEUED, spec, {"team": "a"}, 0)
    assert job.created_at.utcoffset() is not None
    with pytest.raises(NotFound), ledger.database.session() as session:
        reading.report(session, job.id, owner="ada")
    claim = ledger.claim(job.id)
    resolved = spec.model_copy(update={"compute": spec.compute.model_copy(update={"threads": 2})})
    with ledger.database.session() as session:
        attempts.record_spec(session, claim, resolved)
    ledger.succeed(claim)
    done, report = (
        job_of(ledger.database, job.id),
        report_of(ledger.database, job.id),
    )
    assert (done.status, done.spec, done.progress.overall, done.error) == (SUCCEEDED, resolved, 1.0, None)
    assert done.result is not None
    assert (done.result.removed_blocks, done.result.kept_blocks) == ((12, 13), (0, 1, 2))
    assert list(report.items()) == [("zeta", 20.5), ("alpha", [1, 2])]
    assert done.started_at is not None
    assert done.finished_at is not None
    assert job.created_at <= done.started_at <= done.finished_at


def test_the_warnings_of_a_report_are_part_of_the_result(ledger: Ledger) -> None:
    job_id = ledger.add()
    claim = ledger.claim(job_id)
    warning = {"code": "answers_loop", "message": "3 of 5 answers repeat themselves"}
    with ledger.database.session() as session:
        attempts.succeed(
            session,
            claim,
            repo_id="org/small",
            revision="b" * 40,
            removed_blocks=[1],
            kept_blocks=[0],
            report={"warnings": [warning, {"unknown": 1}, "unknown"]},
        )
    done = job_of(ledger.database, job_id)
    assert done.result is not None
    assert done.result.warnings == (JobWarning(**warning),)


def test_a_job_that_fails(ledger: Ledger) -> None:
    job_id = ledger.add()
    claim = ledger.claim(job_id)
    with ledger.database.session() as session:
        attempts.fail(session, claim, code="broken_model", message="a\0b \ud800 " + "x" * 10_000)
    error = ledger.get(job_id).error
    assert error is not None
    assert error.code == "broken_model"
    assert error.message.startswith("ab ? xxx")
    assert len(error.message) == 4000
    assert ledger.events(job_id)[-1].data == {"code": error.code, "message": error.message}
