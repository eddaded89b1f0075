"""Jobs for CPU workers, for GPU workers and for any: who may take them, in which order, and whom to ring for."""

from collections.abc import Sequence

import pytest

from replaceme_core.admission.worker_kind import Route
from replaceme_core.jobs.records import Ring
from replaceme_core.jobs.repository import Jobs
from replaceme_core.jobs.session import Database
from tests.fixtures.ledger_cases import Ledger
from tests.fixtures.specs import a_spec


@pytest.fixture
def ledger(database: Database) -> Ledger:
    return Ledger(database)


def add(ledger: Ledger, device: str | None = None, *, owner: str = "ada", priority: int = 5) -> str:
    compute = {} if device is None else {"compute": {"device": device}}
    return ledger.add_spec(a_spec(priority=priority, **compute), owner=owner)


def claim_all(ledger: Ledger, routes: Sequence[Route] | None) -> list[str]:
    claimed = []
    with ledger.database.session() as session:
        while (claim := Jobs(session).claim_next(worker="w", lease_seconds=60, routes=routes)) is not None:
            claimed.append(claim.job_id)
    return claimed


def position(ledger: Ledger, job_id: str) -> int | None:
    with ledger.database.session(read_only=True) as session:
        jobs = Jobs(session)
        place, seen_with_all = jobs.place(job_id), jobs.standing().place_of(jobs.get(job_id))
    assert place is not None
    assert seen_with_all is not None
    assert seen_with_all.position == place.position
    return place.position


def test_the_device_decides_and_the_default_where_none_is_named(ledger: Ledger) -> None:
    devices = {"cpu": Route.CPU, "cuda": Route.GPU, "cuda:1": Route.GPU, "mps": Route.GPU, None: None}
    for device, route in devices.items():
        assert ledger.get(add(ledger, device)).route is route
    with ledger.database.session() as session:
        jobs = Jobs(session)
        assert jobs.add(spec=a_spec(), owner="ada", default_route=Route.GPU).route is Route.GPU
        named = a_spec(compute={"device": "cpu"})
        assert jobs.add(spec=named, owner="ada", default_route=Route.GPU).route is Route.CPU


def test_a_worker_takes_its_own_and_those_for_any(ledger: Ledger) -> None:
    cpu, gpu, any_worker = add(ledger, "cpu"), add(ledger, "cuda"), add(ledger)
    assert claim_all(ledger, [Route.GPU]) == [gpu, any_worker]
    assert claim_all(ledger, [Route.GPU]) == []
    assert claim_all(ledger, [Route.CPU]) == [cpu]


@pytest.mark.parametrize("routes", [None, [Route.CPU, Route.GPU]])
def test_a_worker_that_serves_both_takes_all_in_turn(ledger: Ledger, routes: Sequence[Route] | None) -> None:
    jobs = [add(ledger, device) for device in ("cpu", None, "cuda", "cpu", "cuda")]
    urgent = add(ledger, "cuda", priority=9)
    other = add(ledger, "cpu", owner="bob")
    assert claim_all(ledger, routes) == [urgent, other, *jobs]


def test_fair_shares_hold_across_routes(ledger: Ledger) -> None:
    many = [add(ledger, device) for device in ("cuda", None, "cuda")]
    one = add(ledger, None, owner="bob")
    add(ledger, "cpu", owner="eve", priority=9)
    assert claim_all(ledger, [Route.GPU]) == [many[0], one, many[1], many[2]]


def test_rings_are_for_workers_that_serve_the_job(ledger: Ledger) -> None:
    cpu, gpu, any_worker = add(ledger, "cpu"), add(ledger, "cuda"), add(ledger)

    def due(routes: Sequence[Route] | None) -> list[Ring]:
        with ledger.database.session() as session:
            return Jobs(session).due_for_ringing(older_than_seconds=-1, limit=9, routes=routes)

    for_any = Ring(job_id=any_worker, route=None)
    assert due([Route.CPU]) == [Ring(job_id=cpu, route=Route.CPU), for_any]
    assert due([Route.GPU]) == [Ring(job_id=gpu, route=Route.GPU), for_any]
    assert [ring.job_id for ring in due(None)] == [cpu, gpu, any_worker]


def test_a_resolved_device_fixes_who_may_take_the_job_up(ledger: Ledger) -> None:
    job_id = add(ledger)
    claim = ledger.claim(job_id)
    with ledger.database.session() as session:
        Jobs(session).record_spec(claim, a_spec())
    assert ledger.get(job_id).route is None
    with ledger.database.session() as session:
        Jobs(session).record_spec(claim, a_spec(compute={"device": "cuda"}))
    ledger.release(claim)
    assert ledger.get(job_id).route is Route.GPU
    assert claim_all(ledger, [Route.CPU]) == []


def test_the_place_in_the_queue_is_among_those_who_wait_for_the_same_workers(ledger: Ledger) -> None:
    add(ledger, "cpu")
    add(ledger, "cpu")
    gpu = add(ledger, "cuda")
    assert position(ledger, gpu) == 1
    any_worker = add(ledger)
    assert position(ledger, any_worker) == 4
    assert position(ledger, add(ledger, "cuda")) == 3
