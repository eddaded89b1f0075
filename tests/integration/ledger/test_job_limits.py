"""Limits of jobs hold when many ask at once: running jobs of a key, unfinished jobs of an owner."""

import threading
from collections.abc import Callable

import pytest

from benchmarks.harness.specs import a_spec
from replaceme_core.ledger import attempts, changes, scheduling
from replaceme_core.ledger.database import Database
from replaceme_core.ledger.keys import KeyLimits, Keys, NewKey, Scope
from replaceme_core.ledger.records import Claim
from replaceme_core.ledger.states import JobStatus
from replaceme_core.ledger.sweep import collect_wake_ups
from tests.fixtures.jobs.ledger import Ledger


@pytest.fixture
def ledger(database: Database) -> Ledger:
    return Ledger(database)


def new_key(database: Database, *, running_jobs: int | None) -> str:
    limits = KeyLimits(running_jobs=running_jobs)
    new = NewKey(owner="someone", name="k", scopes=frozenset({Scope.JOBS_WRITE}), limits=limits)
    with database.session() as session:
        return Keys(session).create(new).key.id


def add(ledger: Ledger, key_id: str | None, *, priority: int = 5) -> str:
    spec = a_spec().model_copy(update={"priority": priority})
    with ledger.database.session() as session:
        return changes.add(session, spec=spec, owner="someone", key_id=key_id).id


def claim_next(ledger: Ledger) -> Claim | None:
    with ledger.database.session() as session:
        return attempts.claim_next(session, worker="w", lease_seconds=60)


def at_once(work: Callable[[], object], *, threads: int) -> None:
    start, failures = threading.Barrier(threads, timeout=30), list[Exception]()

    def run() -> None:
        start.wait()
        try:
            work()
        except Exception as error:
            failures.append(error)

    running = [threading.Thread(target=run) for _ in range(threads)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join(timeout=60)
    assert failures == []


def test_a_key_at_its_limit_is_passed_over(ledger: Ledger) -> None:
    limited, free = new_key(ledger.database, running_jobs=1), new_key(ledger.database, running_jobs=None)
    first, second = add(ledger, limited, priority=9), add(ledger, limited, priority=9)
    others = [add(ledger, free), add(ledger, None)]
    claims = [claim_next(ledger) for _ in range(3)]
    assert [claim.job_id for claim in claims if claim] == [first, *others], "others do not wait behind it"
    assert claim_next(ledger) is None
    with ledger.database.session() as session:
        assert not scheduling.has_startable_job(session)
        assert collect_wake_ups(session, older_than_seconds=-1, limit=9) == []
    assert claims[0] is not None
    ledger.release(claims[0])
    with ledger.database.session() as session:
        assert scheduling.has_startable_job(session)
        assert len(collect_wake_ups(session, older_than_seconds=-1, limit=9)) == 2
    again = claim_next(ledger)
    assert again is not None
    assert again.job_id == first
    ledger.succeed(again)
    last = claim_next(ledger)
    assert last is not None
    assert last.job_id == second


def test_no_limit_is_none_or_zero(ledger: Ledger) -> None:
    for most in (None, 0):
        key_id = new_key(ledger.database, running_jobs=most)
        jobs = [add(ledger, key_id) for _ in range(3)]
        claims = [claim_next(ledger) for _ in range(3)]
        assert [claim.job_id for claim in claims if claim] == jobs


def test_many_workers_at_once_start_no_more_than_the_limit(ledger: Ledger) -> None:
    key_id = new_key(ledger.database, running_jobs=2)
    jobs = [add(ledger, key_id) for _ in range(8)]
    at_once(lambda: claim_next(ledger), threads=6)
    assert sum(ledger.status(job_id) is JobStatus.RUNNING for job_id in jobs) == 2


def test_many_submissions_at_once_add_no_more_than_the_limit(ledger: Ledger) -> None:
    added: list[str] = []

    def submit() -> None:
        with ledger.database.session() as session:
            if not changes.has_active(session, 5, owner="someone", exact=True):
                added.append(changes.add(session, spec=a_spec(), owner="someone").id)

    at_once(lambda: [submit() for _ in range(3)], threads=6)
    assert len(added) == 5
