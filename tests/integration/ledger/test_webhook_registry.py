"""Webhooks are changed, disabled, rotated and deleted, each by its owner only."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import text, update

from replaceme_core.errors import Conflict, NotFound
from replaceme_core.ledger import webhooks
from replaceme_core.ledger.database import Database, now
from replaceme_core.ledger.states import DisabledBy, EventType
from replaceme_core.ledger.tables import DeliveryRow, WebhookRow
from replaceme_core.ledger.webhooks import MOST_STANDING, message_id
from tests.fixtures.jobs.ledger import Ledger
from tests.fixtures.webhooks.outbox import Outbox

ALL = tuple(EventType)


@pytest.fixture
def ledger(database: Database) -> Ledger:
    return Ledger(database)


@pytest.fixture
def outbox(database: Database) -> Outbox:
    return Outbox(database)


def test_an_owner_disables_and_enables(database: Database, ledger: Ledger, outbox: Outbox) -> None:
    webhook = outbox.add(events=(EventType.CREATED,))
    ledger.add()
    with database.session() as session:
        disabled = webhooks.change(session, session, webhook.id, owner="someone", values={}, enabled=False)
    assert disabled.disabled_by is DisabledBy.OWNER
    assert outbox.claim() is None
    (ended,) = outbox.deliveries(webhook.id)
    with pytest.raises(Conflict), database.session() as session:
        webhooks.redeliver(session, session, webhook.id, ended.message_id, owner="someone")
    ledger.add()
    with database.session() as session:
        enabled = webhooks.change(
            session, session, webhook.id, owner="someone", values={"labels": {"team": "red"}}, enabled=True
        )
    assert (enabled.disabled_at, enabled.labels) == (None, {"team": "red"})
    ledger.add()
    assert len(outbox.deliveries(webhook.id)) == 1
    with database.session() as session:
        webhooks.redeliver(session, session, webhook.id, ended.message_id, owner="someone")
    claimed = outbox.claim()
    assert claimed is not None
    assert (claimed.message_id, claimed.body) == (ended.message_id, ended.body)


def test_two_secrets_are_live_after_a_rotation_and_never_three(ledger: Ledger, outbox: Outbox) -> None:
    webhook = outbox.add(secret="first", events=(EventType.CREATED,))
    for secret, overlap, expected in (
        ("second", 60, ("second", "first")),
        ("third", 60, ("third", "second")),
        ("fourth", 0, ("fourth",)),
    ):
        rotated = outbox.rotate(webhook.id, secret, overlap_seconds=overlap)
        assert (rotated.previous_expires_at is None) == (overlap == 0)
        ledger.add()
        claimed = outbox.claim()
        assert claimed is not None
        assert claimed.secrets == expected
        outbox.record(claimed)
    outbox.rotate(webhook.id, "fifth", overlap_seconds=60)
    with outbox.database.session() as session:
        session.execute(update(WebhookRow).values(previous_expires_at=now(plus_seconds=-1)))
    ledger.add()
    claimed = outbox.claim()
    assert claimed is not None
    assert claimed.secrets == ("fifth",)
    with outbox.database.session() as session:
        webhooks.delete_old(session, session, older_than_seconds=60, limit=10)
        assert session.execute(text("SELECT previous_secret FROM webhooks")).scalar_one() is None


def test_another_webhook_may_sign(database: Database, ledger: Ledger, outbox: Outbox) -> None:
    standing = outbox.add(secret="shared", events=(EventType.FAILED,))
    job_id = ledger.add()
    of_job = outbox.add(events=(EventType.CANCELLED,), job_id=job_id, signed_by=standing.id)
    ledger.cancel(job_id)
    claimed = outbox.claim()
    assert claimed is not None
    assert (claimed.webhook_id, claimed.secrets) == (of_job.id, ("shared",))
    with pytest.raises(Conflict, match=standing.id):
        outbox.rotate(of_job.id, "own", overlap_seconds=0)
    with pytest.raises(NotFound):
        Outbox(database, owner="another").add(signed_by=standing.id)
    with database.session() as session:
        webhooks.remove(session, session, standing.id, owner="someone")
    with pytest.raises(NotFound):
        outbox.get(of_job.id)
    assert outbox.count() == 0


def test_what_is_old_is_deleted(database: Database, ledger: Ledger, outbox: Outbox) -> None:
    standing = outbox.add(events=(EventType.CANCELLED,))
    ended, active = ledger.add(), ledger.add()
    of_ended, of_active = (outbox.add(events=(EventType.CANCELLED,), job_id=one) for one in (ended, active))
    ledger.cancel(ended)
    while (claimed := outbox.claim()) is not None:
        outbox.record(claimed)
    with database.session() as session:
        assert webhooks.delete_old(session, session, older_than_seconds=60, limit=10) == 0
        session.execute(update(WebhookRow).values(created_at=now(plus_seconds=-100)))
        session.execute(update(DeliveryRow).values(finished_at=now(plus_seconds=-100)))
    with database.session() as session:
        assert webhooks.delete_old(session, session, older_than_seconds=60, limit=1) == 1
    assert outbox.get(of_active.id)
    with database.session() as session:
        assert webhooks.delete_old(session, session, older_than_seconds=60, limit=10) == 1
    assert outbox.get(standing.id)
    with pytest.raises(NotFound):
        outbox.get(of_ended.id)


def test_webhooks_of_another_owner_do_not_exist(database: Database, ledger: Ledger, outbox: Outbox) -> None:
    webhook = outbox.add(events=(EventType.CREATED,))
    job_id = ledger.add()
    other = Outbox(database, owner="another")
    with database.session() as session:
        for call in (
            lambda: webhooks.get(session, webhook.id, owner="another"),
            lambda: webhooks.change(session, webhook.id, owner="another", values={"url": "x"}),
            lambda: webhooks.remove(session, webhook.id, owner="another"),
            lambda: webhooks.deliveries(session, webhook.id, owner="another", limit=10),
            lambda: webhooks.delivery(session, webhook.id, message_id(job_id, 1), owner="another"),
            lambda: webhooks.redeliver(session, webhook.id, message_id(job_id, 1), owner="another"),
        ):
            with pytest.raises(NotFound):
                call()
        assert webhooks.page(session, owner="another", limit=10).items == ()
    with pytest.raises(NotFound):
        other.rotate(webhook.id, "x", overlap_seconds=0)


def test_a_list_is_read_in_pages_and_has_a_limit(database: Database, outbox: Outbox) -> None:
    ids = [outbox.add().id for _ in range(MOST_STANDING)]
    with pytest.raises(Conflict, match="limit"):
        outbox.add()
    found, cursor = [], None
    while True:
        with database.session(read_only=True) as session:
            page = webhooks.page(session, session, owner="someone", limit=30, cursor=cursor)
        found += [webhook.id for webhook in page.items]
        cursor = page.next_cursor
        if cursor is None:
            break
    assert found == ids[::-1]


def test_a_webhook_that_is_deleted_at_the_same_time_fails_no_job(postgres_url: str) -> None:
    """The event waits for the deletion, and then has no message for it."""
    database = Database(postgres_url)
    ledger, outbox = Ledger(database), Outbox(database, owner="racer")
    for _ in range(10):
        webhook = outbox.add(events=ALL)
        job_id = ledger.add(owner="racer")

        def delete(webhook_id: str) -> None:
            with database.session() as session:
                webhooks.remove(session, session, webhook_id, owner="racer")

        with ThreadPoolExecutor(2) as pool:
            ends = [pool.submit(delete, webhook.id), pool.submit(ledger.cancel, job_id)]
            for end in ends:
                end.result()
        assert ledger.history(job_id) == ["created", "cancel_requested", "cancelled"]
    assert outbox.count() == 0
    database.close()
