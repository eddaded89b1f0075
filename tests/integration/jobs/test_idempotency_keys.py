"""One key, one job: under contention, after a rollback, and once the key has run out."""

import threading
from contextlib import suppress

import pytest
from sqlalchemy import select

from benchmarks.harness.specs import a_spec
from replaceme_core.errors import Conflict, DatabaseUnreachable, IdempotencyKeyReused
from replaceme_core.jobs.repository import Job, Jobs, Once
from replaceme_core.jobs.session import Database
from replaceme_core.jobs.tables import IdempotencyKeyRow

TRIES = 50
SPEC = a_spec(labels={"team": "red"})


class Lost(Exception):
    """The process dies before its commit."""


def once(key: str = "k", *, fingerprint: str = "f" * 64, keep_seconds: float = 3600) -> Once:
    return Once(key=key, fingerprint=fingerprint, keep_seconds=keep_seconds)


def add(database: Database, this: Once | None, *, owner: str = "ada", job_id: str | None = None) -> Job:
    with database.session() as session:
        return Jobs(session).add(spec=SPEC, owner=owner, job_id=job_id, once=this)


def keys(database: Database) -> list[str]:
    with database.session(read_only=True) as session:
        return list(session.scalars(select(IdempotencyKeyRow.key).order_by(IdempotencyKeyRow.key)))


def test_fifty_tries_at_once_make_one_job(database: Database) -> None:
    start = threading.Barrier(TRIES, timeout=60)
    made: list[str] = []
    later: list[Exception] = []

    def submit() -> None:
        start.wait()
        while True:
            try:
                made.append(add(database, once()).id)
            except DatabaseUnreachable as error:  # all connections are in use: the client is told to try again
                later.append(error)
            else:
                return

    threads = [threading.Thread(target=submit) for _ in range(TRIES)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert len(made) == TRIES
    assert len(set(made)) == 1
    with database.session(read_only=True) as session:
        jobs = Jobs(session)
        (job,) = jobs.page(limit=10, labels={"team": "red"}).items
        assert [event.type.value for event in jobs.events(job.id).items] == ["created"]


def test_a_second_transaction_waits_for_the_first(database: Database) -> None:
    """No state in between is ever seen: either nothing, or the job."""
    begun, found = threading.Event(), []

    def repeat() -> None:
        begun.wait(30)
        found.append(add(database, once()).id)

    second = threading.Thread(target=repeat)
    second.start()
    with database.session() as session:
        job = Jobs(session).add(spec=SPEC, owner="ada", once=once())
        begun.set()
        second.join(timeout=0.3)
        assert found == []
    second.join(timeout=60)
    assert found == [job.id]


def test_what_is_rolled_back_leaves_the_key_free(database: Database) -> None:
    with suppress(Lost), database.session() as session:
        lost = Jobs(session).add(spec=SPEC, owner="ada", once=once())
        raise Lost
    assert keys(database) == []
    assert add(database, once(fingerprint="0" * 64)).id != lost.id


def test_another_request_and_another_owner(database: Database) -> None:
    first = add(database, once())
    with pytest.raises(IdempotencyKeyReused):
        add(database, once(fingerprint="0" * 64))
    with database.session(read_only=True) as session:
        jobs = Jobs(session)
        assert jobs.submitted_before(once(), owner="ada") == first
        assert jobs.submitted_before(once(), owner="bob") is None
        with pytest.raises(IdempotencyKeyReused):
            jobs.submitted_before(once(fingerprint="0" * 64), owner="ada")
    assert add(database, once(), owner="bob").id != first.id


def test_an_id_that_is_taken_is_no_repetition(database: Database) -> None:
    job_id = add(database, None).id
    with pytest.raises(Conflict):
        add(database, once(), job_id=job_id)
    assert keys(database) == []


def test_keys_run_out_and_are_swept(database: Database) -> None:
    first = add(database, once("old", keep_seconds=-1))
    add(database, once("older", keep_seconds=-1))
    add(database, once("new"))
    with database.session(read_only=True) as session:
        assert Jobs(session).submitted_before(once("old"), owner="ada") is None
    second = add(database, once("old", fingerprint="0" * 64))
    assert second.id != first.id
    with database.session() as session:
        assert Jobs(session).forget_keys(limit=10) == 1
    assert keys(database) == ["new", "old"]
    with database.session() as session:
        assert Jobs(session).forget_keys(limit=10) == 0
        assert Jobs(session).get(first.id) == first  # only the key is forgotten
