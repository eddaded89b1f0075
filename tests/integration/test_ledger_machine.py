"""A model of the ledger in a few lines of Python, and random walks on which both must agree after every step."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    invariant,
    multiple,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import delete, update

from replaceme_core.errors import IdempotencyKeyReused, LeaseLost, StaleTransition
from replaceme_core.jobs.clock import now
from replaceme_core.jobs.repository import Claim, Jobs, Once
from replaceme_core.jobs.session import Database
from replaceme_core.jobs.states import TERMINAL, JobStatus
from replaceme_core.jobs.tables import IdempotencyKeyRow, JobRow
from replaceme_core.progress import Measured, Stage
from tests.builders import a_spec
from tests.integration.ledger_cases import Ledger

MAX_ATTEMPTS = 3
MOST_ACTIVE = 3
"""Few, so that a walk comes back to the same job with an old claim."""

LIMITS = st.sampled_from([None, 600.0])
OWNERS = st.sampled_from(["ada", "bob"])
PRIORITIES = st.sampled_from([4, 5])


@dataclass
class Model:
    """What a job should be."""

    team: str
    owner: str
    priority: int
    number: int
    status: JobStatus = JobStatus.QUEUED
    attempt: int = 0
    stage: Stage | None = None
    cancel_requested: bool = False
    lapsed: bool = False
    max_queue_seconds: float | None = None
    max_runtime_seconds: float | None = None
    overdue: bool = False
    pauses: bool = False
    holder: Claim | None = None
    """Who holds the job, or finished it."""
    history: list[str] = field(default_factory=lambda: ["created"])
    metrics: dict[int, int] = field(default_factory=dict)

    @property
    def has_deadline(self) -> bool:
        return (self.max_runtime_seconds if self.attempt else self.max_queue_seconds) is not None

    def finish(self, status: JobStatus) -> None:
        self.status = status
        self.history.append(status.value)


class LedgerMachine(RuleBasedStateMachine):
    jobs = Bundle("jobs")
    claims = Bundle("claims")

    def __init__(self, database: Database) -> None:
        super().__init__()
        self.database = database
        self.ledger = Ledger(database)
        self.models: dict[str, Model] = {}
        self.served: dict[str, int] = {}
        """Larger for the owner who had a job started later."""
        self.keys: dict[tuple[str, str], tuple[str, str]] = {}

    def teardown(self) -> None:
        with self.database.session() as session:
            session.execute(delete(JobRow))

    @precondition(lambda self: sum(model.status not in TERMINAL for model in self.models.values()) < MOST_ACTIVE)
    @rule(
        target=jobs,
        team=st.sampled_from(["red", "blue"]),
        owner=OWNERS,
        priority=PRIORITIES,
        queue=LIMITS,
        runtime=LIMITS,
    )
    def add(self, team: str, owner: str, priority: int, queue: float | None, runtime: float | None) -> str:
        return self._add(team, owner, priority, queue, runtime, once=None)

    @precondition(lambda self: sum(model.status not in TERMINAL for model in self.models.values()) < MOST_ACTIVE)
    @rule(target=jobs, owner=OWNERS, key=st.sampled_from("xy"), priority=PRIORITIES)
    def add_once(self, owner: str, key: str, priority: int) -> object:
        once = Once(key=key, fingerprint=str(priority), keep_seconds=600)
        earlier = self.keys.get((owner, key))
        if earlier is None:
            job_id = self._add("red", owner, priority, None, None, once=once)
            self.keys[owner, key] = job_id, once.fingerprint
            return job_id
        if earlier[1] == once.fingerprint:
            assert self.ledger.add_spec(a_spec(priority=priority), owner=owner, once=once) == earlier[0]
        else:
            with pytest.raises(IdempotencyKeyReused):
                self.ledger.add_spec(a_spec(priority=priority), owner=owner, once=once)
        return multiple()

    def _add(
        self, team: str, owner: str, priority: int, queue: float | None, runtime: float | None, *, once: Once | None
    ) -> str:
        limits = {"max_queue_seconds": queue, "max_runtime_seconds": runtime}
        spec = a_spec(labels={"team": team}, priority=priority, **limits)
        job_id = self.ledger.add_spec(spec, owner=owner, once=once)
        self.models[job_id] = Model(team=team, owner=owner, priority=priority, number=len(self.models), **limits)
        return job_id

    @rule(key=st.sampled_from("xy"), owner=OWNERS)
    def forget_key(self, key: str, owner: str) -> None:
        kept = self.keys.pop((owner, key), None)
        with self.database.session() as session:
            session.execute(
                update(IdempotencyKeyRow)
                .where(IdempotencyKeyRow.key == key, IdempotencyKeyRow.owner == owner)
                .values(expires_at=now(plus_seconds=-1))
            )
            assert Jobs(session).forget_keys(limit=100) == (kept is not None)

    def _turn(self) -> str | None:
        """The job whose turn it is."""
        running = Counter(model.owner for model in self.models.values() if model.status is JobStatus.RUNNING)
        waiting = [
            (-model.priority, running[model.owner], self.served.get(model.owner, 0), model.number, job_id)
            for job_id, model in self.models.items()
            if model.status is JobStatus.QUEUED and not model.overdue and not model.pauses
        ]
        return min(waiting)[-1] if waiting else None

    @rule(target=claims)
    def claim_next(self) -> object:
        expected = self._turn()
        with self.database.session() as session:
            claim = Jobs(session).claim_next(worker="w", lease_seconds=60)
        if expected is None:
            assert claim is None
            return multiple()
        assert claim is not None
        assert claim.job_id == expected
        return self._claimed(claim)

    @rule(target=claims, job_id=jobs)
    def claim_this(self, job_id: str) -> object:
        return self.claim(job_id)

    def claim(self, job_id: str) -> object:
        model = self.models[job_id]
        if model.status is not JobStatus.QUEUED:
            with pytest.raises(StaleTransition):
                self.ledger.claim(job_id)
            return multiple()
        return self._claimed(self.ledger.claim(job_id))

    def _claimed(self, claim: Claim) -> Claim:
        model = self.models[claim.job_id]
        assert model.status is JobStatus.QUEUED
        model.status, model.holder, model.lapsed, model.stage = JobStatus.RUNNING, claim, False, None
        model.pauses = False
        if model.attempt == 0:
            self.served[model.owner] = 1 + len(self.served) + max(self.served.values(), default=0)
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
            model.holder = None
            model.finish(JobStatus.CANCELLED)

    def _holds(self, claim: Claim) -> bool:
        model = self.models[claim.job_id]
        return model.status is JobStatus.RUNNING and model.holder == claim

    def _finish(self, claim: Claim, do: Callable[[Claim], None], status: JobStatus) -> None:
        model = self.models[claim.job_id]
        if self._holds(claim):
            do(claim)
            model.finish(status)
        else:
            finished_by_this = model.status in TERMINAL and model.holder == claim
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
        self.renew(claim, False)  # whoever finished a job does not hold it either

    @rule(claim=claims)
    def release(self, claim: Claim) -> None:
        model = self.models[claim.job_id]
        if self._holds(claim) and not model.cancel_requested:
            self.ledger.release(claim)
            model.status, model.holder, model.stage = JobStatus.QUEUED, None, None
            model.history.append("released")
        else:
            self._finish(claim, self.ledger.release, JobStatus.CANCELLED)

    def _write(self, claim: Claim, do: Callable[[Jobs], object]) -> bool:
        if self._holds(claim):
            with self.database.session() as session:
                do(Jobs(session))
            return True
        with pytest.raises(LeaseLost), self.database.session() as session:
            do(Jobs(session))
        return False

    @rule(claim=claims, lapsed=st.booleans())
    def renew_lease(self, claim: Claim, lapsed: bool) -> None:
        self.renew(claim, lapsed)

    def renew(self, claim: Claim, lapsed: bool) -> None:
        seconds = -1 if lapsed else 600
        model = self.models[claim.job_id]
        if self._write(claim, lambda jobs: self._agree(jobs.renew(claim, lease_seconds=seconds), claim)):
            model.lapsed = lapsed

    def _agree(self, cancel_requested: bool, claim: Claim) -> None:
        assert cancel_requested is self.models[claim.job_id].cancel_requested

    @rule(claim=claims, stage=st.sampled_from([Stage.SELECT, Stage.SOLVE]))
    def progress(self, claim: Claim, stage: Stage) -> None:
        model = self.models[claim.job_id]
        if (
            self._write(
                claim,
                lambda jobs: jobs.record_progress(claim, stage=stage, overall=0.5, fraction=0.5, eta_seconds=None),
            )
            and model.stage is not stage
        ):
            model.stage = stage
            model.history.append("stage")

    @rule(claim=claims)
    def measure(self, claim: Claim) -> None:
        model = self.models[claim.job_id]
        one = Measured(stage=Stage.SOLVE, name="residual", value=0.5, unit="1")
        if self._write(claim, lambda jobs: jobs.add_metrics(claim, [one])):
            model.metrics[model.attempt] = model.metrics.get(model.attempt, 0) + 1

    @rule(claim=claims)
    def resolve(self, claim: Claim) -> None:
        labels = {"team": self.models[claim.job_id].team}
        self._write(claim, lambda jobs: jobs.record_spec(claim, a_spec(labels=labels)))

    @rule(claim=claims)
    def assert_held(self, claim: Claim) -> None:
        held = self._holds(claim) and not self.models[claim.job_id].lapsed
        with self.database.session() as session:
            if held:
                Jobs(session).assert_held(claim)
            else:
                with pytest.raises(LeaseLost):
                    Jobs(session).assert_held(claim)

    @rule(target=claims, claim=claims)
    def hand_over(self, claim: Claim) -> object:
        """A worker is lost, the sweep comes by, and another worker goes on: the first one's claim is old now."""
        self.renew(claim, True)
        self.take_back()
        return self.claim(claim.job_id)

    @rule(pause=st.booleans())
    def sweep(self, pause: bool) -> None:
        self.take_back(pause=pause)

    @rule(job_id=jobs)
    def pause_ends(self, job_id: str) -> None:
        self.models[job_id].pauses = False
        with self.database.session() as session:
            session.execute(update(JobRow).where(JobRow.id == job_id).values(not_before=now(plus_seconds=-1)))

    def take_back(self, *, pause: bool = False) -> None:
        expected = set()
        for job_id, model in self.models.items():
            if model.status is not JobStatus.RUNNING or not model.lapsed:
                continue
            model.history.append("lease_lapsed")
            model.holder = None
            if model.cancel_requested:
                model.finish(JobStatus.CANCELLED)
            elif model.attempt >= MAX_ATTEMPTS:
                model.finish(JobStatus.FAILED)
            else:
                model.status, model.stage, model.pauses = JobStatus.QUEUED, None, pause
                expected.add(job_id)
        with self.database.session() as session:
            taken_back = Jobs(session).take_back_lapsed(
                max_attempts=MAX_ATTEMPTS, limit=100, backoff_seconds=600.0 if pause else 0.0
            )
        assert set(taken_back) == expected

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
                model.holder = None
                model.finish(JobStatus.FAILED)
                expected.add(job_id)
        with self.database.session() as session:
            assert set(Jobs(session).fail_overdue(limit=100)) == expected

    @rule()
    def ring(self) -> None:
        queued = [
            job_id
            for job_id, model in self.models.items()
            if model.status is JobStatus.QUEUED and not model.overdue and not model.pauses
        ]
        with self.database.session() as session:
            due = Jobs(session).due_for_ringing(older_than_seconds=-1, limit=100)
            assert [ring.job_id for ring in due] == queued

    @invariant()
    def agrees(self) -> None:
        with self.database.session(read_only=True) as session:
            jobs = Jobs(session)
            newest_first = list(self.models)[::-1]
            assert [job.id for job in jobs.page(limit=100).items] == newest_first
            active = {one for one, model in self.models.items() if model.status not in TERMINAL}
            assert jobs.active_among(list(self.models)) == active
            for team in ("red", "blue"):
                of_team = [one for one in newest_first if self.models[one].team == team]
                assert [job.id for job in jobs.page(limit=100, labels={"team": team}).items] == of_team
            for job_id, model in self.models.items():
                job, events = jobs.get(job_id), jobs.events(job_id, limit=1000).items
                assert (job.status, job.attempt, job.stage, job.cancel_requested) == (
                    model.status,
                    model.attempt,
                    model.stage,
                    model.cancel_requested,
                )
                assert [event.type.value for event in events] == model.history
                assert [event.seq for event in events] == list(range(1, len(events) + 1))
                assert len(jobs.metrics(job_id)) == model.metrics.get(model.attempt, 0)
                assert (jobs.place(job_id) is not None) is (model.status is JobStatus.QUEUED)
                assert (job.finished_at is not None) is (model.status in TERMINAL)
                assert (job.result is not None) is (model.status is JobStatus.SUCCEEDED)
                assert (job.error is not None) is (model.status is JobStatus.FAILED)


def test_random_walks(database: Database) -> None:
    run_state_machine_as_test(
        lambda: LedgerMachine(database),
        settings=settings(
            max_examples=30,
            stateful_step_count=30,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
