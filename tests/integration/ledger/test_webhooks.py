"""Messages are written with their events, claimed by one process at a time, and none is lost. Webhooks are changed,
disabled, rotated and deleted, each by its owner only.
"""

import json
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import chain

import jsonschema_rs
import pytest
from sqlalchemy import select, text, update

from api.bodies import JobBody, LinksBody
from api.main import create_app
from benchmarks.harness.processes import wait_until
from benchmarks.harness.specs import a_spec
from replaceme_core.errors import Conflict, InvalidInput, NotFound
from replaceme_core.ledger import changes, webhooks
from replaceme_core.ledger.database import Database, now
from replaceme_core.ledger.states import DeliveryState, DisabledBy, EventType, Payload
from replaceme_core.ledger.tables import DeliveryRow, JobRow, WebhookRow
from replaceme_core.ledger.webhooks import (
    MOST_AT_ONCE,
    MOST_STANDING,
    MOST_TO_ONE,
    ClaimedDelivery,
    Webhook,
    message_id,
)
from tests.fixtures.jobs.ledger import Ledger, at_once
from tests.fixtures.webhooks.outbox import Outbox

ALL = tuple(EventType)


def claim(outbox: Outbox, *, seconds: float = 60) -> ClaimedDelivery:
    claimed = outbox.claim(seconds=seconds)
    assert claimed is not None
    return claimed


def test_every_event_has_its_message(ledger: Ledger, outbox: Outbox) -> None:
    webhook = outbox.add(events=ALL)
    job_id = ledger.add()
    ledger.release(ledger.claim(job_id))
    ledger.succeed(job_id)
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


def test_a_job_whose_specification_cannot_be_read_has_its_messages(ledger: Ledger, outbox: Outbox) -> None:
    """A later release has stored it. The sweep requeues and fails it like any other."""
    webhook = outbox.add(events=(EventType.LEASE_LAPSED,), labels={"team": "red"}, payload=Payload.FULL)
    job_id = ledger.add(labels={"team": "red"})
    ledger.claim(job_id, lease_seconds=-1)
    with ledger.database.session() as session:
        row = session.scalars(select(JobRow)).one()
        row.spec = {**row.spec, "later": 1}
    assert ledger.requeue_expired() == [job_id]
    job = json.loads(outbox.deliveries(webhook.id)[0].body)["data"]["job"]
    assert (job["id"], job["status"], job["spec"]["later"]) == (job_id, "queued", 1)


def test_a_full_message_has_the_job_as_the_api_shows_it(ledger: Ledger, outbox: Outbox) -> None:
    webhook = outbox.add(events=(EventType.SUCCEEDED, EventType.FAILED), payload=Payload.FULL)
    for end in (ledger.succeed, ledger.fail):
        job_id = ledger.add(labels={"team": "red"})
        end(job_id)
        shown = JobBody.of(ledger.get(job_id), links=LinksBody.at("", job_id)).model_dump(mode="json")
        message = json.loads(outbox.deliveries(webhook.id)[0].body)
        del shown["links"]
        assert message["data"]["job"] == shown


def test_messages_are_as_the_description_says(ledger: Ledger, outbox: Outbox) -> None:
    described = create_app().openapi()
    assert set(described["webhooks"]) == {f"job.{kind}" for kind in ALL}
    for payload in Payload:
        webhook = outbox.add(events=ALL, payload=payload)
        ledger.fail(ledger.add())
        for delivery in outbox.deliveries(webhook.id):
            body = described["webhooks"][delivery.type]["post"]["requestBody"]["content"]["application/json"]
            schema = {**body["schema"], "components": described["components"]}
            jsonschema_rs.Draft202012Validator(schema).validate(json.loads(delivery.body))


def test_many_processes_share_the_messages(database: Database) -> None:
    ledger, outbox = Ledger(database), Outbox(database)
    for number in range(8):
        of_one = Outbox(outbox.database, owner=f"owner-{number}")
        of_one.add(events=(EventType.CREATED,))
        for _ in range(3):
            ledger.add(owner=f"owner-{number}")

    def send_all() -> list[int]:
        sent = []
        while (claimed := outbox.claim()) is not None:
            assert outbox.record(claimed)
            sent.append(claimed.number)
        return sent

    sent = list(chain.from_iterable(at_once(*[send_all] * 4)))
    sent += send_all()  # an owner may have been passed over for being busy
    assert len(sent) == len(set(sent)) == 24


def test_slow_receivers_of_one_owner_do_not_hold_up_others(ledger: Ledger, outbox: Outbox) -> None:
    other = Outbox(outbox.database, owner="another").add(events=(EventType.CREATED,))
    for _ in range(MOST_AT_ONCE):
        outbox.add(events=(EventType.CREATED,))
    for _ in range(2):
        ledger.add()
    ledger.add(owner="another")
    claims = [outbox.claim() for _ in range(MOST_AT_ONCE + 2)]
    assert [claimed.webhook_id == other.id if claimed else None for claimed in claims] == [
        False,
        True,
        *[False] * (MOST_AT_ONCE - 1),
        None,
    ]


def test_a_slow_receiver_does_not_hold_up_others_of_its_owner(database: Database) -> None:
    ledger, outbox = Ledger(database), Outbox(database)
    slow = outbox.add(events=(EventType.CREATED,))
    for _ in range(MOST_TO_ONE + 1):
        ledger.add()
    other = outbox.add(events=(EventType.CREATED,))
    ledger.add()
    on_the_way = [claim(outbox) for _ in range(MOST_TO_ONE)]
    assert {one.webhook_id for one in on_the_way} == {slow.id}
    assert claim(outbox).webhook_id == other.id
    assert outbox.claim() is None
    assert outbox.record(on_the_way[0])
    assert claim(outbox).webhook_id == slow.id


def test_a_receiver_gets_few_at_a_time_from_all_senders_together(database: Database) -> None:
    ledger, outbox = Ledger(database), Outbox(database, owner="of a receiver")
    outbox.add(events=(EventType.CREATED,))
    for _ in range(8):
        ledger.add(owner=outbox.owner)
    claims = at_once(*[outbox.claim] * 8)
    assert sum(claimed is not None for claimed in claims) == MOST_TO_ONE


def test_the_owner_with_the_fewest_messages_on_the_way_comes_first(ledger: Ledger, outbox: Outbox) -> None:
    names = {}
    for owner in ("slow", "another-slow", "waiting"):
        webhook = Outbox(outbox.database, owner=owner).add(events=(EventType.CREATED,))
        names[webhook.id] = owner
        for _ in range(3):
            ledger.add(owner=owner)
    claims = [claim(outbox) for _ in range(6)]
    assert [names[claimed.webhook_id] for claimed in claims] == [*names.values(), *names.values()]


def test_a_claim_that_is_over_is_taken_again_and_the_first_one_writes_nothing(ledger: Ledger, outbox: Outbox) -> None:
    webhook = outbox.add(events=(EventType.CREATED,))
    ledger.add()
    lost, held = claim(outbox, seconds=-1), claim(outbox)
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
        claimed = claim(outbox)
        assert claimed.tries == tries
        outbox.record(claimed, error="status", retry_in=3600)
        assert outbox.claim() is None
        assert outbox.deliveries(webhook.id)[0].state is DeliveryState.PENDING
        outbox.make_due()
    outbox.record(claim(outbox), error="timeout", retry_in=None)
    (delivery,) = outbox.deliveries(webhook.id)
    assert delivery.state is DeliveryState.FAILED
    assert [one.error for one in delivery.tries] == ["status", "status", "timeout"]
    assert outbox.claim() is None


def test_a_redelivery_keeps_id_and_body_and_the_log(sqlite_database: Database, ledger: Ledger, outbox: Outbox) -> None:
    webhook = outbox.add(events=(EventType.CREATED,))
    job_id = ledger.add()
    first = claim(outbox)
    outbox.record(first)
    with sqlite_database.session() as session:
        again = webhooks.redeliver(session, webhook.id, message_id(job_id, 1), owner="someone")
    assert again.state is DeliveryState.PENDING
    second = claim(outbox)
    assert (second.message_id, second.body, second.tries) == (first.message_id, first.body, 1)
    outbox.record(second)
    (delivery,) = outbox.deliveries(webhook.id)
    assert [one.number for one in delivery.tries] == [1, 2]
    for wrong in ("nonsense", message_id(job_id, 99), message_id("0" * 8 + job_id[8:], 1)):
        with pytest.raises(NotFound), sqlite_database.session() as session:
            webhooks.redeliver(session, webhook.id, wrong, owner="someone")


def test_an_owner_disables_and_enables(sqlite_database: Database, ledger: Ledger, outbox: Outbox) -> None:
    webhook = outbox.add(events=(EventType.CREATED,))

    def switch(enabled: bool, **values: object) -> Webhook:
        with sqlite_database.session() as session:
            return webhooks.change(session, webhook.id, owner="someone", values=values, enabled=enabled)

    ledger.add()
    assert switch(False).disabled_by is DisabledBy.OWNER
    assert outbox.claim() is None
    (ended,) = outbox.deliveries(webhook.id)
    with pytest.raises(Conflict), sqlite_database.session() as session:
        webhooks.redeliver(session, webhook.id, ended.id, owner="someone")
    ledger.add()
    enabled = switch(True, labels={"team": "red"})
    assert (enabled.disabled_at, enabled.labels) == (None, {"team": "red"})
    ledger.add()
    assert len(outbox.deliveries(webhook.id)) == 1
    with sqlite_database.session() as session:
        webhooks.redeliver(session, webhook.id, ended.id, owner="someone")
    claimed = claim(outbox)
    assert (claimed.message_id, claimed.body) == (ended.id, ended.body)


def test_two_secrets_are_live_after_a_rotation_and_never_three(ledger: Ledger, outbox: Outbox) -> None:
    webhook = outbox.add(secret="first", events=(EventType.CREATED,))

    def secrets() -> tuple[str, ...]:
        ledger.add()
        claimed = claim(outbox)
        outbox.record(claimed)
        return claimed.secrets

    for secret, overlap, expected in (
        ("second", 60, ("second", "first")),
        ("third", 60, ("third", "second")),
        ("fourth", 0, ("fourth",)),
    ):
        rotated = outbox.rotate(webhook.id, secret, overlap_seconds=overlap)
        assert (rotated.previous_secret_expires_at is None) == (overlap == 0)
        assert secrets() == expected
    outbox.rotate(webhook.id, "fifth", overlap_seconds=60)
    with outbox.database.session() as session:
        session.execute(update(WebhookRow).values(previous_expires_at=now(plus_seconds=-1)))
    assert secrets() == ("fifth",)
    with outbox.database.session() as session:
        webhooks.delete_old(session, older_than_seconds=60, limit=10)
        assert session.execute(text("SELECT previous_secret FROM webhooks")).scalar_one() is None


def test_another_webhook_may_sign(sqlite_database: Database, ledger: Ledger, outbox: Outbox) -> None:
    standing = outbox.add(secret="shared", events=(EventType.FAILED,))
    job_id = ledger.add()
    of_job = outbox.add(events=(EventType.CANCELLED,), job_id=job_id, signed_by=standing.id)
    ledger.cancel(job_id)
    claimed = claim(outbox)
    assert (claimed.webhook_id, claimed.secrets) == (of_job.id, ("shared",))
    with pytest.raises(Conflict, match=standing.id):
        outbox.rotate(of_job.id, "own", overlap_seconds=0)
    with pytest.raises(InvalidInput, match="there is no webhook"):
        Outbox(sqlite_database, owner="another").add(signed_by=standing.id)
    with sqlite_database.session() as session:
        webhooks.remove(session, standing.id, owner="someone")
    with pytest.raises(NotFound):
        outbox.get(of_job.id)
    assert outbox.count() == 0


def test_a_webhook_that_ends_with_its_job_signs_for_no_other(
    sqlite_database: Database, ledger: Ledger, outbox: Outbox
) -> None:
    of_job = outbox.add(job_id=ledger.add())
    signed = outbox.add(job_id=ledger.add(), signed_by=outbox.add().id)
    for signer in (of_job, signed):
        with pytest.raises(InvalidInput) as refused:
            outbox.add(job_id=ledger.add(), signed_by=signer.id)
        assert refused.value.field == "webhook.signed_by"


def test_a_webhook_that_signs_for_another_is_not_deleted_for_its_age(
    sqlite_database: Database, ledger: Ledger, outbox: Outbox
) -> None:
    ended, active = ledger.add(), ledger.add()
    signer, signed = outbox.add(job_id=ended, events=()), outbox.add(job_id=active)
    ledger.cancel(ended)
    with sqlite_database.session() as session:  # as an earlier release allowed
        session.execute(update(WebhookRow).where(WebhookRow.id == signed.id).values(signed_by=signer.id))
        session.execute(update(WebhookRow).values(created_at=now(plus_seconds=-100)))
        webhooks.delete_old(session, older_than_seconds=60, limit=10)
    assert outbox.get(signer.id)
    assert outbox.get(signed.id)


def test_what_is_old_is_deleted(sqlite_database: Database, ledger: Ledger, outbox: Outbox) -> None:
    standing = outbox.add(events=(EventType.CANCELLED,))
    ended, active = ledger.add(), ledger.add()
    of_ended, of_active = (outbox.add(events=(EventType.CANCELLED,), job_id=one) for one in (ended, active))
    ledger.cancel(ended)
    while (claimed := outbox.claim()) is not None:
        outbox.record(claimed)
    with sqlite_database.session() as session:
        assert webhooks.delete_old(session, older_than_seconds=60, limit=10) == 0
        session.execute(update(WebhookRow).values(created_at=now(plus_seconds=-100)))
        session.execute(update(DeliveryRow).values(finished_at=now(plus_seconds=-100)))
    with sqlite_database.session() as session:
        assert webhooks.delete_old(session, older_than_seconds=60, limit=1) == 1
    assert outbox.get(of_active.id)
    with sqlite_database.session() as session:
        assert webhooks.delete_old(session, older_than_seconds=60, limit=10) == 2  # and its webhook
    assert outbox.get(standing.id)
    with pytest.raises(NotFound):
        outbox.get(of_ended.id)


def test_no_more_is_deleted_at_once_than_asked_for(sqlite_database: Database, ledger: Ledger, outbox: Outbox) -> None:
    """Nothing else can write meanwhile."""
    for job_id in [ledger.add() for _ in range(5)]:
        outbox.add(events=(), job_id=job_id)
        ledger.cancel(job_id)
    with sqlite_database.session() as session:
        session.execute(update(WebhookRow).values(created_at=now(plus_seconds=-100)))
        deleted = [webhooks.delete_old(session, older_than_seconds=60, limit=2) for _ in range(4)]
    assert deleted == [2, 2, 1, 0]


def test_a_list_is_read_in_pages_and_has_a_limit(sqlite_database: Database, outbox: Outbox) -> None:
    ids = [outbox.add().id for _ in range(MOST_STANDING)]
    with pytest.raises(Conflict, match="limit"):
        outbox.add()
    with sqlite_database.session(read_only=True) as session:
        first = webhooks.page(session, owner="someone", limit=60)
        last = webhooks.page(session, owner="someone", limit=60, cursor=first.next_cursor)
    assert [webhook.id for webhook in (*first.items, *last.items)] == ids[::-1]
    assert last.next_cursor is None


def test_several_at_once_stay_within_the_limit(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("replaceme_core.ledger.webhooks.MOST_STANDING", 2)
    outbox = Outbox(database, owner="who adds many at once")

    def add() -> bool:
        try:
            outbox.add()
        except Conflict:
            return False
        return True

    assert sum(at_once(*[add] * 8)) == 2


def test_a_webhook_that_is_deleted_at_the_same_time_fails_no_job(postgres_database: Database) -> None:
    """The event waits for the deletion, and then has no message for it."""
    database = postgres_database
    ledger, outbox = Ledger(database), Outbox(database, owner="racer")
    for _ in range(10):
        webhook = outbox.add(events=ALL)
        job_id = ledger.add(owner="racer")

        def delete(webhook_id: str) -> None:
            with database.session() as session:
                webhooks.remove(session, webhook_id, owner="racer")

        at_once(partial(delete, webhook.id), partial(ledger.cancel, job_id))
        assert ledger.history(job_id) == ["created", "cancel_requested", "cancelled"]
    assert outbox.count() == 0


def test_a_webhook_that_is_disabled_at_the_same_time_ends_the_message(postgres_database: Database) -> None:
    """It waits for the transaction that writes the event, whose message it would not see otherwise."""
    database = postgres_database
    outbox = Outbox(database, owner="racer")
    webhook = outbox.add(events=ALL)

    def disable() -> None:
        with database.session() as session:
            webhooks.change(session, webhook.id, owner="racer", values={}, enabled=False)

    def waits() -> bool:
        blocked = (
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        )
        with database.session(read_only=True) as session:
            return bool(session.scalar(text(blocked)))

    with ThreadPoolExecutor(1) as pool:
        with database.session() as session:
            changes.add(session, spec=a_spec(), owner="racer")
            disabling = pool.submit(disable)
            wait_until(lambda: disabling.done() or waits(), what="the change of the webhook")
        disabling.result()
    assert outbox.get(webhook.id).disabled_by is DisabledBy.OWNER
    assert [delivery.state for delivery in outbox.deliveries(webhook.id)] == [DeliveryState.FAILED]
    assert outbox.claim() is None


def test_two_messages_whose_receiver_is_gone_at_the_same_time_do_not_block_each_other(
    postgres_database: Database,
) -> None:
    database = postgres_database
    outbox = Outbox(database, owner="racer")
    for _ in range(10):
        webhook = outbox.add(events=(EventType.CREATED,))
        for _ in range(MOST_TO_ONE):
            Ledger(database).add(owner="racer")
        gone = [partial(outbox.record, claim(outbox), error="status", is_gone=True) for _ in range(MOST_TO_ONE)]
        assert True in at_once(*gone)
        assert outbox.get(webhook.id).disabled_by is DisabledBy.RECEIVER
        assert {delivery.state for delivery in outbox.deliveries(webhook.id)} == {DeliveryState.FAILED}


@pytest.mark.parametrize(
    ("error", "state"), [(None, DeliveryState.DELIVERED), ("timeout", DeliveryState.FAILED)], ids=["received", "failed"]
)
def test_the_log_has_the_try_of_a_message_that_was_on_the_way_when_its_webhook_was_disabled(
    database: Database, error: str | None, state: DeliveryState
) -> None:
    outbox = Outbox(database)
    webhook = outbox.add(events=(EventType.CREATED,))
    for _ in range(MOST_TO_ONE):
        Ledger(database).add()
    first, on_the_way = (claim(outbox) for _ in range(MOST_TO_ONE))
    outbox.record(first, error="status", is_gone=True)
    assert outbox.record(on_the_way, error=error, retry_in=0)
    logged = {one.id: one for one in outbox.deliveries(webhook.id)}[on_the_way.message_id]
    assert (logged.state, [one.error for one in logged.tries]) == (state, [error])
    assert outbox.claim() is None
