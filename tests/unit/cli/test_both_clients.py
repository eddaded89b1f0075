"""What the client that waits and the one for asyncio have in common: each case is run with both."""

import asyncio
import inspect
import json
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import Any

import pytest

from api.client.access import CredentialsClient, KeysClient
from api.client.async_access import AsyncCredentialsClient, AsyncKeysClient
from api.client.async_client import AsyncClient
from api.client.async_webhooks import AsyncWebhooksClient
from api.client.client import Client
from api.client.errors import NotTheService, ServiceBroken, ServiceUnreachable, TooMany
from api.client.event_stream import EventParser, Message
from api.client.webhooks import WebhooksClient
from tests.fixtures.cli.stub_service import JOB_ID, StubService, a_job, a_problem, an_event, stub_service

HERE = f"GET /jobs/{JOB_ID}"
STREAM = f"GET /jobs/{JOB_ID}/events"


class Both:
    """Runs a method with one of the clients; items of an iterator come as a list."""

    def __init__(self, url: str, *, is_async: bool) -> None:
        self._url, self._is_async = url, is_async

    def call(self, name: str, *arguments: Any, **options: Any) -> Any:
        if self._is_async:
            return asyncio.run(self._await(name, *arguments, **options))
        with Client(self._url) as client:
            found = getattr(client, name)(*arguments, **options)
            return list(found) if isinstance(found, Iterator) else found

    async def _await(self, name: str, *arguments: Any, **options: Any) -> Any:
        async with AsyncClient(self._url) as client:
            found: AsyncIterator[Any] | Coroutine[Any, Any, Any] = getattr(client, name)(*arguments, **options)
            if isinstance(found, AsyncIterator):
                return [item async for item in found]
            return await found


@pytest.fixture
def server() -> Iterator[StubService]:
    with stub_service() as service:
        yield service


@pytest.fixture(params=[False, True], ids=["sync", "async"])
def both(request: pytest.FixtureRequest, server: StubService) -> Both:
    return Both(server.url, is_async=request.param)


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What was slept, in place of sleeping."""
    slept: list[float] = []

    async def asleep(seconds: float) -> None:
        slept.append(seconds)

    monkeypatch.setattr("api.client.connection.time.sleep", slept.append)
    monkeypatch.setattr("api.client.async_connection.asyncio.sleep", asleep)
    return slept


@pytest.mark.parametrize(
    ("sync", "other"),
    [
        (Client, AsyncClient),
        (KeysClient, AsyncKeysClient),
        (CredentialsClient, AsyncCredentialsClient),
        (WebhooksClient, AsyncWebhooksClient),
    ],
)
def test_the_methods_are_the_same(sync: type, other: type) -> None:
    methods = {name: each for name, each in vars(sync).items() if callable(each) and not name.startswith("__")}
    assert methods.keys() == {name for name, each in vars(other).items() if callable(each) and name[:2] != "__"}
    for name, each in methods.items():
        theirs = vars(other)[name]
        assert inspect.signature(each).parameters == inspect.signature(theirs).parameters, name
        returned = str(inspect.signature(each).return_annotation)
        assert str(inspect.signature(theirs).return_annotation).replace(".AsyncIterator", ".Iterator") == returned
        is_iterator = "Iterator" in returned
        assert inspect.iscoroutinefunction(theirs) is not is_iterator, name


def test_a_read_is_repeated(server: StubService, both: Both, pauses: list[float]) -> None:
    server.answers[HERE] = [(503, a_problem(503)), (502, b"<html>"), (200, a_job())]
    assert both.call("job", JOB_ID).id == JOB_ID
    assert len(server.received) == 3
    assert pauses == [0.01, 0.01]


def test_repetitions_wait_as_long_as_the_service_asks(server: StubService, both: Both, pauses: list[float]) -> None:
    server.headers["Retry-After"] = "7"
    server.answers[HERE] = [(503, a_problem(503)), (429, a_problem(429)), (200, a_job())]
    both.call("job", JOB_ID)
    assert pauses == [7.0, 7.0]


def test_a_submission_without_a_key_is_repeated_only_if_it_was_refused_for_its_rate(
    server: StubService, both: Both, pauses: list[float]
) -> None:
    server.headers["Retry-After"] = "3"
    server.answers["POST /jobs"] = [(429, a_problem(429)), (202, a_job())]
    assert both.call("submit", {}).id == JOB_ID
    server.answers["POST /jobs"] = [(503, a_problem(503)), (202, a_job())]
    with pytest.raises(ServiceBroken):
        both.call("submit", {})
    assert pauses == [3.0]


@pytest.mark.parametrize(
    ("seconds", "code"), [("3600", "too_many_requests"), ("30", "too_many_jobs"), ("soon", "too_many_requests")]
)
def test_what_takes_too_long_is_for_the_caller(
    server: StubService, both: Both, pauses: list[float], seconds: str, code: str
) -> None:
    server.headers["Retry-After"] = seconds
    server.answers["POST /jobs"] = [(429, a_problem(429, code=code))]
    with pytest.raises(TooMany) as caught:
        both.call("submit", {}, idempotency_key="k")
    assert caught.value.retry_after == (float(seconds) if seconds.isdigit() else None)
    assert pauses == []


@pytest.mark.parametrize(
    ("method", "arguments", "request_line", "tries"),
    [
        ("cancel", (JOB_ID,), f"POST /jobs/{JOB_ID}/cancel", 4),
        ("plan", ({},), "POST /plans", 4),
        ("validate", ({},), "POST /jobs", 4),
        ("delete", (JOB_ID,), f"DELETE /jobs/{JOB_ID}", 4),
        ("retry", (JOB_ID,), f"POST /jobs/{JOB_ID}/retry", 1),
    ],
)
def test_what_does_nothing_the_second_time_is_repeated(
    server: StubService, both: Both, method: str, arguments: tuple[object, ...], request_line: str, tries: int
) -> None:
    server.answers[request_line] = [(503, a_problem(503))]
    with pytest.raises(ServiceBroken):
        both.call(method, *arguments)
    assert len(server.received) == tries


def test_waiting_asks_as_often_as_the_service_wants(server: StubService, both: Both, pauses: list[float]) -> None:
    server.headers |= {"Retry-After": "4", "ETag": '"v1"'}
    running, done = a_job(status="running"), a_job(status="succeeded")
    server.answers[HERE] = [(200, running), (304, b""), (304, b""), (200, done)]
    jobs = both.call("watch", JOB_ID)
    assert [job.status for job in jobs] == ["running", "succeeded"]
    assert pauses == [4.0, 4.0, 4.0]
    assert server.known == [None, '"v1"', '"v1"', '"v1"']
    assert both.call("wait", JOB_ID).status == "succeeded"


def test_waiting_ends_in_time(server: StubService, both: Both) -> None:
    server.headers["Retry-After"] = "30"
    server.answers[HERE] = [(200, a_job(status="running"))]
    began = time.monotonic()
    with pytest.raises(TimeoutError, match="still running"):
        both.call("wait", JOB_ID, timeout=0.2)
    assert time.monotonic() - began < 5


def sse(*events: dict[str, object], rest: bytes = b"") -> bytes:
    lines = (f"event: {one['type']}\ndata: {json.dumps(one)}\nid: {one['seq']}\n\n" for one in events)
    return b"retry: 1\n\n: nothing\n\n" + "".join(lines).encode() + rest


def test_a_stream_resumes_where_it_was_cut(server: StubService, both: Both) -> None:
    cut = sse(an_event(1, "created"), an_event(2, "claimed"), rest=b'data: {"seq": 3, "ty')
    server.answers[STREAM] = [
        (200, cut),
        (503, a_problem(503)),
        (200, sse(an_event(3, "stage"), an_event(4, "failed"))),
    ]
    assert [event.seq for event in both.call("stream", JOB_ID)] == [1, 2, 3, 4]
    assert server.known == [None, "2", "2"]


def test_a_stream_that_has_nothing_more(server: StubService, both: Both) -> None:
    server.answers[STREAM] = [(204, b"")]
    assert both.call("stream", JOB_ID, after=7) == []
    assert server.known == ["7"]


def test_a_stream_of_another_service(server: StubService, both: Both) -> None:
    server.answers[STREAM] = [(200, b"data: hello\n\n")]
    with pytest.raises(NotTheService):
        both.call("stream", JOB_ID)


def test_a_stream_of_a_service_that_stays_away(
    server: StubService, both: Both, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("api.client.flows.DOWN_SECONDS", 0.2)
    server.answers[STREAM] = [(503, a_problem(503))]
    with pytest.raises(ServiceBroken):
        both.call("stream", JOB_ID)


def test_a_stream_that_is_left_closes_its_connection(server: StubService) -> None:
    server.answers["GET /events"] = [(200, sse(an_event(1, "created"), an_event(2, "claimed")))]
    with Client(server.url) as client:
        events = client.stream()
        assert next(events).seq == 1
        events.close()  # type: ignore[attr-defined]  # it is a generator
        pool = client._connection.http._transport._pool  # type: ignore[attr-defined]
        assert all(connection.is_idle() or connection.is_closed() for connection in pool.connections)


def test_a_found_key_that_is_refused_is_dropped(
    server: StubService, both: Both, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    (tmp_path / "api-key").write_text("rmk_of_another_service")
    monkeypatch.setenv("REPLACEME_DATA", str(tmp_path))
    monkeypatch.delenv("REPLACEME_API_KEY", raising=False)
    server.answers[STREAM] = [(401, a_problem(401)), (200, sse(an_event(1, "failed")))]
    assert [event.type for event in both.call("stream", JOB_ID)] == ["failed"]
    assert server.authorizations == ["Bearer rmk_of_another_service", None]


@pytest.mark.parametrize("is_async", [False, True])
def test_a_closed_port(is_async: bool) -> None:
    with stub_service() as gone:
        url = gone.url
    with pytest.raises(ServiceUnreachable, match=url):
        Both(url, is_async=is_async).call("job", JOB_ID)


WHOLE = "id: 1\r\ndata: a\u2028b\r\ndata: c\r\n\r\nid: 2\rdata:d\r\rdata\n\n: x\n\n".encode()


@pytest.mark.parametrize("size", range(1, len(WHOLE) + 1))
def test_events_in_chunks_of_any_size(size: int) -> None:
    parser, found = EventParser(), list[Message]()
    for start in range(0, len(WHOLE), size):
        found += parser.feed(WHOLE[start : start + size])
    assert found == [Message(id="1", data="a\u2028b\nc"), Message(id="2", data="d"), Message(id="2", data="")]


def test_parts_of_the_clients_send_the_same(server: StubService) -> None:
    calls: list[Callable[[Any], Any]] = [
        lambda client: client.credentials.set("mine", "hf_x"),
        lambda client: client.credentials.delete("mine"),
        lambda client: client.keys.rotate("k", overlap_seconds=3),
        lambda client: client.webhooks.update("w", enabled=False),
    ]
    with Client(server.url) as client:
        for call in calls:
            with pytest.raises(Exception, match="no "):
                call(client)

    async def asynchronously() -> None:
        async with AsyncClient(server.url) as client:
            for call in calls:
                with pytest.raises(Exception, match="no "):
                    await call(client)

    asyncio.run(asynchronously())
    half = len(server.received) // 2
    assert half == len(calls)
    assert server.received[:half] == server.received[half:]
