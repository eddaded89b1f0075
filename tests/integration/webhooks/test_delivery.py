"""Messages arrive: at a receiver that was down, from a process that was killed, and signed so that the official
verifier accepts them. Receivers are real servers, and so are the senders.
"""

import asyncio
import base64
import os
import re
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import pytest
from sqlalchemy import update
from standardwebhooks import Webhook, WebhookVerificationError
from starlette.testclient import TestClient

from api.main import create_app
from api.monitoring import Monitoring
from api.routes.delivery import Delivery, rules_of
from benchmarks.harness.processes import wait_until
from benchmarks.harness.servers import free_port
from benchmarks.harness.site import Site
from replaceme_core.ledger.database import Database, now
from replaceme_core.ledger.migrate import upgrade
from replaceme_core.ledger.states import DeliveryState, DisabledBy, EventType
from replaceme_core.ledger.tables import ApiKeyRow, DeliveryRow
from replaceme_core.settings import Settings
from replaceme_core.webhooks import Sender, new_secret
from tests.fixtures.api.keys import hold_key
from tests.fixtures.jobs.ledger import Ledger
from tests.fixtures.webhooks.outbox import Outbox
from tests.fixtures.webhooks.receiver import Received, Receiver, receiver

KEY = base64.b64encode(os.urandom(32)).decode()
ALL = tuple(EventType)


def settings_for(url: str, **changes: object) -> Settings:
    return Settings.model_validate(
        {
            "database_url": url,
            "encryption_key": KEY,
            "webhook_allow_http": True,
            "webhook_networks": ("127.0.0.1/32",),
            "webhook_timeout_seconds": 5.0,
            **changes,
        }
    )


@contextmanager
def delivering(settings: Settings) -> Iterator[Delivery]:
    """Threads that send, with short pauses."""
    delivery = Delivery(settings=settings, pause=lambda tries, retry_after=None: 0.1, poll_seconds=0.05)
    delivery.start()
    try:
        yield delivery
    finally:
        delivery.stop()


def verified(request: Received, secret: str) -> bool:
    try:
        Webhook(secret).verify(request.body, request.headers)
    except WebhookVerificationError:
        return False
    return True


def delivered(outbox: Outbox, webhook_id: str) -> list[str]:
    states = outbox.deliveries(webhook_id)
    return [one.id for one in states if one.state is DeliveryState.DELIVERED]


def test_a_receiver_that_was_down_gets_each_event_exactly_once(database_url: str, database: Database) -> None:
    ledger, outbox, settings = Ledger(database), Outbox(database), settings_for(database_url)
    secret, port = new_secret(), free_port()
    sealed = settings.secrets_box().seal(secret, field="webhook")
    webhook = outbox.add(url=f"http://127.0.0.1:{port}/x", secret=sealed, events=ALL)
    with delivering(settings), delivering(settings):
        jobs = [ledger.add() for _ in range(3)]
        wait_until(lambda: all(one.tries for one in outbox.deliveries(webhook.id)), what="a first failure")
        assert delivered(outbox, webhook.id) == []
        for job_id in jobs:
            ledger.succeed(ledger.claim(job_id))
        with receiver(port=port) as there:
            wait_until(lambda: len(delivered(outbox, webhook.id)) == 9, what="all are delivered")
    expected = {f"evt_{job_id}-{seq}" for job_id in jobs for seq in (1, 2, 3)}
    assert Counter(there.ids()) == dict.fromkeys(expected, 1)
    assert all(verified(request, secret) for request in there.received)
    assert not any(verified(request, new_secret()) for request in there.received)
    failures = {one.error for delivery in outbox.deliveries(webhook.id) for one in delivery.tries[:-1]}
    assert failures == {"not_connected"}


@dataclass(frozen=True, kw_only=True)
class Bench:
    """A webhook for new jobs, and its receiver."""

    settings: Settings
    ledger: Ledger
    outbox: Outbox
    there: Receiver
    secret: str
    id: str

    def send_one(self, **options: Any) -> bool:
        """Whether there was one."""
        delivery = Delivery(**{"settings": self.settings, **options})
        try:
            return delivery.send_one()
        finally:
            delivery.stop()


@pytest.fixture
def bench(sqlite_url: str, sqlite_database: Database) -> Iterator[Bench]:
    settings, outbox, secret = settings_for(sqlite_url), Outbox(sqlite_database), new_secret()
    sealed = settings.secrets_box().seal(secret, field="webhook")
    with receiver() as there:
        id = outbox.add(url=there.url, secret=sealed, events=(EventType.CREATED,)).id
        yield Bench(settings=settings, ledger=Ledger(sqlite_database), outbox=outbox, there=there, secret=secret, id=id)


def test_a_rotated_secret_still_verifies(bench: Bench) -> None:
    new = new_secret()
    bench.outbox.rotate(bench.id, bench.settings.secrets_box().seal(new, field="webhook"), overlap_seconds=60)
    bench.ledger.add()
    assert bench.send_one()
    assert verified(bench.there.received[0], bench.secret)
    assert verified(bench.there.received[0], new)


def test_410_disables_the_webhook(bench: Bench) -> None:
    monitoring = Monitoring(bench.ledger.database, streams=lambda: 0)
    bench.there.status = 410
    for waiting, is_sent in ((2, True), (0, False), (1, False)):
        for _ in range(waiting):
            bench.ledger.add()
        assert bench.send_one(record=monitoring.record_try) is is_sent
    assert len(bench.there.received) == 1
    assert bench.outbox.get(bench.id).disabled_by is DisabledBy.RECEIVER
    assert [one.state for one in bench.outbox.deliveries(bench.id)] == [DeliveryState.FAILED] * 2
    text = asyncio.run(monitoring.scrape(accept=""))[0].decode()
    monitoring.close()
    assert 'replaceme_webhook_tries_total{outcome="status"} 1.0' in text
    assert 'replaceme_webhook_deliveries_total{state="failed"} 1.0' in text


def test_a_secret_of_another_key_is_kept_and_sent_once_the_key_is_there(bench: Bench) -> None:
    other, url = base64.b64encode(os.urandom(32)).decode(), bench.settings.resolved_database_url
    bench.ledger.add()
    assert bench.send_one(settings=settings_for(url, encryption_key=other))
    (waiting,) = bench.outbox.deliveries(bench.id)
    assert (waiting.state, waiting.tries[0].error) == (DeliveryState.PENDING, "secret_unreadable")
    bench.outbox.make_due()
    assert bench.send_one(settings=settings_for(url, encryption_key=f"{other},{KEY}"))
    assert len(bench.there.received) == 1


def test_a_rotation_replaces_a_secret_of_another_key(bench: Bench) -> None:
    other = base64.b64encode(os.urandom(32)).decode()
    settings, new = settings_for(bench.settings.resolved_database_url, encryption_key=other), new_secret()
    bench.outbox.rotate(bench.id, settings.secrets_box().seal(new, field="webhook"), overlap_seconds=60)
    bench.ledger.add()
    assert bench.send_one(settings=settings)
    assert verified(bench.there.received[0], new)


def test_a_mistake_of_ours_is_a_failure_like_others(bench: Bench) -> None:
    class Broken(Sender):
        def send(self, url: str, *, body: str, headers: Mapping[str, str]) -> NoReturn:
            raise ZeroDivisionError

    bench.ledger.add()
    sender = Broken(rules=rules_of(bench.settings), seconds=1)
    assert [bench.send_one(sender=sender) for _ in range(2)] == [True, False]
    assert [one.error for one in bench.outbox.deliveries(bench.id)[0].tries] == ["internal_error"]


def test_messages_end_with_the_key_of_their_webhook(sqlite_url: str, sqlite_database: Database, tmp_path: Path) -> None:
    """What is sent is what the key may read: nothing once it is revoked or expired, also of what was waiting."""
    ledger, outbox = Ledger(sqlite_database), Outbox(sqlite_database, owner="alice")
    settings = settings_for(sqlite_url, data=tmp_path, hub=f"dir:{tmp_path}", broker_url="filesystem://")
    settings = settings.model_copy(update={"deliver_webhooks": False, "allowed_hosts": ("testserver",)})
    delivery = Delivery(settings=settings)
    scopes = ["jobs:read", "webhooks:write"]

    def errors() -> list[str | None]:
        return [one.tries[-1].error if one.tries else "none" for one in reversed(outbox.deliveries(webhook))]

    with TestClient(create_app(settings)) as client, receiver() as there:
        admin = hold_key(client, settings, owner="ops", scopes=["admin"])
        first = hold_key(client, settings, owner="alice", scopes=scopes)
        made = first.post("/webhooks", json={"url": there.url, "events": ["created"]}).json()
        webhook, path = made["id"], f"/webhooks/{made['id']}"
        assert made["key_id"] == first.key_id

        # a key that takes the place of another one takes its webhooks; the old one ends
        second = admin.post(f"/keys/{first.key_id}/rotate", json={"overlap_seconds": 0}).json()
        ledger.add(owner="alice")
        assert delivery.send_one()
        assert errors() == [None]

        ledger.add(owner="alice")
        admin.delete(f"/keys/{second['id']}")
        ledger.add(owner="alice")
        assert [delivery.send_one() for _ in range(3)] == [True, True, False]
        assert errors() == [None, "key_ended", "key_ended"]
        assert len(there.received) == 1

        # another key of the owner takes it over, and what was not sent is sent again
        third = hold_key(client, settings, owner="alice", scopes=scopes)
        assert third.patch(path, json={}).json()["key_id"] == third.key_id
        last = outbox.deliveries(webhook)[0]
        assert third.post(f"{path}/deliveries/{last.id}/redeliver").status_code == 202
        assert delivery.send_one()
        assert errors() == [None, "key_ended", None]

        with sqlite_database.session() as session:
            session.execute(update(ApiKeyRow).where(ApiKeyRow.id == third.key_id).values(scopes=["webhooks:write"]))
        ledger.add(owner="alice")
        assert delivery.send_one()
        with sqlite_database.session() as session:
            expired = {"scopes": scopes, "expires_at": now(plus_seconds=-1)}
            session.execute(update(ApiKeyRow).where(ApiKeyRow.id == third.key_id).values(**expired))
        ledger.add(owner="alice")
        assert delivery.send_one()
        assert errors() == [None, "key_ended", None, "key_ended", "key_ended"]
        assert len(there.received) == 2
    delivery.stop()


def test_errors_of_the_database_do_not_end_the_threads(tmp_path: Path) -> None:
    """There are no tables yet: the threads wait, and go on once there are."""
    url = f"sqlite:///{tmp_path / 'late.sqlite3'}"
    settings = settings_for(url)
    with delivering(settings), receiver() as there:
        time.sleep(0.3)
        upgrade(url)
        database = Database(url)
        outbox = Outbox(database)
        outbox.add(
            url=there.url,
            secret=settings.secrets_box().seal(new_secret(), field="webhook"),
            events=(EventType.CREATED,),
        )
        Ledger(database).add()
        wait_until(lambda: there.received, what="the message arrives")
        database.close()


def test_all_of_an_old_log_is_deleted_at_once(
    sqlite_url: str, sqlite_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("api.routes.delivery._CLEAN_LIMIT", 2)
    ledger, outbox = Ledger(sqlite_database), Outbox(sqlite_database)
    outbox.add(events=(EventType.CREATED,))
    for _ in range(5):
        ledger.add()
    while (claimed := outbox.claim()) is not None:
        outbox.record(claimed)
    with sqlite_database.session() as session:
        session.execute(update(DeliveryRow).values(finished_at=now(plus_seconds=-100)))
    delivery = Delivery(settings=settings_for(sqlite_url, webhook_log_seconds=60))
    delivery._clean()
    delivery.stop()
    assert outbox.count() == 0


@pytest.mark.chaos
def test_a_killed_sender_loses_nothing(site: Site) -> None:
    """SIGKILL to the real process of the API in the middle of sending; then another one."""
    ledger, outbox = Ledger(site.database), Outbox(site.database)
    site.extra = {
        "REPLACEME_ENCRYPTION_KEY": KEY,
        "REPLACEME_WEBHOOK_ALLOW_HTTP": "true",
        "REPLACEME_WEBHOOK_NETWORKS": "127.0.0.1/32",
        "REPLACEME_WEBHOOK_TIMEOUT_SECONDS": "2",
    }
    secret = new_secret()
    sealed = settings_for(site.database_url).secrets_box().seal(secret, field="webhook")
    with receiver() as there:
        webhook = outbox.add(url=there.url, secret=sealed, events=(EventType.CREATED,))
        there.answer = lambda _: time.sleep(30)  # it takes messages and never answers
        jobs = [ledger.add() for _ in range(3)]
        first = site.start_api()
        wait_until(lambda: len(there.received) >= 3, what="messages are on the way")
        first.process.kill()
        first.process.wait()
        jobs += [ledger.add() for _ in range(2)]  # while nobody sends
        assert {one.state for one in outbox.deliveries(webhook.id)} == {DeliveryState.PENDING}
        there.answer = None
        there.received.clear()
        second = site.start_api()
        wait_until(lambda: len(delivered(outbox, webhook.id)) == 5, what="all are delivered")
    assert Counter(there.ids()) == {f"evt_{job_id}-1": 1 for job_id in jobs}
    assert all(verified(request, secret) for request in there.received)
    written = first.log.read_text() + second.log.read_text()
    assert "webhook sent" in written
    assert not re.search(r"whsec_|token=1", written)
    for planted in (secret.removeprefix("whsec_"), KEY, sealed):
        assert planted not in written
