"""Shards of a running job: which worker computes them, lost workers, and the end of the job."""

from collections.abc import Collection
from dataclasses import dataclass

import pytest
from sqlalchemy import select

from benchmarks.harness.specs import a_spec
from replaceme_core.errors import LeaseLost
from replaceme_core.hardware import WorkerKind
from replaceme_core.ledger.records import Claim, ShardClaim, ShardPlan
from replaceme_core.ledger.repository import Jobs
from replaceme_core.ledger.session import Database
from replaceme_core.ledger.shards.tables import ShardRow
from replaceme_core.ledger.states import JobStatus, ShardState
from replaceme_core.ledger.tables import JobRow
from replaceme_core.runner.messages import ShardAnswer, ShardsPlanned, Stage
from tests.fixtures.jobs.ledger import Ledger

PLAN = "a" * 32
EXPIRED = -1.0
"""Lease seconds that make a lease expire at once, so that no test waits."""


@dataclass
class Sharded:
    """A running job with shards, and calls of its own worker and of another one."""

    ledger: Ledger
    claim: Claim

    @property
    def job_id(self) -> str:
        return self.claim.job_id

    def plan(self, *, count: int = 4, done: Collection[int] = (), plan: str = PLAN) -> WorkerKind | None:
        with self.ledger.database.session() as session:
            return Jobs(session).shards.plan(self.claim, ShardsPlanned(plan=plan, count=count, done=list(done)))

    def take_next(self, *finished: int) -> ShardAnswer:
        with self.ledger.database.session() as session:
            return Jobs(session).shards.take_next(self.claim, worker="own", finished=finished)

    def try_claim(self, *, lease_seconds: float = 60, plan: str = PLAN, max_attempts: int = 3) -> ShardClaim | None:
        shard_plan = ShardPlan(job_id=self.job_id, plan=plan)
        with self.ledger.database.session() as session:
            return Jobs(session).shards.claim(
                shard_plan, worker="other", lease_seconds=lease_seconds, max_attempts=max_attempts
            )

    def claim_shard(self, *, lease_seconds: float = 60) -> ShardClaim:
        claim = self.try_claim(lease_seconds=lease_seconds)
        assert claim is not None
        return claim

    def finish(self, claim: ShardClaim) -> None:
        with self.ledger.database.session() as session:
            Jobs(session).shards.finish(claim)

    def claim_next(self, claim: ShardClaim) -> ShardClaim | None:
        with self.ledger.database.session() as session:
            return Jobs(session).shards.claim_next(claim, worker="other", lease_seconds=60, max_attempts=3)

    def states(self) -> dict[int, ShardState]:
        with self.ledger.database.session(read_only=True) as session:
            query = select(ShardRow.number, ShardRow.state).where(ShardRow.job_id == self.job_id)
            return {row.number: row.state for row in session.execute(query)}

    def waiting(self) -> list[int]:
        return sorted(number for number, state in self.states().items() if state is ShardState.WAITING)

    def news(self) -> list[object]:
        shards = [event.data.get("shards") for event in self.ledger.events(self.job_id) if event.type == "stage"]
        return [each["news"] for each in shards if isinstance(each, dict)]


@pytest.fixture
def sharded(database: Database) -> Sharded:
    ledger = Ledger(database)
    claim = ledger.claim(ledger.add())
    with database.session() as session:
        Jobs(session).record_progress(claim, stage=Stage.CALIBRATE, overall=0.1, fraction=0, eta_seconds=None)
    return Sharded(ledger, claim)


def test_the_jobs_own_worker_alone_computes_all_in_order(sharded: Sharded) -> None:
    assert sharded.plan() is None
    answers = [sharded.take_next()]
    while (number := answers[-1].number) is not None:
        answers.append(sharded.take_next(number))
    assert [answer.number for answer in answers] == [0, 1, 2, 3, None]
    assert [answer.done for answer in answers] == [0, 1, 2, 3, 4]
    assert sharded.news() == ["planned", "done"]


def test_two_workers_share_and_no_shard_is_computed_twice(sharded: Sharded) -> None:
    sharded.plan()
    other = sharded.claim_shard()
    assert (other.number, other.attempt) == (0, 1)
    assert sharded.take_next().number == 1
    sharded.finish(other)
    again = sharded.claim_next(other)
    assert again is not None
    assert (again.number, again.token) == (2, other.token)
    assert sharded.take_next(1) == ShardAnswer(number=3, done=2, count=4)
    sharded.finish(again)
    assert sharded.claim_next(again) is None
    assert sharded.take_next(3) == ShardAnswer(number=None, done=4, count=4)
    done = sharded.ledger.events(sharded.job_id)[-1].data["shards"]
    assert done == {"news": "done", "count": 4, "workers": {"own": 2, "other": 2}}


def test_only_a_lost_shard_is_computed_again(sharded: Sharded) -> None:
    """By the job's own worker, without a sweep. The worker whose lease has expired cannot write any more."""
    sharded.plan(count=3)
    first = sharded.claim_shard()
    sharded.finish(first)
    lost = sharded.claim_shard(lease_seconds=EXPIRED)
    assert sharded.take_next().number == 1 == lost.number
    with pytest.raises(LeaseLost):
        sharded.finish(lost)
    with pytest.raises(LeaseLost), sharded.ledger.database.session() as session:
        Jobs(session).shards.renew(lost, lease_seconds=60)
    assert sharded.states()[0] is ShardState.DONE
    assert sharded.news() == ["planned", "lost"]
    (data,) = (event.data for event in sharded.ledger.events(sharded.job_id) if "lost" in str(event.data))
    assert data == {"stage": "calibrate", "shards": {"news": "lost", "number": 1, "worker": "other"}}


def test_the_sweep_requeues_shards_and_collects_wake_ups(sharded: Sharded) -> None:
    sharded.plan(count=2)
    sharded.claim_shard(lease_seconds=EXPIRED)
    sharded.claim_shard()
    with sharded.ledger.database.session() as session:
        assert Jobs(session).shards.requeue_expired(limit=10) == [(sharded.job_id, 0)]
        assert Jobs(session).shards.requeue_expired(limit=10) == []
    for expected in ([sharded.job_id], []):
        with sharded.ledger.database.session() as session:
            wake_ups = Jobs(session).shards.collect_wake_ups(older_than_seconds=60, limit=10, max_attempts=3)
        assert [wake_up.job_id for wake_up in wake_ups] == expected
    assert sharded.waiting() == [0]


def test_a_shard_that_is_lost_often_is_left_to_the_jobs_own_worker(sharded: Sharded) -> None:
    sharded.plan(count=1)
    for _ in range(3):
        sharded.claim_shard(lease_seconds=EXPIRED)
        with sharded.ledger.database.session() as session:
            Jobs(session).shards.requeue_expired(limit=10)
    assert sharded.try_claim() is None
    with sharded.ledger.database.session() as session:
        assert Jobs(session).shards.open_plans(max_attempts=3) == []
        assert Jobs(session).shards.collect_wake_ups(older_than_seconds=0, limit=9, max_attempts=3) == []
    assert sharded.take_next().number == 0


@pytest.mark.parametrize(("counts", "attempt"), [(True, 2), (False, 1)])
def test_a_released_shard_waits_again(sharded: Sharded, counts: bool, attempt: int) -> None:
    sharded.plan(count=1)
    claim = sharded.claim_shard()
    with sharded.ledger.database.session() as session:
        Jobs(session).shards.release(claim, reason="shut down", counts=counts)
        Jobs(session).shards.release(claim, reason="again", counts=counts)  # changes nothing
    assert sharded.waiting() == [0]
    assert sharded.claim_shard().attempt == attempt
    assert sharded.news() == ["planned", "given back"]


def test_another_attempt_resumes_the_same_plan(sharded: Sharded) -> None:
    """Existing results count as done. A shard that another worker still computes stays with that worker."""
    sharded.plan()
    mine, other = sharded.take_next().number, sharded.claim_shard()
    assert (mine, other.number) == (0, 1)
    sharded.ledger.release(sharded.claim)
    sharded.claim = sharded.ledger.claim(sharded.job_id)
    sharded.plan(done=[3])
    assert sharded.states() == {
        0: ShardState.WAITING,
        1: ShardState.RUNNING,
        2: ShardState.WAITING,
        3: ShardState.DONE,
    }
    sharded.finish(other)
    assert sharded.take_next() == ShardAnswer(number=0, done=2, count=4)


def test_another_plan_replaces_all_shards(sharded: Sharded) -> None:
    sharded.plan()
    other = sharded.claim_shard()
    sharded.plan(plan="b" * 32)
    assert sharded.waiting() == [0, 1, 2, 3]
    with pytest.raises(LeaseLost):
        sharded.finish(other)
    assert sharded.try_claim() is None
    assert sharded.try_claim(plan="b" * 32) is not None


@pytest.mark.parametrize("end", [JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELLED])
def test_shards_are_deleted_with_the_end_of_their_job(sharded: Sharded, end: JobStatus) -> None:
    sharded.plan()
    other = sharded.claim_shard()
    match end:
        case JobStatus.SUCCEEDED:
            sharded.ledger.succeed(sharded.claim)
        case JobStatus.FAILED:
            sharded.ledger.fail(sharded.claim)
        case _:
            sharded.ledger.cancel(sharded.job_id)
            with sharded.ledger.database.session() as session:
                assert Jobs(session).shards.renew(other, lease_seconds=60), "the next renewal reports a cancel request"
                assert Jobs(session).shards.open_plans(max_attempts=3) == []
            sharded.ledger.finish_cancelled(sharded.claim)
    assert sharded.states() == {}
    with sharded.ledger.database.session() as session:
        assert Jobs(session).shards.is_obsolete(other)
    with pytest.raises(LeaseLost):
        sharded.finish(other)


def test_shards_of_a_job_finished_by_a_version_without_shards_are_deleted(sharded: Sharded) -> None:
    sharded.plan()
    kept = sharded.ledger.claim(sharded.ledger.add())
    with sharded.ledger.database.session() as session:
        Jobs(session).shards.plan(kept, ShardsPlanned(plan=PLAN, count=1, done=[]))
        row = session.scalars(select(JobRow).where(JobRow.id == sharded.job_id)).one()
        row.status, row.finished_at, row.error_code = JobStatus.FAILED, row.created_at, "internal_error"
    with sharded.ledger.database.session() as session:
        Jobs(session).shards.delete_orphaned()
        assert set(session.scalars(select(ShardRow.job_id))) == {kept.job_id}


def test_a_worker_sees_the_plans_for_its_kind(sharded: Sharded) -> None:
    gpu = sharded.ledger.claim(sharded.ledger.add_spec(a_spec(compute={"device": "cuda"}, priority=9)))
    queued = ShardsPlanned(plan="c" * 32, count=2, done=[])
    sharded.plan()
    with sharded.ledger.database.session() as session:
        assert Jobs(session).shards.plan(gpu, queued) is WorkerKind.GPU
        found = [plan.job_id for plan in Jobs(session).shards.open_plans(max_attempts=3)]
        served = [
            plan.job_id for plan in Jobs(session).shards.open_plans(max_attempts=3, worker_kinds=[WorkerKind.CPU])
        ]
        assert not Jobs(session).has_startable_job()
    assert found == [gpu.job_id, sharded.job_id]
    assert served == [sharded.job_id]
    sharded.ledger.add()
    with sharded.ledger.database.session() as session:
        assert Jobs(session).has_startable_job(worker_kinds=[WorkerKind.CPU])


def test_a_worker_that_lost_the_job_cannot_plan_or_take_shards(sharded: Sharded) -> None:
    sharded.ledger.release(sharded.claim)
    with pytest.raises(LeaseLost):
        sharded.plan()
    with pytest.raises(LeaseLost):
        sharded.take_next()


def test_the_number_of_shards_is_a_part_of_the_specification_but_not_of_its_json(database: Database) -> None:
    spec = a_spec(compute={"shards": 4})
    ledger = Ledger(database)
    job_id = ledger.add_spec(spec)
    assert ledger.get(job_id).spec == spec
    claim = ledger.claim(job_id)
    resolved = spec.model_copy(update={"compute": spec.compute.model_copy(update={"shards": 2, "device": "cpu"})})
    with database.session() as session:
        Jobs(session).record_spec(claim, resolved)
        stored = session.scalars(select(JobRow.spec).where(JobRow.id == job_id)).one()
    assert ledger.get(job_id).spec == resolved
    assert "shards" not in str(stored), "the version before refuses what it does not know"
