"""The client with responses that the real service does not send on demand."""

import json
import socket
import time
from collections.abc import Callable, Iterator

import pytest

from api.cli.exit_codes import ExitCode
from api.client.client import Client
from api.client.errors import (
    Conflicting,
    Invalid,
    Missing,
    NotAllowed,
    NotTheService,
    Refused,
    ServiceBroken,
    ServiceUnreachable,
    TooMany,
)
from api.client.event_stream import EventParser, Message
from tests.fixtures.cli.stub_service import JOB_ID, StubService, a_job, a_problem, an_event, run_at

HERE = f"GET /jobs/{JOB_ID}"
STREAM = f"GET /jobs/{JOB_ID}/events"


@pytest.fixture
def client(service: StubService) -> Iterator[Client]:
    with Client(service.url) as client:
        yield client


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What was slept, in place of sleeping."""
    slept: list[float] = []
    monkeypatch.setattr("time.sleep", slept.append)
    return slept


@pytest.mark.parametrize(
    ("status", "body", "kind", "words"),
    [
        *((status, None, NotAllowed, "what happened") for status in (401, 403)),
        (404, None, Missing, "what happened"),
        (409, None, Conflicting, "what happened"),
        (415, None, Refused, "what happened"),
        (422, None, Invalid, "what happened"),
        *((status, None, ServiceBroken, "what happened") for status in (500, 503)),
        *((502, body, ServiceBroken, "HTTP 502") for body in (b"", b"<html>Bad gateway</html>", b"[1]")),
        *((200, body, NotTheService, "is not one of this service") for body in (b"<html>hello</html>", {"id": 1}, [])),
    ],
)
def test_what_is_no_success_is_a_typed_error(
    service: StubService, client: Client, status: int, body: object, kind: type[Exception], words: str
) -> None:
    entry = {"field": "ratio", "value": "NaN", "message": "expected a number"}
    service.answers[HERE] = [(status, a_problem(status, errors=[entry]) if body is None else body)]
    with pytest.raises(kind, match=words) as caught:
        client.job(JOB_ID)
    assert type(caught.value) is kind
    if isinstance(caught.value, Refused):
        assert caught.value.problem.status == status
        assert [one.field for one in caught.value.problem.errors] == (["ratio"] if body is None else [])


def test_no_service() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with Client(url, timeout=0.1) as client, pytest.raises(ServiceUnreachable, match="in time"):
            client.job(JOB_ID)
    for url in ("http://127.0.0.1:1", "localhost:8000", "http://[", "ftp://127.0.0.1", ""):
        with pytest.raises(ServiceUnreachable) as refused, Client(url) as client:
            client.submit({}, idempotency_key="k")
        assert url in str(refused.value)


def test_a_submit_with_a_key_is_repeated_until_it_succeeds(
    service: StubService, client: Client, pauses: list[float]
) -> None:
    request = {"model": "acme/tiny"}
    service.answers["POST /jobs"] = [(503, a_problem(503)), (502, b"<html>"), (202, a_job())]
    assert client.submit(request, idempotency_key="k").id == JOB_ID
    assert service.received == [("POST /jobs", request)] * 3
    assert service.keys == ["k"] * 3
    assert pauses == [0.01, 0.01]


def test_submit_says_what_to_do_when_its_key_finds_a_failed_job(service: StubService) -> None:
    service.answers["POST /jobs"] = [(202, a_job(status="failed", notice="this key made a job that has failed"))]
    options = ("--model", "acme/tiny", "--ratio", "0.25", "--calibration", "builtin:general", "--idempotency-key", "k")
    done = run_at(service, "submit", *options, "--json")
    assert done.exit_code == ExitCode.JOB_FAILED
    assert service.keys == ["k"]
    assert "this key made a job that has failed" in done.stderr


def test_repetitions_wait_as_long_as_the_service_asks(
    service: StubService, client: Client, pauses: list[float]
) -> None:
    service.headers["Retry-After"] = "7"
    service.answers[HERE] = [(503, a_problem(503)), (429, a_problem(429)), (200, a_job())]
    client.job(JOB_ID)
    assert pauses == [7.0, 7.0]


def test_a_submission_without_a_key_is_repeated_only_if_it_was_refused_for_its_rate(
    service: StubService, client: Client, pauses: list[float]
) -> None:
    service.headers["Retry-After"] = "3"
    service.answers["POST /jobs"] = [(429, a_problem(429)), (202, a_job())]
    assert client.submit({}).id == JOB_ID
    service.answers["POST /jobs"] = [(503, a_problem(503)), (202, a_job())]
    with pytest.raises(ServiceBroken):
        client.submit({})
    assert pauses == [3.0]


@pytest.mark.parametrize(
    ("seconds", "code"), [("3600", "too_many_requests"), ("30", "too_many_jobs"), ("soon", "too_many_requests")]
)
def test_what_takes_too_long_is_for_the_caller(
    service: StubService, client: Client, pauses: list[float], seconds: str, code: str
) -> None:
    service.headers["Retry-After"] = seconds
    service.answers["POST /jobs"] = [(429, a_problem(429, code=code))]
    with pytest.raises(TooMany) as caught:
        client.submit({}, idempotency_key="k")
    assert caught.value.retry_after == (float(seconds) if seconds.isdigit() else None)
    assert pauses == []


@pytest.mark.parametrize(
    ("call", "tries"),
    [
        (lambda client: client.job(JOB_ID), 4),
        (lambda client: client.cancel(JOB_ID), 4),
        (lambda client: client.plan({}), 4),
        (lambda client: client.validate({}), 4),
        (lambda client: client.delete(JOB_ID), 4),
        (lambda client: client.retry(JOB_ID), 1),
    ],
    ids=["job", "cancel", "plan", "validate", "delete", "retry"],
)
def test_what_does_nothing_the_second_time_is_repeated(
    service: StubService, client: Client, call: Callable[[Client], object], tries: int
) -> None:
    for answer, kind, number in ((503, ServiceBroken, tries), (422, Invalid, 1)):
        service.otherwise = answer, a_problem(answer)
        service.received.clear()
        with pytest.raises(kind):
            call(client)
        assert len(service.received) == number


def test_waiting_asks_as_often_as_the_service_wants(service: StubService, client: Client, pauses: list[float]) -> None:
    service.headers |= {"Retry-After": "4", "ETag": '"v1"'}
    running, done = a_job(status="running", priority=7), a_job(status="succeeded")
    service.answers[HERE] = [(200, running), (304, b""), (304, b""), (200, done)]
    jobs = list(client.watch(JOB_ID))
    assert [job.status for job in jobs] == ["running", "succeeded"]
    assert jobs[0].model_dump()["priority"] == 7, "unknown fields are kept"
    assert pauses == [4.0, 4.0, 4.0]
    assert service.known == [None, '"v1"', '"v1"', '"v1"']
    service.answers[HERE] = [(503, a_problem(503)), (200, done)]  # the service restarts
    assert client.wait(JOB_ID).status == "succeeded"


def test_waiting_ends_in_time(service: StubService, client: Client) -> None:
    service.headers["Retry-After"] = "30"
    service.answers[HERE] = [(200, a_job(status="running"))]
    began = time.monotonic()
    with pytest.raises(TimeoutError, match="still running"):
        client.wait(JOB_ID, timeout=0.2)
    assert time.monotonic() - began < 5


def sse(*events: dict[str, object], rest: bytes = b"") -> bytes:
    lines = (f"event: {one['type']}\ndata: {json.dumps(one)}\nid: {one['seq']}\n\n" for one in events)
    return b"retry: 1\n\n: nothing\n\n" + "".join(lines).encode() + rest


def test_a_stream_resumes_where_it_was_cut(service: StubService, client: Client) -> None:
    cut = sse(an_event(1, "created"), an_event(2, "claimed"), rest=b'data: {"seq": 3, "ty')
    service.answers[STREAM] = [
        (200, cut),
        (503, a_problem(503)),
        (200, sse(an_event(3, "stage"), an_event(4, "failed"))),
    ]
    assert [event.seq for event in client.stream(JOB_ID)] == [1, 2, 3, 4]
    assert service.known == [None, "2", "2"]


def test_a_stream_that_has_nothing_more(service: StubService, client: Client) -> None:
    service.answers[STREAM] = [(204, b"")]
    assert list(client.stream(JOB_ID, after=7)) == []
    assert service.known == ["7"]


@pytest.mark.parametrize(
    ("answer", "kind"), [((200, b"data: hello\n\n"), NotTheService), ((503, a_problem(503)), ServiceBroken)]
)
def test_a_stream_that_fails(
    service: StubService,
    client: Client,
    monkeypatch: pytest.MonkeyPatch,
    answer: tuple[int, object],
    kind: type[Exception],
) -> None:
    monkeypatch.setattr("api.client.connection.DOWN_SECONDS", 0.2)
    service.answers[STREAM] = [answer]
    with pytest.raises(kind):
        list(client.stream(JOB_ID))


def test_a_stream_that_is_left_closes_its_connection(service: StubService) -> None:
    service.answers["GET /events"] = [(200, sse(an_event(1, "created"), an_event(2, "claimed")))]
    with Client(service.url) as client:
        events = client.stream()
        assert next(events).seq == 1
        events.close()  # type: ignore[attr-defined]  # it is a generator
        pool = client._connection._http._transport._pool  # type: ignore[attr-defined]
        assert all(connection.is_idle() or connection.is_closed() for connection in pool.connections)


WHOLE = "id: 1\r\ndata: a\u2028b\r\ndata: c\r\n\r\nid: 2\rdata:d\r\rdata\n\n: x\n\n".encode()


def test_events_in_chunks_of_any_size() -> None:
    expected = [Message(id="1", data="a\u2028b\nc"), Message(id="2", data="d"), Message(id="2", data="")]
    for size in range(1, len(WHOLE) + 1):
        parser, found = EventParser(), list[Message]()
        for start in range(0, len(WHOLE), size):
            found += parser.feed(WHOLE[start : start + size])
        assert found == expected, size
