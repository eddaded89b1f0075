"""Events for all who follow: one reader of the database, each event once and in order."""

import asyncio
import json
import random
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
from fastapi import Request
from sqlalchemy import event, update
from starlette.responses import StreamingResponse
from starlette.testclient import TestClient

from api.http import callers
from api.http.callers import WITHOUT_KEY, Unknown, set_caller
from api.routes import event_feed
from api.routes.event_feed import EventFeed, EventMessage, stream
from benchmarks.harness.jobs import owner_of
from replaceme_core.ledger import attempts, changes, reading
from replaceme_core.ledger.database import Database, now
from replaceme_core.ledger.tables import ApiKeyRow
from replaceme_core.ledger.watching import all_events_after, events_after, number_all
from replaceme_core.runner.messages import Stage
from replaceme_core.settings import Settings
from tests.fixtures.api.keys import hold_key
from tests.fixtures.api.requests import SMALLEST, assert_problem, fields, submit
from tests.fixtures.jobs.ledger import Ledger, claim_job

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


async def take(messages: AsyncIterator[EventMessage | None], count: int) -> list[EventMessage]:
    found: list[EventMessage] = []
    while len(found) < count:
        message = await anext(messages)
        if message is not None:
            found.append(message)
    return found


def test_a_stream_of_a_job_ends_with_its_last_event(sqlite_database: Database) -> None:
    ledger = Ledger(sqlite_database)
    job_id = ledger.add(owner="ada")

    async def test(feed: EventFeed) -> None:
        messages = feed.of_job(job_id, owner="ada", after=0)
        assert [message.event.type for message in await take(messages, 1)] == ["created"]
        await asyncio.to_thread(lambda: ledger.fail(ledger.claim(job_id)))
        rest = [message async for message in messages if message is not None]
        assert [message.event.seq for message in rest] == [2, 3]
        assert rest[-1].event.type == "failed"

    with_feed(sqlite_database, test)


def test_a_stream_of_an_owner_has_no_event_of_another(sqlite_database: Database) -> None:
    ledger = Ledger(sqlite_database)
    ledger.add(owner="ada")

    async def test(feed: EventFeed) -> None:
        messages = feed.of_owner("ada", after=None)
        first = asyncio.create_task(take(messages, 2))
        await asyncio.sleep(0.3)
        await asyncio.to_thread(lambda: [ledger.add(owner=owner) for owner in ("bob", "ada", "bob")])
        mine = ledger.add(owner="ada")
        found = await first
        assert found[-1].event.job_id == mine
        assert {message.owner for message in found} == {"ada"}
        data = json.loads(found[-1].of_owner.split(b"data: ")[1])
        assert (data["job_id"], data["position"]) == (mine, found[-1].position)

    with_feed(sqlite_database, test)


def test_a_client_cut_off_at_random_sees_every_event_once_and_in_order(sqlite_database: Database) -> None:
    ledger = Ledger(sqlite_database)
    draw = random.Random(7)

    def work() -> None:
        for _ in range(25):
            job_id = ledger.add(owner=draw.choice(("ada", "bob")))
            claim = ledger.claim(job_id)
            with sqlite_database.session() as session:
                for stage in (Stage.RESOLVE, Stage.SOLVE):
                    attempts.record_progress(session, claim, stage=stage, overall=0.1, fraction=0, eta_seconds=None)
            ledger.fail(claim)

    async def test(feed: EventFeed) -> None:
        seen: list[tuple[int, str, int]] = []
        working = asyncio.create_task(asyncio.to_thread(work))
        last, quiet = 0, 0
        while quiet < 3:
            messages = feed.of_owner("ada", after=last)
            try:
                async with asyncio.timeout(draw.uniform(0.05, 0.4)):
                    async for message in messages:
                        if message is not None:
                            seen.append((message.position, message.event.job_id, message.event.seq))
                            last = message.position
            except TimeoutError:
                quiet = quiet + 1 if working.done() else 0
        await working
        with sqlite_database.session(read_only=True) as session:
            stored = events_after(session, 0, limit=1000, owner="ada")
        assert seen == [(each.position, each.event.job_id, each.event.seq) for each in stored]
        assert len(seen) > 25
        for job_id in {job_id for _, job_id, _ in seen}:
            assert [seq for _, of_job, seq in seen if of_job == job_id] == [1, 2, 3, 4, 5]

    with_feed(sqlite_database, test)


def test_a_stream_that_falls_behind_reads_from_the_table(
    sqlite_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_feed, "MOST_QUEUED", 3)
    ledger = Ledger(sqlite_database)

    async def test(feed: EventFeed) -> None:
        messages = feed.of_owner("ada", after=0)
        jobs = [ledger.add(owner="ada")]
        await take(messages, 1)
        jobs += await asyncio.to_thread(lambda: [ledger.add(owner="ada") for _ in range(10)])
        await asyncio.sleep(0.5)  # all are handed out meanwhile
        (follower,) = feed._of_owner["ada"]
        assert follower.fell_behind and not follower.queue
        assert [message.event.job_id for message in await take(messages, 10)] == jobs[1:]

    with_feed(sqlite_database, test)


def test_many_streams_are_one_reader(sqlite_database: Database) -> None:
    ledger = Ledger(sqlite_database)
    jobs = [ledger.add(owner="ada") for _ in range(100)]
    statements: list[str] = []

    async def test(feed: EventFeed) -> None:
        streams = [feed.of_job(job_id, owner="ada", after=1) for job_id in jobs]
        waiting = [asyncio.create_task(take(stream, 1)) for stream in streams]
        event.listen(sqlite_database._engine, "before_cursor_execute", lambda *each: statements.append(each[2]))
        feed._poll_seconds = 0.25
        selects = len(jobs)
        while selects > 20:  # until each has read what it missed
            statements.clear()
            await asyncio.sleep(1)
            selects = sum(statement.startswith("SELECT") for statement in statements)
        assert selects > 0
        assert feed.followers == 100
        await asyncio.to_thread(lambda: [ledger.cancel(job_id) for job_id in jobs])
        assert {message[0].event.type for message in await asyncio.gather(*waiting)} == {"cancel_requested"}
        for each in streams:
            await each.aclose()  # type: ignore[attr-defined]
        assert feed.followers == 0

    with_feed(sqlite_database, test)


def test_the_stream_over_http(client: TestClient, sqlite_database: Database) -> None:
    job_id = submit(client)
    with sqlite_database.session() as session:
        claim = claim_job(session, job_id, worker="w", lease_seconds=60)
        attempts.fail(session, claim, code="out_of_memory", message="too big")
    here = f"/jobs/{job_id}/events"
    answer = client.get(here, headers=STREAM)
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["cache-control"] == "no-store"
    assert "content-encoding" not in answer.headers
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


def test_the_events_of_all_jobs_in_pages(client: TestClient, sqlite_database: Database) -> None:
    jobs = [submit(client) for _ in range(3)]
    with sqlite_database.session() as session:
        changes.add(
            session, spec=reading.get(session, jobs[0], owner=owner_of(session, jobs[0])).spec, owner="somebody"
        )
    seen: list[str] = []
    path = "/events?limit=2"
    while path:
        page = client.get(path)
        seen += [item["job_id"] for item in page.json()["items"]]
        path = page.links.get("next", {}).get("url", "")
    assert seen == jobs


def test_positions_are_not_given_twice(sqlite_database: Database) -> None:
    """Also when the newest events have been deleted with their job."""
    ledger = Ledger(sqlite_database)
    first = ledger.add(owner="ada")
    ledger.cancel(first)
    number_all(sqlite_database)
    with sqlite_database.session() as session:
        before = all_events_after(session, 0, limit=10)[-1].position
        changes.delete_job(session, first, owner=owner_of(session, first))
    ledger.add(owner="ada")
    number_all(sqlite_database)
    with sqlite_database.session() as session:
        assert [each.position for each in all_events_after(session, before, limit=10)] == [before + 1]


@pytest.fixture
def quick_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The key of a stream is looked at ten times a second."""
    monkeypatch.setattr(event_feed, "KEEP_ALIVE_SECONDS", 0.1)
    monkeypatch.setattr(event_feed, "RECHECK_SECONDS", 0.1)
    monkeypatch.setattr(callers, "CACHE_SECONDS", 0.1)


@pytest.mark.parametrize(
    ("path", "how"), [("/events", "revoked"), ("/jobs/{id}/events?after=1", "expired"), ("/events", "scope")]
)
@pytest.mark.usefixtures("quick_checks")
def test_a_stream_ends_with_its_key(client: TestClient, settings: Settings, path: str, how: str) -> None:
    holder = hold_key(client, settings, owner="ada", scopes=["jobs:read", "jobs:write"])
    job_id = holder.post("/jobs", json=SMALLEST).json()["id"]
    with ThreadPoolExecutor(1) as pool:
        # the client of the tests returns a response once it has ended
        reading = pool.submit(holder.get, path.replace("{id}", job_id), headers=STREAM)
        with pytest.raises(TimeoutError):
            reading.result(timeout=0.7)
        change = {
            "revoked": {"revoked_at": now()},
            "expired": {"expires_at": now(plus_seconds=-1)},
            "scope": {"scopes": ["jobs:write"]},
        }[how]
        database = Database(settings.resolved_database_url)
        with database.session() as session:
            session.execute(update(ApiKeyRow).where(ApiKeyRow.id == holder.key_id).values(**change))
        database.close()
        ended = reading.result(timeout=30)
    assert ended.status_code == 200
    assert ended.text.count(": keep-alive") >= 2
    assert holder.get(path.replace("{id}", job_id), headers=STREAM).status_code in (401, 403)


@pytest.mark.usefixtures("quick_checks")
def test_a_stream_without_a_key_ends_once_a_key_is_needed(client: TestClient, settings: Settings) -> None:
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(client.get, "/events", headers=STREAM)
        with pytest.raises(TimeoutError):
            reading.result(timeout=0.7)
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
        app = SimpleNamespace(state=SimpleNamespace(services=SimpleNamespace(callers=Callers())))
        request = Request({"type": "http", "method": "GET", "headers": [], "app": app})
        set_caller(request.scope, WITHOUT_KEY)
        response = stream(parts(), request)
        assert isinstance(response, StreamingResponse)
        return len([part async for part in response.body_iterator])

    assert 2 < asyncio.run(asyncio.wait_for(count(), timeout=30)) < 200
