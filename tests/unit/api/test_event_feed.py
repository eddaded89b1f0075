"""Events for all who follow: one reader of the database, each event once and in order."""

import asyncio
import json
import random
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import SimpleNamespace

import pytest
from fastapi import Request
from httpx2 import Response
from sqlalchemy import update
from starlette.responses import StreamingResponse
from starlette.testclient import TestClient

from api.http import callers
from api.http.callers import CALLER, WITHOUT_KEY, Unknown
from api.routes import event_feed
from api.routes.event_feed import RETRY, EventFeed, EventMessage, stream
from api.routes.events import _encoded
from benchmarks.harness.jobs import owner_of
from benchmarks.harness.processes import wait_until
from replaceme_core.ledger import changes
from replaceme_core.ledger.database import Database, now
from replaceme_core.ledger.tables import ApiKeyRow
from replaceme_core.ledger.watching import FeedEvent, events_after, number_all
from replaceme_core.runner.messages import Stage
from replaceme_core.settings import Settings
from tests.fixtures.api.keys import hold_key
from tests.fixtures.api.requests import SMALLEST, assert_problem, fields, submit
from tests.fixtures.jobs.ledger import Ledger
from tests.fixtures.servers.database import listening

STREAM = {"accept": "text/event-stream"}


def with_feed(database: Database, test: Callable[[EventFeed], Awaitable[None]]) -> None:
    async def run() -> None:
        feed = EventFeed(database, poll_seconds=0.01)
        try:
            async with asyncio.timeout(60):
                await test(feed)
        finally:
            await feed.close()

    asyncio.run(run())


async def take(messages: AsyncIterator[EventMessage | int | None], count: int) -> list[EventMessage]:
    found: list[EventMessage] = []
    while len(found) < count:
        message = await anext(messages)
        if isinstance(message, EventMessage):
            found.append(message)
    return found


def test_a_client_cut_off_at_random_sees_every_event_once_and_in_order(
    sqlite_database: Database, ledger: Ledger
) -> None:
    draw = random.Random(7)

    def work() -> None:
        for owner in (*["ada", "bob"] * 5, "ada"):
            claim = ledger.claim(ledger.add(owner=owner))
            ledger.progress(claim, Stage.RESOLVE, Stage.SOLVE)
            ledger.fail(claim)

    async def test(feed: EventFeed) -> None:
        seen: list[FeedEvent] = []
        working = asyncio.create_task(asyncio.to_thread(work))
        last, quiet = 0, 0
        # six jobs of five events; on a busy machine a stream may end before it has begun
        while quiet < 3 or len(seen) < 30:
            messages = feed.of_owner("ada", after=last)
            try:
                async with asyncio.timeout(draw.uniform(0.02, 0.1)):
                    async for message in messages:
                        if isinstance(message, EventMessage):
                            seen.append(FeedEvent(position=message.position, owner="ada", event=message.event))
                            last = message.position
            except TimeoutError:
                quiet = quiet + 1 if working.done() else 0
        await working
        with sqlite_database.session(read_only=True) as session:
            assert seen == events_after(session, 0, limit=1000, owner="ada")
        data = json.loads(EventMessage(seen[-1]).of_owner.split(b"data: ")[1])
        assert (data["job_id"], data["position"]) == (seen[-1].event.job_id, last)
        for job_id in {one.event.job_id for one in seen}:
            assert [one.event.seq for one in seen if one.event.job_id == job_id] == [1, 2, 3, 4, 5]

    with_feed(sqlite_database, test)


def test_a_stream_from_now_on_begins_with_its_position(sqlite_database: Database, ledger: Ledger) -> None:
    """A client that is cut off before the first event resumes there, and misses nothing."""

    async def test(feed: EventFeed) -> None:
        ledger.add(owner="ada")
        sent = _encoded(feed.of_owner("ada", after=None), "of_owner")
        assert await anext(sent) == RETRY
        start = await anext(sent)
        with sqlite_database.session(read_only=True) as session:
            (created,) = events_after(session, 0, limit=10, owner="ada")
        assert start == b"id: %d\n\n" % created.position
        ledger.add(owner="ada")
        assert (await anext(sent)).startswith(b"id: %d\nevent: created\n" % (created.position + 1))

    with_feed(sqlite_database, test)


def test_a_stream_that_falls_behind_reads_from_the_table(
    sqlite_database: Database, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_feed, "MOST_QUEUED", 3)

    async def test(feed: EventFeed) -> None:
        messages = feed.of_owner("ada", after=0)
        jobs = [ledger.add(owner="ada")]
        await take(messages, 1)
        jobs += await asyncio.to_thread(lambda: [ledger.add(owner="ada") for _ in range(10)])
        (follower,) = feed._followers["ada", None]
        while not follower.fell_behind:
            await asyncio.sleep(0.01)
        assert not follower.queue
        assert [message.event.job_id for message in await take(messages, 10)] == jobs[1:]

    with_feed(sqlite_database, test)


def test_many_streams_are_one_reader(sqlite_database: Database, ledger: Ledger) -> None:
    jobs = [ledger.add(owner="ada") for _ in range(50)]
    statements: list[str] = []

    async def test(feed: EventFeed) -> None:
        streams = [feed.of_job(job_id, owner="ada", after=1) for job_id in jobs]
        waiting = [asyncio.create_task(take(stream, 1)) for stream in streams]
        feed._poll_seconds = 0.1
        selects = len(jobs)
        with listening(sqlite_database._engine, statements.append):
            while selects > 20:  # until each has read what it missed
                statements.clear()
                await asyncio.sleep(0.4)
                selects = sum(statement.startswith("SELECT") for statement in statements)
        assert selects > 0
        assert feed.followers == 50
        await asyncio.to_thread(lambda: [ledger.cancel(job_id) for job_id in jobs])
        assert {message[0].event.type for message in await asyncio.gather(*waiting)} == {"cancel_requested"}
        for each in streams:
            await each.aclose()  # type: ignore[attr-defined]
        assert feed.followers == 0

    with_feed(sqlite_database, test)


def test_the_stream_over_http(client: TestClient, sqlite_database: Database, ledger: Ledger) -> None:
    job_id = submit(client)
    ledger.fail(job_id)
    here = f"/jobs/{job_id}/events"
    answer = client.get(here, headers=STREAM)
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["cache-control"] == "no-store"
    assert "content-encoding" not in answer.headers
    for accept, kind in (
        ("application/json, text/event-stream", "text/event-stream"),
        ("application/json;q=0.9, text/event-stream; q=0.1", "application/json"),
        ("text/event-stream, application/json;q=1.0", "text/event-stream"),
        ("application/json;q=0.50, text/event-stream;q=0.5", "text/event-stream"),
        ("text/event-stream;q=0", "application/json"),
        ("text/event-stream;q=0.0", "application/json"),
        ("*/*", "application/json"),
    ):
        assert client.get(here, headers={"accept": accept}).headers["content-type"].startswith(kind), accept
    retry, *messages = answer.text.strip().split("\n\n")
    assert retry == "retry: 2000"
    parts = [dict(line.split(": ", 1) for line in message.split("\n")) for message in messages]
    assert [(part["id"], part["event"]) for part in parts] == [("1", "created"), ("2", "claimed"), ("3", "failed")]
    assert [json.loads(part["data"]) for part in parts] == client.get(here).json()["items"]
    resumed = client.get(here, headers={**STREAM, "last-event-id": "2"}).text
    assert "id: 3\n" in resumed and "id: 2\n" not in resumed
    assert client.get(here, headers={**STREAM, "last-event-id": "3"}).status_code == 204
    assert fields(client.get(here, headers={**STREAM, "last-event-id": "x"})).keys() == {"Last-Event-ID"}
    none = "/jobs/00000000-0000-4000-8000-000000000000/events"
    assert_problem(client.get(none, headers=STREAM), status=404, code="job_not_found")


def test_the_events_of_all_jobs_in_pages(client: TestClient, sqlite_database: Database, ledger: Ledger) -> None:
    jobs = [submit(client) for _ in range(3)]
    ledger.add(owner="somebody")
    seen: list[str] = []
    path = "/events?limit=2"
    while path:
        page = client.get(path)
        seen += [item["job_id"] for item in page.json()["items"]]
        path = page.links.get("next", {}).get("url", "")
    assert seen == jobs


def test_positions_are_not_given_twice(sqlite_database: Database, ledger: Ledger) -> None:
    """Also when the newest events have been deleted with their job."""
    first = ledger.add(owner="ada")
    ledger.cancel(first)
    number_all(sqlite_database)
    with sqlite_database.session() as session:
        before = events_after(session, 0, limit=10, owner=None)[-1].position
        changes.delete_job(session, first, owner=owner_of(session, first))
    ledger.add(owner="ada")
    number_all(sqlite_database)
    with sqlite_database.session() as session:
        assert [each.position for each in events_after(session, before, limit=10, owner=None)] == [before + 1]


def test_a_stream_ends_with_a_job_that_is_deleted(
    sqlite_database: Database, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one transaction with its end, so that no event of that is left to be read."""
    monkeypatch.setattr(event_feed, "KEEP_ALIVE_SECONDS", 0.05)

    async def test(feed: EventFeed) -> None:
        job_id = ledger.add(owner="ada")
        messages = feed.of_job(job_id, owner="ada", after=0)
        await take(messages, 1)
        with sqlite_database.session() as session:
            changes.request_cancel(session, job_id, owner="ada")
            changes.delete_job(session, job_id, owner="ada")
        async with asyncio.timeout(10):
            assert [message async for message in messages if message is not None] == []
        assert feed.followers == 0

    with_feed(sqlite_database, test)


@pytest.fixture
def quick_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The key of a stream is looked at ten times a second."""
    monkeypatch.setattr(event_feed, "KEEP_ALIVE_SECONDS", 0.1)
    monkeypatch.setattr(event_feed, "RECHECK_SECONDS", 0.1)
    monkeypatch.setattr(callers, "CACHE_SECONDS", 0.1)


def assert_open(client: TestClient, reading: Future[Response]) -> None:
    """The client of the tests returns a response once it has ended."""
    feed: EventFeed = client.app.state.services().feed  # type: ignore[attr-defined]
    wait_until(lambda: feed.followers, seconds=30, what="the stream")
    with pytest.raises(TimeoutError):
        reading.result(timeout=0.3)


@pytest.mark.parametrize(
    ("path", "change"),
    [
        ("/events", {"revoked_at": now()}),
        ("/jobs/{id}/events?after=1", {"expires_at": now(plus_seconds=-1)}),
        ("/events", {"scopes": ["jobs:write"]}),
    ],
    ids=["revoked", "expired", "scope"],
)
@pytest.mark.usefixtures("quick_checks")
def test_a_stream_ends_with_its_key(
    client: TestClient, settings: Settings, sqlite_database: Database, path: str, change: dict[str, object]
) -> None:
    holder = hold_key(client, settings, owner="ada", scopes=["jobs:read", "jobs:write"])
    path = path.replace("{id}", holder.post("/jobs", json=SMALLEST).json()["id"])
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(holder.get, path, headers=STREAM)
        assert_open(client, reading)
        with sqlite_database.session() as session:
            session.execute(update(ApiKeyRow).where(ApiKeyRow.id == holder.key_id).values(**change))
        ended = reading.result(timeout=30)
    assert (ended.status_code, ended.text.partition(":")[0]) == (200, "retry")
    assert holder.get(path, headers=STREAM).status_code in (401, 403)


@pytest.mark.usefixtures("quick_checks")
def test_a_stream_without_a_key_ends_once_a_key_is_needed(client: TestClient, settings: Settings) -> None:
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(client.get, "/events", headers=STREAM)
        assert_open(client, reading)
        hold_key(client, settings, owner="ada", scopes=["jobs:read"])
        assert reading.result(timeout=30).status_code == 200


def test_a_busy_stream_is_checked_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that never pauses gets no keep-alive, and its key is looked at all the same."""
    monkeypatch.setattr(event_feed, "RECHECK_SECONDS", 0.05)

    class Callers:
        async def identify(self, _: object) -> Unknown:
            return Unknown(detail="revoked")

    async def parts() -> AsyncGenerator[bytes]:
        while True:
            await asyncio.sleep(0.001)
            yield b""

    async def count() -> int:
        services = SimpleNamespace(callers=Callers())
        app = SimpleNamespace(state=SimpleNamespace(services=lambda: services))
        request = Request({"type": "http", "method": "GET", "headers": [], "app": app})
        request.scope[CALLER] = WITHOUT_KEY
        response = stream(parts(), request)
        assert isinstance(response, StreamingResponse)
        return len([part async for part in response.body_iterator])

    assert asyncio.run(asyncio.wait_for(count(), timeout=30)) < 200
