"""The simulation of scheduling, on a small scale; and that its marks can be missed."""

from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import func, select

from benchmarks.harness.servers import PostgresServer
from benchmarks.simulation import (
    EPOCH,
    FLOOD,
    Rules,
    Scenario,
    SimulatedJob,
    Simulation,
    doubled_in,
    figures_of,
    missed_marks,
)
from replaceme_core.ledger.database import Database
from replaceme_core.ledger.states import EventType
from replaceme_core.ledger.tables import JobRow

SMALL: dict[str, Any] = {"gpus": 4, "jobs": 60, "days": 0.03, "lost": 0.15, "replaced_seconds": 20.0, "seed": 1}


@pytest.fixture
def empty_url(postgres_server: PostgresServer, postgres_template: str) -> Iterator[str]:
    with postgres_server.database(template=postgres_template) as url:
        yield url


def test_a_small_day_meets_the_marks(empty_url: str) -> None:
    simulation = Simulation(empty_url, Scenario(**SMALL))
    simulation.run()
    found = figures_of(simulation)
    assert missed_marks(found) == []
    counts = found["counts"]
    assert all(counts[name] for name in ("refused", "lost attempts", "late results refused")), counts
    assert found["hours_with_queue"] > 0.2 * found["hours"], "nothing was shown of a queue"
    assert found["waits"][f"{FLOOD}, all"][1] > found["waits"]["lab, all"][1], "the flood delays the others"
    database = Database(empty_url)
    with database.session(read_only=True) as session:
        first, last = session.execute(select(func.min(JobRow.created_at), func.max(JobRow.finished_at))).one()
    database.close()
    assert 0 < (first - EPOCH).total_seconds() < (last - EPOCH).total_seconds() < 86_400, "the clock was not simulated"


def test_without_sweeps_jobs_are_lost(empty_url: str) -> None:
    simulation = Simulation(empty_url, Scenario(**SMALL, sweeps=False))
    simulation.run()
    found = figures_of(simulation)
    assert found["lost"] > 0
    assert f"{found['lost']} jobs were lost" in missed_marks(found)


def test_a_job_that_is_passed_over_is_starved() -> None:
    rules = Rules(Scenario(gpus=4, jobs=60))
    low, old, new, other = (
        SimulatedJob(tenant=tenant, priority=priority, length=60, submitted_at=at)
        for tenant, priority, at in (("lab", 2, 0), ("lab", 5, 1), ("lab", 5, 2), ("team", 5, 3))
    )
    for job in (low, old, new, other):
        rules.add(job)
    rules.claimed(old, 100)
    rules.claimed(other, 100)
    assert rules.starved == set(), "by the rules"
    rules.claimed(low, 100)
    assert rules.starved == {new.submitted_at}


def test_a_job_that_ends_twice_is_doubled() -> None:
    claimed, lapsed, ended = EventType.CLAIMED, EventType.LEASE_LAPSED, EventType.SUCCEEDED
    assert doubled_in([("a", claimed), ("a", lapsed), ("a", claimed), ("a", ended), ("b", claimed)]) == []
    assert len(doubled_in([("a", claimed), ("a", claimed), ("b", claimed), ("b", ended), ("b", ended)])) == 2
