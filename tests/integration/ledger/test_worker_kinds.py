"""Jobs for CPU workers, for GPU workers and for any: which workers claim them, in which order, and the wake-ups."""

from collections.abc import Sequence

import pytest

from benchmarks.harness.jobs import owner_of
from benchmarks.harness.specs import a_spec
from replaceme_core.hardware import WorkerKind
from replaceme_core.ledger import attempts, changes, reading, scheduling
from replaceme_core.ledger.database import Database
from replaceme_core.ledger.records import WakeUp
from replaceme_core.ledger.sweep import collect_wake_ups
from tests.fixtures.jobs.ledger import Ledger


@pytest.fixture
def ledger(database: Database) -> Ledger:
    return Ledger(database)


def add(ledger: Ledger, device: str | None = None, *, owner: str = "ada", priority: int = 5) -> str:
    compute = {} if device is None else {"compute": {"device": device}}
    return ledger.add_spec(a_spec(priority=priority, **compute), owner=owner)


def claim_all(ledger: Ledger, worker_kinds: Sequence[WorkerKind] | None) -> list[str]:
    claimed = []
    with ledger.database.session() as session:
        while (
            claim := attempts.claim_next(session, worker="w", lease_seconds=60, worker_kinds=worker_kinds)
        ) is not None:
            claimed.append(claim.job_id)
    return claimed


def position(ledger: Ledger, job_id: str) -> int | None:
    with ledger.database.session(read_only=True) as session:
        position, in_snapshot = (
            scheduling.queue_position(session, job_id, owner=owner_of(session, job_id)),
            scheduling.read_queue(session).position_of(
                reading.get_snapshots(
                    session, [mine := (job_id, reading.get(session, job_id, owner=owner_of(session, job_id)).owner)]
                )[mine]
            ),
        )
    assert position is not None
    assert in_snapshot is not None
    assert in_snapshot.position == position.position
    return position.position


def test_the_device_decides_and_without_one_the_default(ledger: Ledger) -> None:
    devices = {
        "cpu": WorkerKind.CPU,
        "cuda": WorkerKind.GPU,
        "cuda:1": WorkerKind.GPU,
        "mps": WorkerKind.GPU,
        None: None,
    }
    for device, worker_kind in devices.items():
        assert ledger.get(add(ledger, device)).worker_kind is worker_kind
    with ledger.database.session() as session:
        assert (
            changes.add(session, spec=a_spec(), owner="ada", default_worker_kind=WorkerKind.GPU).worker_kind
            is WorkerKind.GPU
        )
        named = a_spec(compute={"device": "cpu"})
        assert (
            changes.add(session, spec=named, owner="ada", default_worker_kind=WorkerKind.GPU).worker_kind
            is WorkerKind.CPU
        )


def test_a_worker_claims_jobs_of_its_kind_and_those_for_any(ledger: Ledger) -> None:
    cpu, gpu, any_worker = add(ledger, "cpu"), add(ledger, "cuda"), add(ledger)
    assert claim_all(ledger, [WorkerKind.GPU]) == [gpu, any_worker]
    assert claim_all(ledger, [WorkerKind.GPU]) == []
    assert claim_all(ledger, [WorkerKind.CPU]) == [cpu]


@pytest.mark.parametrize("worker_kinds", [None, [WorkerKind.CPU, WorkerKind.GPU]])
def test_a_worker_of_both_kinds_claims_all_in_order(ledger: Ledger, worker_kinds: Sequence[WorkerKind] | None) -> None:
    jobs = [add(ledger, device) for device in ("cpu", None, "cuda", "cpu", "cuda")]
    urgent = add(ledger, "cuda", priority=9)
    other = add(ledger, "cpu", owner="bob")
    assert claim_all(ledger, worker_kinds) == [urgent, other, *jobs]


def test_fair_shares_hold_across_worker_kinds(ledger: Ledger) -> None:
    many = [add(ledger, device) for device in ("cuda", None, "cuda")]
    one = add(ledger, None, owner="bob")
    add(ledger, "cpu", owner="eve", priority=9)
    assert claim_all(ledger, [WorkerKind.GPU]) == [many[0], one, many[1], many[2]]


def test_wake_ups_are_for_workers_of_the_jobs_kind(ledger: Ledger) -> None:
    cpu, gpu, any_worker = add(ledger, "cpu"), add(ledger, "cuda"), add(ledger)

    def due(worker_kinds: Sequence[WorkerKind] | None) -> list[WakeUp]:
        with ledger.database.session() as session:
            return collect_wake_ups(session, older_than_seconds=-1, limit=9, worker_kinds=worker_kinds)

    for_any = WakeUp(job_id=any_worker, worker_kind=None)
    assert due([WorkerKind.CPU]) == [WakeUp(job_id=cpu, worker_kind=WorkerKind.CPU), for_any]
    assert due([WorkerKind.GPU]) == [WakeUp(job_id=gpu, worker_kind=WorkerKind.GPU), for_any]
    assert [wake_up.job_id for wake_up in due(None)] == [cpu, gpu, any_worker]


def test_a_resolved_device_decides_the_kind_for_later_attempts(ledger: Ledger) -> None:
    job_id = add(ledger)
    claim = ledger.claim(job_id)
    with ledger.database.session() as session:
        attempts.record_spec(session, claim, a_spec())
    assert ledger.get(job_id).worker_kind is None
    with ledger.database.session() as session:
        attempts.record_spec(session, claim, a_spec(compute={"device": "cuda"}))
    ledger.release(claim)
    assert ledger.get(job_id).worker_kind is WorkerKind.GPU
    assert claim_all(ledger, [WorkerKind.CPU]) == []


def test_the_queue_position_counts_jobs_for_the_same_workers(ledger: Ledger) -> None:
    add(ledger, "cpu")
    add(ledger, "cpu")
    gpu = add(ledger, "cuda")
    assert position(ledger, gpu) == 1
    any_worker = add(ledger)
    assert position(ledger, any_worker) == 4
    assert position(ledger, add(ledger, "cuda")) == 3
