"""Random walks over the whole life of jobs: claims, lost workers, cancels, deadlines.

A model of the ledger in plain Python agrees with it after every step.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, multiple, precondition, rule
from hypothesis.stateful import run_state_machine_as_test as run_walks
from sqlalchemy import delete, update
from sqlalchemy.orm import Session

from benchmarks.harness.specs import a_spec
from replaceme_core.errors import LeaseLost, StaleTransition
from replaceme_core.ledger import attempts, reading, scheduling
from replaceme_core.ledger.database import Database, now
from replaceme_core.ledger.records import Claim
from replaceme_core.ledger.states import TERMINAL, JobStatus
from replaceme_core.ledger.sweep import collect_wake_ups, fail_overdue, requeue_expired
from replaceme_core.ledger.tables import JobRow
from replaceme_core.runner.messages import Measured, Stage
from tests.fixtures.jobs.ledger import Ledger

MAX_ACTIVE = 3
"""Few, so that a walk often uses the same job with an old claim."""
MAX_ATTEMPTS = 3
LIMITS = st.sampled_from([None, 600.0])


@dataclass
class Model:
    """The expected state of a job."""

    owner: str
    priority: int
    number: int
    max_queue_seconds: float | None
    max_runtime_seconds: float | None
    status: JobStatus = JobStatus.QUEUED
    attempt: int = 0
    stage: Stage | None = None
    cancel_requested: bool = False
    expired: bool = False
    overdue: bool = False
    pauses: bool = False
    claim: Claim | None = None
    """The claim that holds the job, or has finished it."""
    history: list[str] = field(default_factory=lambda: ["created"])
    metrics: Counter[int] = field(default_factory=Counter)

    @property
    def has_deadline(self) -> bool:
        return (self.max_runtime_seconds if self.attempt else self.max_queue_seconds) is not None

    @property
    def can_start(self) -> bool:
        return self.status is JobStatus.QUEUED and not self.overdue and not self.pauses

    def finish(self, status: JobStatus) -> None:
        self.status = status
        self.history.append(status.value)


class Walk(RuleBasedStateMachine):
    jobs = Bundle("jobs")
    claims = Bundle("claims")

    def __init__(self, database: Database) -> None:
        super().__init__()
        self.database = database
        self.ledger = Ledger(database)
        self.models: dict[str, Model] = {}
        self.served: dict[str, int] = {}
        """Larger for an owner whose last start was later."""

    def teardown(self) -> None:
        with self.database.session() as session:
            session.execute(delete(JobRow))

    @precondition(lambda self: sum(model.status not in TERMINAL for model in self.models.values()) < MAX_ACTIVE)
    @rule(
        target=jobs, owner=st.sampled_from(["ada", "bob"]), priority=st.sampled_from([4, 5]), queue=LIMITS, run=LIMITS
    )
    def add(self, owner: str, priority: int, queue: float | None, run: float | None) -> str:
        limits = {"max_queue_seconds": queue, "max_runtime_seconds": run}
        job_id = self.ledger.add_spec(a_spec(priority=priority, **limits), owner=owner)
        self.models[job_id] = Model(owner=owner, priority=priority, number=len(self.models), **limits)
        return job_id

    @rule(target=claims)
    def claim_next(self) -> object:
        """The highest priority, then the fewest running jobs, then the earliest last start, then the oldest."""
        running = Counter(model.owner for model in self.models.values() if model.status is JobStatus.RUNNING)
        waiting = [
            (-model.priority, running[model.owner], self.served.get(model.owner, 0), model.number, job_id)
            for job_id, model in self.models.items()
            if model.can_start
        ]
        with self.database.session() as session:
            claim = attempts.claim_next(session, worker="w", lease_seconds=60)
        if claim is None:
            assert not waiting
            return multiple()
        assert claim.job_id == min(waiting)[-1]
        return self._claimed(claim)

    @rule(target=claims, job_id=jobs)
    def claim_this(self, job_id: str) -> object:
        if self.models[job_id].status is JobStatus.QUEUED:
            return self._claimed(self.ledger.claim(job_id))
        with pytest.raises(StaleTransition):
            self.ledger.claim(job_id)
        return multiple()

    def _claimed(self, claim: Claim) -> Claim:
        model = self.models[claim.job_id]
        model.status, model.claim, model.expired, model.stage = JobStatus.RUNNING, claim, False, None
        model.pauses = False
        if model.attempt == 0:
            self.served[model.owner] = 1 + max(self.served.values(), default=0)
        model.attempt += 1
        model.overdue = model.overdue and model.attempt > 1  # another deadline begins with the first start
        model.history.append("claimed")
        assert claim.attempt == model.attempt
        return claim

    @rule(job_id=jobs)
    def cancel(self, job_id: str) -> None:
        model = self.models[job_id]
        if model.status in (JobStatus.SUCCEEDED, JobStatus.FAILED):
            with pytest.raises(StaleTransition):
                self.ledger.cancel(job_id)
            return
        self.ledger.cancel(job_id)
        if not model.cancel_requested and model.status is not JobStatus.CANCELLED:
            model.cancel_requested = True
            model.history.append("cancel_requested")
        if model.status is JobStatus.QUEUED:
            model.claim = None
            model.finish(JobStatus.CANCELLED)

    def _holds(self, claim: Claim) -> bool:
        model = self.models[claim.job_id]
        return model.status is JobStatus.RUNNING and model.claim == claim

    @invariant()
    def agrees(self) -> None:
        with self.database.session(read_only=True) as session:
            queue = scheduling.read_queue(session)
            for owner in ("ada", "bob"):
                theirs = [one for one, model in self.models.items() if model.owner == owner][::-1]
                assert [job.id for job in reading.page(session, owner=owner, limit=100).items] == theirs
            for job_id, model in self.models.items():
                job = reading.get(session, job_id, owner=model.owner)
                found = (job.status, job.attempt, job.stage, job.cancel_requested)
                assert found == (model.status, model.attempt, model.stage, model.cancel_requested)
                events = reading.events(session, job_id, limit=1000, owner=model.owner).items
                assert [event.type.value for event in events] == model.history
                assert [event.seq for event in events] == list(range(1, len(events) + 1))
                assert len(reading.metrics(session, job_id, owner=model.owner)) == model.metrics[model.attempt]
                assert (job_id in queue.queued) is (model.status is JobStatus.QUEUED)
                assert (job.finished_at is not None) is (model.status in TERMINAL)
                assert (job.result is not None) is (model.status is JobStatus.SUCCEEDED)
                assert (job.error is not None) is (model.status is JobStatus.FAILED)

    def _finish(self, claim: Claim, do: Callable[[Claim], None], status: JobStatus) -> None:
        model = self.models[claim.job_id]
        if self._holds(claim):
            do(claim)
            model.finish(status)
        else:
            finished_by_this = model.status in TERMINAL and model.claim == claim
            with pytest.raises(StaleTransition if finished_by_this else LeaseLost):
                do(claim)

    @rule(claim=claims, status=st.sampled_from(sorted(TERMINAL)))
    def finish(self, claim: Claim, status: JobStatus) -> None:
        ways = {
            JobStatus.SUCCEEDED: self.ledger.succeed,
            JobStatus.FAILED: self.ledger.fail,
            JobStatus.CANCELLED: self.ledger.finish_cancelled,
        }
        self._finish(claim, ways[status], status)
        self.renew(claim, False)  # a claim that has finished its job is no longer held

    @rule(claim=claims)
    def release(self, claim: Claim) -> None:
        model = self.models[claim.job_id]
        if self._holds(claim) and not model.cancel_requested:
            self.ledger.release(claim)
            model.status, model.claim, model.stage = JobStatus.QUEUED, None, None
            model.history.append("released")
        else:
            self._finish(claim, self.ledger.release, JobStatus.CANCELLED)

    def _write(self, claim: Claim, do: Callable[[Session], object]) -> bool:
        if self._holds(claim):
            with self.database.session() as session:
                do(session)
            return True
        with pytest.raises(LeaseLost), self.database.session() as session:
            do(session)
        return False

    @rule(claim=claims, expired=st.booleans())
    def renew_lease(self, claim: Claim, expired: bool) -> None:
        self.renew(claim, expired)

    def renew(self, claim: Claim, expired: bool) -> None:
        seconds = -1 if expired else 600
        model = self.models[claim.job_id]
        found: list[bool] = []
        if self._write(claim, lambda session: found.append(attempts.renew(session, claim, lease_seconds=seconds))):
            model.expired = expired
            assert found == [model.cancel_requested]

    @rule(claim=claims, stage=st.sampled_from([Stage.SELECT, Stage.SOLVE]))
    def progress(self, claim: Claim, stage: Stage) -> None:
        model = self.models[claim.job_id]
        step = attempts.Step(stage=stage, overall=0.5, fraction=0.5, eta_seconds=None)
        written = self._write(claim, lambda session: attempts.record_progress(session, claim, step))
        if written and model.stage is not stage:
            model.stage = stage
            model.history.append("stage")

    @rule(claim=claims)
    def measure(self, claim: Claim) -> None:
        model = self.models[claim.job_id]
        one = Measured(stage=Stage.SOLVE, name="residual", value=0.5, unit="1")
        if self._write(claim, lambda session: attempts.add_metrics(session, claim, [one])):
            model.metrics[model.attempt] += 1

    @rule(claim=claims)
    def assert_held(self, claim: Claim) -> None:
        held = self._holds(claim) and not self.models[claim.job_id].expired
        with self.database.session() as session:
            if held:
                attempts.assert_held(session, claim)
            else:
                with pytest.raises(LeaseLost):
                    attempts.assert_held(session, claim)

    @rule(target=claims, claim=claims)
    def hand_over(self, claim: Claim) -> object:
        """A worker is lost, the sweep requeues its job, and another worker claims it: the first claim is old now."""
        self.renew(claim, True)
        self.requeue_expired()
        return self.claim_this(claim.job_id)

    @rule(pause=st.booleans())
    def sweep(self, pause: bool) -> None:
        self.requeue_expired(pause=pause)

    @rule(job_id=jobs)
    def pause_ends(self, job_id: str) -> None:
        self.models[job_id].pauses = False
        with self.database.session() as session:
            session.execute(update(JobRow).where(JobRow.id == job_id).values(not_before=now(plus_seconds=-1)))

    def requeue_expired(self, *, pause: bool = False) -> None:
        expected = set()
        for job_id, model in self.models.items():
            if model.status is not JobStatus.RUNNING or not model.expired:
                continue
            model.history.append("lease_lapsed")
            model.claim = None
            if model.cancel_requested:
                model.finish(JobStatus.CANCELLED)
            elif model.attempt >= MAX_ATTEMPTS:
                model.finish(JobStatus.FAILED)
            else:
                model.status, model.stage, model.pauses = JobStatus.QUEUED, None, pause
                expected.add(job_id)
        with self.database.session() as session:
            requeued = requeue_expired(
                session, max_attempts=MAX_ATTEMPTS, limit=100, backoff_seconds=600.0 if pause else 0.0
            )
        assert set(requeued) == expected

    @rule(job_id=jobs)
    def time_passes(self, job_id: str) -> None:
        model = self.models[job_id]
        if model.has_deadline:
            model.overdue = True
            with self.database.session() as session:
                session.execute(update(JobRow).where(JobRow.id == job_id).values(deadline_at=now(plus_seconds=-1)))

    @rule()
    def end_overdue(self) -> None:
        expected = set()
        for job_id, model in self.models.items():
            if model.status is JobStatus.QUEUED and model.overdue:
                model.claim = None
                model.finish(JobStatus.FAILED)
                expected.add(job_id)
        with self.database.session() as session:
            assert set(fail_overdue(session, limit=100)) == expected

    @rule()
    def enqueue(self) -> None:
        queued = [job_id for job_id, model in self.models.items() if model.can_start]
        with self.database.session() as session:
            due = collect_wake_ups(session, older_than_seconds=-1, limit=100)
            assert [job_id for job_id, _ in due] == queued


def test_random_walks(database: Database) -> None:
    with database.session() as session:
        is_sqlite = session.connection().dialect.name == "sqlite"
    run_walks(
        lambda: Walk(database),
        settings=settings(
            max_examples=20 if is_sqlite else 8,
            stateful_step_count=30,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
