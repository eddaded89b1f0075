"""A worker that computes shards of another worker's job: what it takes, when it stops, and what remains."""

import json
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import select

from benchmarks.harness.processes import wait_until
from benchmarks.harness.servers import free_port
from replaceme_core.hardware import WorkerKind
from replaceme_core.ledger.records import Claim
from replaceme_core.ledger.repository import Jobs
from replaceme_core.ledger.session import Database
from replaceme_core.ledger.shards.tables import ShardRow
from replaceme_core.ledger.states import ShardState
from replaceme_core.runner.confinement import UNCONFINED
from replaceme_core.runner.messages import PLAN_FILE, ShardsPlanned, ShardWanted
from tests.fixtures.jobs.ledger import claim_job
from tests.fixtures.worker.supervisor import Bench
from worker.progress_writer import ProgressWriter
from worker.shards.coordinator import ShardCoordinator
from worker.shards.helper import ShardHelper
from worker.workspace import shards_of

PLAN = "a" * 32
HELPER = """
import json, sys, time
request = json.loads(sys.stdin.readline())
number = None
while True:
    print(json.dumps({"type": "shard_wanted", "finished": number}), flush=True)
    number = json.loads(sys.stdin.readline())["number"]
    if number is None:
        break
    time.sleep(SECONDS)
print(json.dumps({"type": "shards_ended"}), flush=True)
"""
BROKEN = 'print("{\\"type\\": \\"failed\\", \\"code\\": \\"out_of_memory\\", \\"message\\": \\"too large\\"}")'


class Shared(Bench):
    """With a job whose own worker has planned four shards and left a plan file that is visible here."""

    def begin(self, *, seen: str = PLAN) -> Claim:
        job_id = self.add()
        with self.database.session() as session:
            claim = claim_job(session, job_id, worker="own", lease_seconds=60)
            Jobs(session).shards.plan(claim, ShardsPlanned(plan=PLAN, count=4, done=[]))
        place = shards_of(self.settings.workspace, job_id)
        place.mkdir(parents=True)
        (place / PLAN_FILE).write_text(json.dumps({"plan": seen}))
        return claim

    def helper(self, runner: str, *, seconds: float = 0, drains: Callable[[], bool] = lambda: False) -> ShardHelper:
        command = (sys.executable, "-c", runner.replace("SECONDS", str(seconds)))
        return ShardHelper(
            settings=self.settings.model_copy(update={"runner_command": command}),
            confinement=UNCONFINED,
            database=self.database,
            open_hub=lambda: self.hub,
            worker="other",
            worker_kinds=None,
            is_draining=drains,
            must_release=drains if seconds else lambda: False,
        )

    def states(self) -> list[str]:
        with self.database.session(read_only=True) as session:
            return [state.value for state in session.scalars(select(ShardRow.state).order_by(ShardRow.number))]

    def attempts(self) -> list[int]:
        with self.database.session(read_only=True) as session:
            return list(session.scalars(select(ShardRow.attempt).order_by(ShardRow.number)))


@pytest.fixture
def bench(tmp_path: Path, sqlite_url: str, sqlite_database: Database) -> Shared:
    return Shared(tmp_path, sqlite_url, sqlite_database)


def test_it_takes_one_shard_after_the_other(bench: Shared) -> None:
    bench.begin()
    bench.helper(HELPER).run()
    assert bench.states() == ["done"] * 4
    assert bench.attempts() == [1] * 4
    assert [path.name for path in bench.remaining] == ["checkpoints"]


def test_a_waiting_job_comes_first(bench: Shared) -> None:
    bench.begin()
    bench.add()
    bench.helper(HELPER).run()
    assert bench.states() == ["done", "waiting", "waiting", "waiting"]


def test_a_worker_that_is_shutting_down_takes_no_further_shard(bench: Shared) -> None:
    bench.begin()
    bench.helper(HELPER, drains=lambda: True).run()
    assert bench.states() == ["done", "waiting", "waiting", "waiting"]


def test_a_shard_released_at_shutdown_costs_no_attempt(bench: Shared) -> None:
    bench.begin()
    over = threading.Event()
    work = threading.Thread(target=bench.helper(HELPER, seconds=60, drains=over.is_set).run)
    work.start()
    wait_until(lambda: "running" in bench.states(), seconds=10, what="a shard at work")
    over.set()
    work.join(timeout=20)
    assert not work.is_alive()
    assert (bench.states(), bench.attempts()) == (["waiting"] * 4, [0] * 4)


@pytest.mark.parametrize("seen", ["b" * 32, ""])
def test_without_the_plan_file_nothing_is_taken(bench: Shared, seen: str) -> None:
    bench.begin(seen=seen)
    bench.helper(HELPER).run()
    assert (bench.states(), bench.attempts()) == (["waiting"] * 4, [0] * 4)


def test_a_shard_that_fails_waits_and_is_not_retried_here(bench: Shared) -> None:
    claim = bench.begin()
    helper = bench.helper(BROKEN)
    for _ in range(2):
        helper.run()
        assert (bench.states(), bench.attempts()) == (["waiting"] * 4, [1, 0, 0, 0])
    with bench.database.session(read_only=True) as session:
        event = Jobs(session).events(claim.job_id).items[-1].data["shards"]
    assert event == {"news": "given back", "number": 0, "reason": "too large"}
    assert bench.job(claim.job_id).error is None


@pytest.mark.parametrize("how", ["cancelled", "requeued"])
def test_it_stops_when_the_shard_is_no_longer_needed(bench: Shared, how: str) -> None:
    claim = bench.begin()
    bench.settings = bench.settings.model_copy(update={"lease_seconds": 3.0, "cancel_grace_seconds": 1.0})
    work = threading.Thread(target=bench.helper(HELPER, seconds=60).run)
    work.start()
    wait_until(lambda: "running" in bench.states(), seconds=10, what="a shard at work")
    with bench.database.session() as session:
        if how == "cancelled":
            Jobs(session).request_cancel(claim.job_id)
        else:
            row = session.scalars(select(ShardRow).where(ShardRow.state == ShardState.RUNNING)).one()
            row.lease_token = "someone-else"
    began = time.monotonic()
    work.join(timeout=20)
    assert not work.is_alive()
    assert time.monotonic() - began < 10
    assert [path.name for path in bench.remaining] == ["checkpoints"]


def coordinator_for(bench: Shared, database: Database, claim: Claim, enqueued: list[str]) -> ShardCoordinator:
    class Quiet(ProgressWriter):
        def __init__(self) -> None:
            pass

        def flush(self, then: Callable[[Jobs], None] | None = None) -> None:
            with database.session() as session:
                assert then is not None
                then(Jobs(session))

    def enqueue(job_id: str, worker_kind: WorkerKind | None) -> None:
        enqueued.append(job_id)

    return ShardCoordinator(database, claim, progress=Quiet(), worker="own", enqueue=enqueue)


def test_planning_sends_a_message_for_each_shard_but_one(bench: Shared) -> None:
    claim, enqueued = bench.begin(), list[str]()
    coordinator = coordinator_for(bench, bench.database, claim, enqueued)
    answer = coordinator.answer(ShardsPlanned(plan=PLAN, count=4, done=[3]))
    assert (answer.number, answer.done, answer.count) == (None, 1, 4)
    assert enqueued == [claim.job_id] * 2
    assert coordinator.answer(ShardWanted()).number == 0
    assert coordinator.answer(ShardWanted(finished=0)).number == 1


def test_what_an_unreachable_database_missed_is_written_later(bench: Shared, monkeypatch: pytest.MonkeyPatch) -> None:
    claim, enqueued = bench.begin(), list[str]()
    unreachable = Database(f"postgresql+psycopg://nobody@127.0.0.1:{free_port()}/none")
    coordinator = coordinator_for(bench, bench.database, claim, enqueued)
    coordinator.answer(ShardsPlanned(plan=PLAN, count=4, done=[]))
    assert coordinator.answer(ShardWanted()).number == 0
    monkeypatch.setattr(coordinator, "_database", unreachable)
    assert coordinator.answer(ShardWanted(finished=0)).number is None
    assert coordinator.answer(ShardWanted()).number is None
    monkeypatch.setattr(coordinator, "_database", bench.database)
    answer = coordinator.answer(ShardWanted())
    assert (answer.number, answer.done) == (1, 1)
    unreachable.close()
