"""Messages are written with their events, claimed by one process at a time, and none is lost."""

import json
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest

from api.schemas.jobs import JobBody
from benchmarks.harness.specs import a_spec
from replaceme_core.errors import NotFound
from replaceme_core.ledger import changes, webhooks
from replaceme_core.ledger.database import Database
from replaceme_core.ledger.states import DeliveryState, DisabledBy, EventType, Payload
from replaceme_core.ledger.tables import DeliveryRow
from replaceme_core.ledger.webhooks import MOST_AT_ONCE, message_id
from tests.fixtures.jobs.ledger import Ledger
from tests.fixtures.webhooks.outbox import Outbox

ALL = tuple(EventType)


@pytest.fixture
def ledger(database: Database) -> Ledger:
    return Ledger(database)


@pytest.fixture
def outbox(database: Database) -> Outbox:
    return Outbox(database)


def test_every_event_has_its_message(ledger: Ledger, outbox: Outbox) -> None:
    webhook = outbox.add(events=ALL)
    job_id = ledger.add()
    ledger.release(ledger.claim(job_id))
    ledger.succeed(ledger.claim(job_id))
    events = ledger.events(job_id)
    assert outbox.types(webhook.id) == [event.type.value for event in events]
    messages = [json.loads(delivery.body) for delivery in reversed(outbox.deliveries(webhook.id))]
    for message, event in zip(messages, events, strict=True):
        assert message["type"] == f"job.{event.type}"
        assert message["timestamp"] == event.at.isoformat().replace("+00:00", "Z")
        data = message["data"]
        assert (data["job_id"], data["seq"], data["attempt"]) == (job_id, event.seq, event.attempt)
        assert data["event"] == dict(event.data)
        assert "job" not in data
    assert messages[-1]["data"]["status"] == "succeeded"


def test_a_change_that_is_rolled_back_leaves_no_message(database: Database, ledger: Ledger, outbox: Outbox) -> None:
    outbox.add(events=ALL)

    def add_and_fail() -> None:
        with database.session() as session:
            changes.add(session, spec=a_spec(), owner="someone")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        add_and_fail()
    assert outbox.count() == 0


def test_only_what_was_asked_for_is_sent(ledger: Ledger, outbox: Outbox) -> None:
    ends = outbox.add()
    red = outbox.add(labels={"team": "red"}, events=(EventType.CREATED,))
    foreign = Outbox(outbox.database, owner="another").add(events=ALL)
    plain, labelled = ledger.add(), ledger.add(labels={"team": "red", "run": "7"})
    of_job = outbox.add(events=ALL, job_id=plain)
    for job_id in (plain, labelled):
        ledger.cancel(job_id)
    assert outbox.types(ends.id) == ["cancelled", "cancelled"]
    assert [delivery.job_id for delivery in outbox.deliveries(red.id)] == [labelled]
    assert outbox.types(of_job.id) == ["cancel_requested", "cancelled"]
    assert {delivery.job_id for delivery in outbox.deliveries(of_job.id)} == {plain}
    assert Outbox(outbox.database, owner="another").deliveries(foreign.id) == ()


def test_a_full_message_has_the_job_as_the_api_shows_it(ledger: Ledger, outbox: Outbox) -> None:
    webhook = outbox.add(events=(EventType.SUCCEEDED, EventType.FAILED), payload=Payload.FULL)
    for end in (ledger.succeed, ledger.fail):
        job_id = ledger.add(labels={"team": "red"})
        end(ledger.claim(job_id))
        shown = JobBody.of(ledger.get(job_id), root="").model_dump(mode="json")
        message = json.loads(outbox.deliveries(webhook.id)[0].body)
        del shown["links"]
        assert message["data"]["job"] == shown


def test_many_processes_share_the_messages(ledger: Ledger, outbox: Outbox) -> None:
    for number in range(8):
        of_one = Outbox(outbox.database, owner=f"owner-{number}")
        of_one.add(events=(EventType.CREATED,))
        for _ in range(3):
            ledger.add(owner=f"owner-{number}")

    def send_all(_: int) -> list[int]:
        sent = []
        while (claimed := outbox.claim()) is not None:
            assert outbox.record(claimed)
            sent.append(claimed.number)
        return sent

    with ThreadPoolExecutor(4) as pool:
        sent = [number for part in pool.map(send_all, range(4)) for number in part]
    while (claimed := outbox.claim()) is not None:  # an owner may have been passed over for being busy
        outbox.record(claimed)
        sent.append(claimed.number)
    assert Counter(sent).most_common(1)[0][1] == 1
    assert len(sent) == 24


def test_slow_receivers_of_one_owner_do_not_hold_up_others(ledger: Ledger, outbox: Outbox) -> None:
    outbox.add(events=(EventType.CREATED,))
    other = Outbox(outbox.database, owner="another")
    other.add(events=(EventType.CREATED,))
    for _ in range(MOST_AT_ONCE + 3):
        ledger.add()
    ledger.add(owner="another")
    claims = [outbox.claim() for _ in range(MOST_AT_ONCE + 2)]
    owners = [outbox_owner(outbox.database, claim.number) for claim in claims if claim is not None]
    assert Counter(owners) == {"someone": MOST_AT_ONCE, "another": 1}


def outbox_owner(database: Database, number: int) -> str:
    with database.session(read_only=True) as session:
        found = session.get(DeliveryRow, number)
        assert found is not None
        return found.owner


def test_a_claim_that_is_over_is_taken_again_and_the_first_one_writes_nothing(ledger: Ledger, outbox: Outbox) -> None:
    webhook = outbox.add(events=(EventType.CREATED,))
    ledger.add()
    lost = outbox.claim(seconds=-1)
    held = outbox.claim()
    assert lost is not None
    assert held is not None
    assert (lost.number, lost.message_id, lost.body) == (held.number, held.message_id, held.body)
    assert outbox.claim() is None
    assert not outbox.record(lost)
    assert outbox.record(held)
    (delivery,) = outbox.deliveries(webhook.id)
    assert delivery.state is DeliveryState.DELIVERED
    assert [(one.number, one.status, one.error) for one in delivery.tries] == [(1, 204, None)]


def test_a_failure_is_sent_again_later_and_at_last_given_up(ledger: Ledger, outbox: Outbox) -> None:
    webhook = outbox.add(events=(EventType.CREATED,))
    ledger.add()
    for tries in (1, 2):
        claimed = outbox.claim()
        assert claimed is not None
        assert claimed.tries == tries
        outbox.record(claimed, error="status", retry_in=3600)
        assert outbox.claim() is None
        assert outbox.deliveries(webhook.id)[0].state is DeliveryState.PENDING
        outbox.make_due()
    last = outbox.claim()
    assert last is not None
    outbox.record(last, error="timeout", retry_in=None)
    (delivery,) = outbox.deliveries(webhook.id)
    assert delivery.state is DeliveryState.FAILED
    assert [one.error for one in delivery.tries] == ["status", "status", "timeout"]
    assert outbox.claim() is None


def test_410_disables_the_webhook_and_ends_what_is_pending(ledger: Ledger, outbox: Outbox) -> None:
    webhook, other = outbox.add(events=ALL), outbox.add(events=ALL)
    job_id = ledger.add()
    ledger.cancel(job_id)
    claimed = outbox.claim()
    while claimed is not None and claimed.webhook_id != webhook.id:
        outbox.record(claimed)
        claimed = outbox.claim()
    assert claimed is not None
    outbox.record(claimed, error="status", retry_in=5, is_gone=True)
    assert outbox.get(webhook.id).disabled_by is DisabledBy.RECEIVER
    assert outbox.get(other.id).disabled_at is None
    assert {delivery.state for delivery in outbox.deliveries(webhook.id)} == {DeliveryState.FAILED}
    ledger.add()
    assert len(outbox.deliveries(webhook.id)) == 3
    assert len(outbox.deliveries(other.id)) == 4


def test_a_redelivery_keeps_id_and_body_and_the_log(database: Database, ledger: Ledger, outbox: Outbox) -> None:
    webhook = outbox.add(events=(EventType.CREATED,))
    job_id = ledger.add()
    first = outbox.claim()
    assert first is not None
    outbox.record(first)
    with database.session() as session:
        again = webhooks.redeliver(session, webhook.id, message_id(job_id, 1), owner="someone")
    assert again.state is DeliveryState.PENDING
    second = outbox.claim()
    assert second is not None
    assert (second.message_id, second.body, second.tries) == (first.message_id, first.body, 1)
    outbox.record(second)
    (delivery,) = outbox.deliveries(webhook.id)
    assert [one.number for one in delivery.tries] == [1, 2]
    for wrong in ("nonsense", message_id(job_id, 99), message_id("0" * 8 + job_id[8:], 1)):
        with pytest.raises(NotFound), database.session() as session:
            webhooks.redeliver(session, webhook.id, wrong, owner="someone")
