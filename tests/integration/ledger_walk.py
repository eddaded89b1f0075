"""A model of the ledger in a few lines of Python, and walks on which jobs come, are claimed and cancelled.

Model and ledger must agree after every step.
"""

from collections import Counter
from dataclasses import dataclass, field

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, multiple, precondition, rule
from sqlalchemy import delete, update

from replaceme_core.errors import IdempotencyKeyReused, StaleTransition
from replaceme_core.jobs.clock import now
from replaceme_core.jobs.repository import Claim, Jobs, Once
from replaceme_core.jobs.session import Database
from replaceme_core.jobs.states import TERMINAL, JobStatus
from replaceme_core.jobs.tables import IdempotencyKeyRow, JobRow
from replaceme_core.progress import Stage
from tests.builders import a_spec
from tests.integration.ledger_cases import Ledger

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


class Walk(RuleBasedStateMachine):
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
