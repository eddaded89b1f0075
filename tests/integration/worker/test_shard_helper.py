"""A worker that computes shards of another one's job: what it takes, when it stops, and what it leaves."""

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
from replaceme_core.admission.worker_kind import WorkerKind
from replaceme_core.jobs.records import Claim
from replaceme_core.jobs.repository import Jobs
from replaceme_core.jobs.session import Database
from replaceme_core.jobs.states import ShardState
from replaceme_core.jobs.tables import ShardRow
from replaceme_core.runner.messages import PLAN_FILE, ShardsPlanned, ShardWanted
from tests.fixtures.worker.supervisor import Bench
from worker.progress_writer import Recorder
from worker.shards.coordinator import ShardDesk
from worker.shards.helper import ShardVisits
from worker.workspace import shards_of

PLAN = "a" * 32
VISITOR = """
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
    """With a job whose own worker has planned four shards and left a plan that is seen here."""

    def begin(self, *, seen: str = PLAN) -> Claim:
        job_id = self.add()
        with self.database.session() as session:
            claim = Jobs(session).claim(job_id, worker="own", lease_seconds=60)
            Jobs(session).plan_shards(claim, ShardsPlanned(plan=PLAN, count=4, done=[]))
        place = shards_of(self.settings.workspace, job_id)
        place.mkdir(parents=True)
        (place / PLAN_FILE).write_text(json.dumps({"plan": seen}))
        return claim

    def visits(self, runner: str, *, seconds: float = 0, drains: Callable[[], bool] = lambda: False) -> ShardVisits:
        command = (sys.executable, "-c", runner.replace("SECONDS", str(seconds)))
        return ShardVisits(
            settings=self.settings.model_copy(update={"runner_command": command}),
            database=self.database,
            open_hub=lambda: self.hub,
            worker="other",
            worker_kinds=None,
            takes_no_more=drains,
            is_over=drains if seconds else lambda: False,
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
    bench.visits(VISITOR).visit()
    assert bench.states() == ["done"] * 4
    assert bench.attempts() == [1] * 4
    assert [path.name for path in bench.left_overs] == ["checkpoints"]


def test_a_job_that_waits_comes_first(bench: Shared) -> None:
    bench.begin()
    bench.add()
    bench.visits(VISITOR).visit()
    assert bench.states() == ["done", "waiting", "waiting", "waiting"]


def test_a_worker_on_its_way_down_takes_no_other(bench: Shared) -> None:
    bench.begin()
    bench.visits(VISITOR, drains=lambda: True).visit()
    assert bench.states() == ["done", "waiting", "waiting", "waiting"]


def test_what_is_given_back_at_a_shutdown_costs_no_attempt(bench: Shared) -> None:
    bench.begin()
    over = threading.Event()
    work = threading.Thread(target=bench.visits(VISITOR, seconds=60, drains=over.is_set).visit)
    work.start()
    wait_until(lambda: "running" in bench.states(), seconds=10, what="a shard at work")
    over.set()
    work.join(timeout=20)
    assert not work.is_alive()
    assert (bench.states(), bench.attempts()) == (["waiting"] * 4, [0] * 4)


@pytest.mark.parametrize("seen", ["b" * 32, ""])
def test_where_the_plan_is_not_seen_nothing_is_taken(bench: Shared, seen: str) -> None:
    bench.begin(seen=seen)
    bench.visits(VISITOR).visit()
    assert (bench.states(), bench.attempts()) == (["waiting"] * 4, [0] * 4)


def test_what_goes_wrong_is_a_shard_that_waits_and_is_not_tried_here_again(bench: Shared) -> None:
    claim = bench.begin()
    visits = bench.visits(BROKEN)
    for _ in range(2):
        visits.visit()
        assert (bench.states(), bench.attempts()) == (["waiting"] * 4, [1, 0, 0, 0])
    with bench.database.session(read_only=True) as session:
        told = Jobs(session).events(claim.job_id).items[-1].data["shards"]
    assert told == {"news": "given back", "number": 0, "reason": "too large"}
    assert bench.job(claim.job_id).error is None


@pytest.mark.parametrize("how", ["cancelled", "taken back"])
def test_it_stops_when_nobody_wants_the_shard_any_more(bench: Shared, how: str) -> None:
    claim = bench.begin()
    bench.settings = bench.settings.model_copy(update={"lease_seconds": 3.0, "cancel_grace_seconds": 1.0})
    work = threading.Thread(target=bench.visits(VISITOR, seconds=60).visit)
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
    assert [path.name for path in bench.left_overs] == ["checkpoints"]


def desk_for(bench: Shared, database: Database, claim: Claim, rung: list[str]) -> ShardDesk:
    class Quiet(Recorder):
        def __init__(self) -> None:
            pass

        def flush(self, then: Callable[[Jobs], None] | None = None) -> None:
            with database.session() as session:
                assert then is not None
                then(Jobs(session))

    def enqueue(job_id: str, worker_kind: WorkerKind | None) -> None:
        rung.append(job_id)

    return ShardDesk(database, claim, recorder=Quiet(), worker="own", enqueue=enqueue)


def test_planning_calls_a_worker_for_each_shard_but_one(bench: Shared) -> None:
    claim, rung = bench.begin(), list[str]()
    desk = desk_for(bench, bench.database, claim, rung)
    answer = desk.answer(ShardsPlanned(plan=PLAN, count=4, done=[3]))
    assert (answer.number, answer.done, answer.count) == (None, 1, 4)
    assert rung == [claim.job_id] * 2
    assert desk.answer(ShardWanted()).number == 0
    assert desk.answer(ShardWanted(finished=0)).number == 1


def test_a_database_that_is_away_is_told_later(bench: Shared, monkeypatch: pytest.MonkeyPatch) -> None:
    claim, rung = bench.begin(), list[str]()
    away = Database(f"postgresql+psycopg://nobody@127.0.0.1:{free_port()}/none")
    desk = desk_for(bench, bench.database, claim, rung)
    desk.answer(ShardsPlanned(plan=PLAN, count=4, done=[]))
    assert desk.answer(ShardWanted()).number == 0
    monkeypatch.setattr(desk, "_database", away)
    assert desk.answer(ShardWanted(finished=0)).number is None
    assert desk.answer(ShardWanted()).number is None
    monkeypatch.setattr(desk, "_database", bench.database)
    answer = desk.answer(ShardWanted())
    assert (answer.number, answer.done) == (1, 1)
    away.close()
