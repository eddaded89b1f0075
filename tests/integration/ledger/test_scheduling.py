"""The order of jobs: priority, then fair shares of owners, then age; the queue positions that follow from it; which
workers claim which jobs; limits of jobs, which hold when many ask at once.
"""

import random
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain

import pytest
from sqlalchemy import update

from benchmarks.harness.jobs import owner_of
from benchmarks.harness.specs import a_spec
from replaceme_core.hardware import WorkerKind
from replaceme_core.ledger import attempts, changes, reading, scheduling
from replaceme_core.ledger.database import Database, now
from replaceme_core.ledger.keys import Keys, NewKey, Scope
from replaceme_core.ledger.records import Claim
from replaceme_core.ledger.states import JobStatus
from replaceme_core.ledger.sweep import collect_wake_ups, requeue_expired
from replaceme_core.ledger.tables import JobRow
from replaceme_core.runner.messages import Stage
from replaceme_core.shapes import KeyLimits, QueuePosition
from tests.fixtures.jobs.ledger import Ledger, at_once

UNKNOWN = "00000000-0000-4000-8000-000000000000"


def add(ledger: Ledger, owner: str = "ada", *, device: str | None = None, priority: int = 5) -> str:
    compute = {} if device is None else {"compute": {"device": device}}
    return ledger.add_spec(a_spec(priority=priority, **compute), owner=owner)


def claim_next(
    ledger: Ledger, *, lease_seconds: float = 60, worker_kinds: Sequence[WorkerKind] | None = None
) -> Claim | None:
    with ledger.database.session() as session:
        return attempts.claim_next(session, worker="w", lease_seconds=lease_seconds, worker_kinds=worker_kinds)


def claim_all(ledger: Ledger, *, worker_kinds: Sequence[WorkerKind] | None = None) -> list[str]:
    claimed = []
    while (claim := claim_next(ledger, worker_kinds=worker_kinds)) is not None:
        claimed.append(claim.job_id)
    return claimed


def queue_position_of(ledger: Ledger, job_id: str) -> QueuePosition | None:
    """That in a snapshot of the queue, which is the same where the job comes into the snapshot later."""
    with ledger.database.session(read_only=True) as session:
        owner = owner_of(session, job_id)
        job = reading.get_snapshots(session, [(job_id, owner)])[job_id, owner]
        whole = scheduling.read_queue(session)
        before = replace(whole, queued={one: queued for one, queued in whole.queued.items() if one != job_id})
        later = before.including(session, [job_id])
    found = whole.position_of(job)
    assert later.position_of(job) == found
    return found


def position(ledger: Ledger, job_id: str) -> int | None:
    found = queue_position_of(ledger, job_id)
    return None if found is None else found.position


def run_for(ledger: Ledger, job_id: str, *, seconds: float) -> None:
    """Let the job succeed after these seconds."""
    ledger.succeed(job_id)
    with ledger.database.session() as session:
        session.execute(
            update(JobRow)
            .where(JobRow.id == job_id)
            .values(started_at=now(plus_seconds=-seconds - 500), finished_at=now(plus_seconds=-500))
        )


def test_many_jobs_do_not_starve_one(ledger: Ledger) -> None:
    many = [add(ledger, "ada") for _ in range(10)]
    assert [claim.job_id for claim in (claim_next(ledger), claim_next(ledger)) if claim] == many[:2]
    one = add(ledger, "bob")
    late = [add(ledger, "eve") for _ in range(2)]
    assert claim_all(ledger)[:5] == [one, late[0], late[1], many[2], many[3]]


def test_a_requeued_job_pauses(ledger: Ledger) -> None:
    job_id = add(ledger, priority=9)
    pauses = []
    for attempt in (1, 2, 3):
        assert ledger.claim(job_id, lease_seconds=-1).attempt == attempt
        with ledger.database.session() as session:
            assert requeue_expired(session, max_attempts=9, limit=9, backoff_seconds=100) == [job_id]
            row = session.query(JobRow).one()
            assert row.not_before is not None
            pauses.append(round((row.not_before - session.query(now()).scalar()).total_seconds()))
            assert collect_wake_ups(session, older_than_seconds=-1, limit=9) == []
        assert claim_next(ledger) is None
    assert pauses == [200, 400, 800]
    other = add(ledger, priority=0)
    assert claim_all(ledger) == [other]
    with ledger.database.session() as session:
        session.execute(update(JobRow).where(JobRow.id == job_id).values(not_before=now(plus_seconds=-1)))
        due = collect_wake_ups(session, older_than_seconds=3600, limit=9)
        assert [one for one, _ in due] == [job_id]
    assert claim_all(ledger) == [job_id]
    ledger.cancel(job_id)


def test_the_pause_has_a_maximum(ledger: Ledger) -> None:
    job_id = add(ledger)
    with ledger.database.session() as session:
        session.execute(update(JobRow).values(attempt=999))
    ledger.claim(job_id, lease_seconds=-1)
    with ledger.database.session() as session:
        requeue_expired(session, max_attempts=9999, limit=9, backoff_seconds=10)
        assert session.query(JobRow).where(JobRow.not_before < now(plus_seconds=641)).count() == 1


@pytest.mark.parametrize("seed", range(2))
def test_positions_are_the_order_of_claims(ledger_on_both: Ledger, seed: int) -> None:
    ledger = ledger_on_both
    dice = random.Random(seed)
    jobs = [add(ledger, dice.choice("abbbcd"), priority=dice.choice([4, 5, 5, 5, 8, 9])) for _ in range(40)]
    for job_id in dice.sample(jobs, 8):
        claim = ledger.claim(job_id)
        if dice.random() < 0.5:
            ledger.succeed(claim)
    positions = {job_id: position(ledger, job_id) for job_id in jobs}
    order = dict.fromkeys(jobs) | {job_id: number for number, job_id in enumerate(claim_all(ledger), 1)}
    assert positions == order


def test_a_very_long_queue_is_not_counted(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduling, "MAX_COUNTED", 3)
    first, *_ = [add(ledger) for _ in range(4)]
    unknown = QueuePosition(position=None, estimated_start_at=None)
    assert queue_position_of(ledger, first) == unknown
    assert position(ledger, add(ledger, priority=9)) == 1
    assert queue_position_of(ledger, first) == unknown


def test_the_start_is_estimated_from_jobs_before(ledger: Ledger) -> None:
    waiting = [add(ledger, priority=1) for _ in range(3)]
    assert queue_position_of(ledger, waiting[0]) == QueuePosition(position=1, estimated_start_at=None), "no job before"
    for seconds in (50, 100, 9000):
        run_for(ledger, add(ledger), seconds=seconds)

    def assert_waits(job_id: str, seconds: float) -> None:
        found = queue_position_of(ledger, job_id)
        assert found is not None and found.estimated_start_at is not None
        with ledger.database.session(read_only=True) as session:
            left = found.estimated_start_at - session.query(now()).scalar()
        assert abs(left.total_seconds() - seconds) < 62  # estimates are rounded to minutes

    for number, job_id in enumerate(waiting):
        assert_waits(job_id, 100 * number)
    running = [ledger.claim(add(ledger)) for _ in range(2)]
    assert_waits(waiting[2], 125)  # two run, and each ends in about 50 seconds
    for claim, left in zip(running, (1800, 4000), strict=True):
        ledger.progress(claim, Stage.SOLVE, eta_seconds=left)
    assert_waits(waiting[0], 1800)  # as the jobs themselves say
    with ledger.database.session() as session:
        session.execute(update(JobRow).where(JobRow.id == waiting[0]).values(not_before=now(plus_seconds=7200)))
    assert_waits(waiting[0], 7200)


def test_a_runner_that_never_ends_by_its_own_account_hides_no_position(ledger: Ledger) -> None:
    run_for(ledger, add(ledger), seconds=100)
    waiting = add(ledger, priority=1)
    ledger.progress(ledger.claim(add(ledger)), Stage.SOLVE, eta_seconds=1e300)
    found = queue_position_of(ledger, waiting)
    assert found is not None and found.estimated_start_at is not None
    assert found.position == 1


def test_many_workers_at_once(ledger_on_both: Ledger) -> None:
    ledger = ledger_on_both
    jobs = [add(ledger, owner) for owner in "aaaabbbbcccc"]
    claimed = chain.from_iterable(at_once(*[lambda: claim_all(ledger)] * 4))
    assert sorted(claimed) == sorted(jobs)
    assert all(ledger.history(job_id) == ["created", "claimed"] for job_id in jobs)


def test_a_worker_skips_a_job_that_another_one_is_claiming(postgres_database: Database) -> None:
    database = postgres_database
    ledger = Ledger(database)
    jobs = [add(ledger, priority=9), add(ledger, priority=1)]
    with database.session() as session:
        first = attempts.claim_next(session, worker="w", lease_seconds=60)
        second = claim_next(ledger)
        assert claim_next(ledger) is None
    assert [claim.job_id for claim in (first, second) if claim] == jobs


@pytest.mark.parametrize("worker_kinds", [None, [WorkerKind.CPU, WorkerKind.GPU]])
def test_a_worker_of_both_kinds_claims_all_in_order(ledger: Ledger, worker_kinds: Sequence[WorkerKind] | None) -> None:
    jobs = [add(ledger, device=device) for device in ("cpu", None, "cuda")]
    urgent = add(ledger, device="cuda", priority=9)
    assert claim_all(ledger, worker_kinds=worker_kinds) == [urgent, *jobs]


def test_a_worker_claims_jobs_of_its_kind_and_those_for_any_in_fair_shares(ledger: Ledger) -> None:
    many = [add(ledger, device=device) for device in ("cuda", None, "cuda")]
    one, cpu = add(ledger, "bob"), add(ledger, "eve", device="cpu", priority=9)
    assert claim_all(ledger, worker_kinds=[WorkerKind.GPU]) == [many[0], one, many[1], many[2]]
    assert claim_all(ledger, worker_kinds=[WorkerKind.CPU]) == [cpu]


def test_wake_ups_are_for_workers_of_the_jobs_kind(ledger: Ledger) -> None:
    cpu, gpu, any_worker = add(ledger, device="cpu"), add(ledger, device="cuda"), add(ledger)

    def due(worker_kinds: Sequence[WorkerKind] | None) -> list[tuple[str, WorkerKind | None]]:
        with ledger.database.session() as session:
            return collect_wake_ups(session, older_than_seconds=-1, limit=9, worker_kinds=worker_kinds)

    for_any = any_worker, None
    assert due([WorkerKind.CPU]) == [(cpu, WorkerKind.CPU), for_any]
    assert due([WorkerKind.GPU]) == [(gpu, WorkerKind.GPU), for_any]
    assert [job_id for job_id, _ in due(None)] == [cpu, gpu, any_worker]


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
    assert claim_all(ledger, worker_kinds=[WorkerKind.CPU]) == []


def test_the_queue_position_counts_jobs_for_the_same_workers(ledger: Ledger) -> None:
    add(ledger, device="cpu")
    add(ledger, device="cpu")
    gpu = add(ledger, device="cuda")
    assert position(ledger, gpu) == 1
    any_worker = add(ledger)
    assert position(ledger, any_worker) == 4
    assert position(ledger, add(ledger, device="cuda")) == 3


def test_a_job_that_starts_while_the_queue_is_read_has_a_position(ledger: Ledger) -> None:
    """Its owner waits for nothing else, and is not among those whose last start is read after the queue."""
    job_id = add(ledger)
    with ledger.database.session(read_only=True) as session:
        job = reading.get_snapshots(session, [(job_id, "ada")])[job_id, "ada"]
        snapshot = replace(scheduling.read_queue(session), last_starts={})
    found = snapshot.position_of(job)
    assert found is not None and found.position == 1


def new_key(database: Database, *, running_jobs: int | None) -> str:
    limits = KeyLimits(running_jobs=running_jobs)
    new = NewKey(owner="someone", name="k", scopes=frozenset({Scope.JOBS_WRITE}), limits=limits)
    with database.session() as session:
        return Keys(session).create(new).id


def add_with_key(ledger: Ledger, key_id: str | None, *, priority: int = 5) -> str:
    spec = a_spec().model_copy(update={"priority": priority})
    with ledger.database.session() as session:
        return changes.add(session, spec=spec, owner="someone", key_id=key_id).id


def test_a_key_at_its_limit_is_passed_over(ledger: Ledger) -> None:
    limited, free = new_key(ledger.database, running_jobs=1), new_key(ledger.database, running_jobs=0)
    first, second = (add_with_key(ledger, limited, priority=9) for _ in range(2))
    others = [add_with_key(ledger, free), add_with_key(ledger, None)]

    def due() -> int:
        with ledger.database.session() as session:
            return len(collect_wake_ups(session, older_than_seconds=-1, limit=9))

    claim = claim_next(ledger)
    assert claim is not None
    assert [claim.job_id, *claim_all(ledger)] == [first, *others], "others do not wait behind it"
    assert due() == 0
    ledger.release(claim)
    assert due() == 2
    again = claim_next(ledger)
    assert again is not None
    assert again.job_id == first
    ledger.succeed(again)
    assert claim_all(ledger) == [second]


def test_many_workers_at_once_start_no_more_than_the_limit(ledger_on_both: Ledger) -> None:
    ledger = ledger_on_both
    key_id = new_key(ledger.database, running_jobs=2)
    jobs = [add_with_key(ledger, key_id) for _ in range(8)]
    at_once(*[lambda: claim_next(ledger)] * 6)
    assert sum(ledger.status(job_id) is JobStatus.RUNNING for job_id in jobs) == 2


def test_many_submissions_at_once_add_no_more_than_the_limit(ledger_on_both: Ledger) -> None:
    ledger = ledger_on_both
    added: list[str] = []

    def submit() -> None:
        with ledger.database.session() as session:
            if not changes.has_active(session, 5, owner="someone", exact=True):
                added.append(changes.add(session, spec=a_spec(), owner="someone").id)

    at_once(*[lambda: [submit() for _ in range(3)]] * 6)
    assert len(added) == 5
