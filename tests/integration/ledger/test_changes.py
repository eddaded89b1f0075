"""One idempotency key, one job: under contention, after a rollback, and after the key has expired."""

import threading
from contextlib import suppress

import pytest
from sqlalchemy import select

from benchmarks.harness.specs import a_spec
from replaceme_core.errors import Conflict, DatabaseUnreachable, IdempotencyKeyReused
from replaceme_core.ledger import changes, reading
from replaceme_core.ledger.database import Database
from replaceme_core.ledger.reading import JobFilters
from replaceme_core.ledger.records import IdempotencyKey, Job
from replaceme_core.ledger.sweep import delete_expired_keys
from replaceme_core.ledger.tables import IdempotencyKeyRow
from tests.fixtures.jobs.threads import at_once

REQUESTS = 50
SPEC = a_spec(labels={"team": "red"})


class Lost(Exception):
    """The process dies before its commit."""


def key(key: str = "k", *, fingerprint: str = "f" * 64, keep_seconds: float = 3600) -> IdempotencyKey:
    return IdempotencyKey(key=key, fingerprint=fingerprint, keep_seconds=keep_seconds)


def add(
    database: Database, idempotency_key: IdempotencyKey | None, *, owner: str = "ada", job_id: str | None = None
) -> Job:
    with database.session() as session:
        return changes.add(session, spec=SPEC, owner=owner, job_id=job_id, idempotency_key=idempotency_key)


def stored_keys(database: Database) -> list[str]:
    with database.session(read_only=True) as session:
        return list(session.scalars(select(IdempotencyKeyRow.key).order_by(IdempotencyKeyRow.key)))


def test_fifty_requests_at_once_make_one_job(database: Database) -> None:

    def submit() -> str:
        while True:
            with suppress(DatabaseUnreachable):  # all connections are in use: the client is asked to retry
                return add(database, key()).id

    made = at_once(*[submit] * REQUESTS)
    assert len(set(made)) == 1
    with database.session(read_only=True) as session:
        (job,) = reading.page(session, owner="ada", limit=10, filters=JobFilters(labels={"team": "red"})).items
        assert [event.type.value for event in reading.events(session, job.id, owner="ada").items] == ["created"]


def test_a_second_transaction_waits_for_the_first(database: Database) -> None:
    """It sees either nothing or the job, never a state in between."""
    begun, found = threading.Event(), []

    def repeat() -> None:
        begun.wait(30)
        found.append(add(database, key()).id)

    second = threading.Thread(target=repeat)
    second.start()
    with database.session() as session:
        job = changes.add(session, spec=SPEC, owner="ada", idempotency_key=key())
        begun.set()
        second.join(timeout=0.3)
        assert found == []
    second.join(timeout=60)
    assert found == [job.id]


def test_a_rollback_leaves_the_key_free(database: Database) -> None:
    with suppress(Lost), database.session() as session:
        lost = changes.add(session, spec=SPEC, owner="ada", idempotency_key=key())
        raise Lost
    assert stored_keys(database) == []
    assert add(database, key(fingerprint="0" * 64)).id != lost.id


def test_another_request_and_another_owner(database: Database) -> None:
    first = add(database, key())
    with pytest.raises(IdempotencyKeyReused):
        add(database, key(fingerprint="0" * 64))
    with database.session(read_only=True) as session:
        assert changes.find_by_key(session, key(), owner="ada") == first
        assert changes.find_by_key(session, key(), owner="bob") is None
        with pytest.raises(IdempotencyKeyReused):
            changes.find_by_key(session, key(fingerprint="0" * 64), owner="ada")
    assert add(database, key(), owner="bob").id != first.id


def test_an_existing_id_is_a_conflict_and_no_repetition(database: Database) -> None:
    job_id = add(database, None).id
    with pytest.raises(Conflict):
        add(database, key(), job_id=job_id)
    assert stored_keys(database) == []


def test_keys_expire_and_are_deleted(database: Database) -> None:
    first = add(database, key("old", keep_seconds=-1))
    add(database, key("older", keep_seconds=-1))
    add(database, key("new"))
    with database.session(read_only=True) as session:
        assert changes.find_by_key(session, key("old"), owner="ada") is None
    second = add(database, key("old", fingerprint="0" * 64))
    assert second.id != first.id
    with database.session() as session:
        assert delete_expired_keys(session, limit=10) == 1
    assert stored_keys(database) == ["new", "old"]
    with database.session() as session:
        assert delete_expired_keys(session, limit=10) == 0
        assert reading.get(session, first.id, owner="ada") == first  # only the key is deleted
