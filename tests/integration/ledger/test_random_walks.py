"""Random walks over the whole life of jobs: claims, lost workers, cancels, deadlines."""

from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import rule, run_state_machine_as_test
from sqlalchemy import update
from sqlalchemy.orm import Session

from benchmarks.harness.specs import a_spec
from replaceme_core.errors import LeaseLost, StaleTransition
from replaceme_core.ledger import attempts
from replaceme_core.ledger.database import Database, now
from replaceme_core.ledger.records import Claim
from replaceme_core.ledger.states import TERMINAL, JobStatus
from replaceme_core.ledger.sweep import collect_wake_ups, fail_overdue, requeue_expired
from replaceme_core.ledger.tables import JobRow
from replaceme_core.runner.messages import Measured, Stage
from tests.fixtures.jobs.random_walk import Walk

MAX_ATTEMPTS = 3


class LedgerMachine(Walk):
    def _finish(self, claim: Claim, do: Callable[[Claim], None], status: JobStatus) -> None:
        model = self.models[claim.job_id]
        if self._holds(claim):
            do(claim)
            model.finish(status)
        else:
            finished_by_this = model.status in TERMINAL and model.claim == claim
            with pytest.raises(StaleTransition if finished_by_this else LeaseLost):
                do(claim)

    @rule(claim=Walk.claims, status=st.sampled_from(sorted(TERMINAL)))
    def finish(self, claim: Claim, status: JobStatus) -> None:
        ways = {
            JobStatus.SUCCEEDED: self.ledger.succeed,
            JobStatus.FAILED: self.ledger.fail,
            JobStatus.CANCELLED: self.ledger.finish_cancelled,
        }
        self._finish(claim, ways[status], status)
        self.renew(claim, False)  # a claim that has finished its job is no longer held

    @rule(claim=Walk.claims)
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

    @rule(claim=Walk.claims, expired=st.booleans())
    def renew_lease(self, claim: Claim, expired: bool) -> None:
        self.renew(claim, expired)

    def renew(self, claim: Claim, expired: bool) -> None:
        seconds = -1 if expired else 600
        model = self.models[claim.job_id]
        if self._write(
            claim, lambda session: self._agree(attempts.renew(session, claim, lease_seconds=seconds), claim)
        ):
            model.expired = expired

    def _agree(self, cancel_requested: bool, claim: Claim) -> None:
        assert cancel_requested is self.models[claim.job_id].cancel_requested

    @rule(claim=Walk.claims, stage=st.sampled_from([Stage.SELECT, Stage.SOLVE]))
    def progress(self, claim: Claim, stage: Stage) -> None:
        model = self.models[claim.job_id]
        if (
            self._write(
                claim,
                lambda session: attempts.record_progress(
                    session, claim, stage=stage, overall=0.5, fraction=0.5, eta_seconds=None
                ),
            )
            and model.stage is not stage
        ):
            model.stage = stage
            model.history.append("stage")

    @rule(claim=Walk.claims)
    def measure(self, claim: Claim) -> None:
        model = self.models[claim.job_id]
        one = Measured(stage=Stage.SOLVE, name="residual", value=0.5, unit="1")
        if self._write(claim, lambda session: attempts.add_metrics(session, claim, [one])):
            model.metrics[model.attempt] = model.metrics.get(model.attempt, 0) + 1

    @rule(claim=Walk.claims)
    def resolve(self, claim: Claim) -> None:
        labels = {"team": self.models[claim.job_id].team}
        self._write(claim, lambda session: attempts.record_spec(session, claim, a_spec(labels=labels)))

    @rule(claim=Walk.claims)
    def assert_held(self, claim: Claim) -> None:
        held = self._holds(claim) and not self.models[claim.job_id].expired
        with self.database.session() as session:
            if held:
                attempts.assert_held(session, claim)
            else:
                with pytest.raises(LeaseLost):
                    attempts.assert_held(session, claim)

    @rule(target=Walk.claims, claim=Walk.claims)
    def hand_over(self, claim: Claim) -> object:
        """A worker is lost, the sweep requeues its job, and another worker claims it: the first claim is old now."""
        self.renew(claim, True)
        self.requeue_expired()
        return self.claim(claim.job_id)

    @rule(pause=st.booleans())
    def sweep(self, pause: bool) -> None:
        self.requeue_expired(pause=pause)

    @rule(job_id=Walk.jobs)
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

    @rule(job_id=Walk.jobs)
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
        queued = [
            job_id
            for job_id, model in self.models.items()
            if model.status is JobStatus.QUEUED and not model.overdue and not model.pauses
        ]
        with self.database.session() as session:
            wake_ups = collect_wake_ups(session, older_than_seconds=-1, limit=100)
            assert [wake_up.job_id for wake_up in wake_ups] == queued


def test_random_walks(database: Database) -> None:
    with database.session() as session:
        is_sqlite = session.connection().dialect.name == "sqlite"
    run_state_machine_as_test(
        lambda: LedgerMachine(database),
        settings=settings(
            max_examples=20 if is_sqlite else 8,
            stateful_step_count=30,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
