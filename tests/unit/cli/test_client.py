"""The client with responses that the real service does not send on demand."""

import json
import socket
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from copy import deepcopy
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx2
import pytest

from api.cli.exit_codes import ExitCode
from api.client.client import Client
from api.client.connection import Connection
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
from api.client.models import Job
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


def test_an_error_leaves_the_process_that_met_it(service: StubService, client: Client) -> None:
    service.answers[HERE] = [(409, a_problem(409))]
    with pytest.raises(Conflicting) as caught:
        client.job(JOB_ID)
    caught.value.retry_after = 2.0
    copy = deepcopy(caught.value)  # as pickle does it
    assert (type(copy), str(copy), copy.problem) == (Conflicting, "what happened", caught.value.problem)
    assert copy.retry_after == 2.0


def test_an_answer_that_cannot_be_decoded_is_not_of_the_service(service: StubService, client: Client) -> None:
    service.headers["content-encoding"] = "gzip"
    service.answers[HERE] = [(200, a_job())]
    with pytest.raises(NotTheService, match="is not one of this service"):
        client.job(JOB_ID)


def test_no_service() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with Client(url, timeout=0.1) as client, pytest.raises(ServiceUnreachable, match="in time"):
            client.job(JOB_ID)
    for url in ("http://127.0.0.1:1", "localhost:8000", "http://[", "ftp://127.0.0.1", ""):
        with pytest.raises(ServiceUnreachable) as refused, Client(url) as client:
            client.submit({}, idempotency_key="k")
        assert url in str(refused.value)


@pytest.mark.parametrize("address", ["127.0.0.1:1", "[", "host:port"])
@pytest.mark.parametrize("password", ["hunter", "hun@ter", "hun/ter"])
def test_an_error_names_the_service_without_a_password(address: str, password: str) -> None:
    with pytest.raises(ServiceUnreachable) as refused, Client(f"http://me:{password}@{address}") as client:
        client.submit({}, idempotency_key="k")
    message = str(refused.value)
    assert [part for part in ("me:", "hun", "ter") if part in message] == []
    assert f"http://{address}" in message


def test_a_sweep_and_a_job_are_not_mistaken_for_each_other(client: Client) -> None:
    """Nothing is sent: the service would queue it."""
    for ratios in ([0.2, 0.4], (0.2, 0.4)):
        for method in (client.submit, client.validate):
            with pytest.raises(ValueError, match="submit_sweep"):
                method({"ratio": ratios})
    with pytest.raises(ValueError, match="submit_sweep"):
        client.submit_sweep({"ratio": 0.2})


@pytest.mark.parametrize("key", ["", "nightly\n", "n\u00e4chtlich", "a b", "n" * 256])
def test_a_key_that_cannot_be_sent_is_not_a_service_that_is_down(client: Client, pauses: list[float], key: str) -> None:
    with pytest.raises(ValueError, match="idempotency key"):
        client.submit({"model": "acme/tiny"}, idempotency_key=key)
    assert pauses == []


def test_a_command_says_what_to_do_when_its_key_finds_a_failed_job(service: StubService) -> None:
    found = a_job(status="failed", notice="this key made a job that has failed")
    service.answers |= {"POST /jobs": [(202, found)], f"POST /jobs/{JOB_ID}/retry": [(202, found)]}
    job = ("--model", "acme/tiny", "--ratio", "0.25", "--calibration", "builtin:general")
    for command in (("submit", *job), ("retry", JOB_ID)):
        done = run_at(service, *command, "--idempotency-key", "k", "--json")
        assert done.exit_code == ExitCode.JOB_FAILED
        assert "this key made a job that has failed" in done.stderr
    sweep = {"items": [{**found, "labels": {"sweep": "ab"}}], "next_cursor": None}
    service.answers["POST /jobs"] = [(202, sweep)]
    done = run_at(service, "submit", *job, "--ratio", "0.25,0.5", "--idempotency-key", "k", "--json")
    assert "this key made a job that has failed" in done.stderr
    assert service.keys == ["k", "k", "k"]


def submit_with_key(client: Client) -> object:
    return client.submit({"model": "acme/tiny"}, idempotency_key="k")


RATE, JOBS = (429, a_problem(429)), (429, a_problem(429, code="too_many_jobs"))
DOWN, PROXY, DONE, GONE = (503, a_problem(503)), (502, b"<html>"), (202, a_job()), (404, a_problem(404))
SHORT = 0.01
SAFE: list[Callable[[Client], object]] = [
    lambda client: client.job(JOB_ID),
    lambda client: client.cancel(JOB_ID),
    lambda client: client.plan({}),
    lambda client: client.validate({}),
    lambda client: client.delete(JOB_ID),
]


@pytest.mark.parametrize(
    ("call", "answers", "asked", "waited", "outcome"),
    [
        (submit_with_key, [DOWN, PROXY, DONE], None, [SHORT] * 2, None),
        (submit_with_key, [DOWN, RATE, DONE], "7", [7.0] * 2, None),
        (submit_with_key, [RATE], "3600", [], TooMany),
        (submit_with_key, [JOBS], "30", [], TooMany),
        (submit_with_key, [RATE], "soon", [], TooMany),
        (submit_with_key, [(422, a_problem(422))], None, [], Invalid),
        (lambda client: client.submit({}), [RATE, DONE], "3", [3.0], None),
        (lambda client: client.submit({}), [DOWN], "3", [], ServiceBroken),
        (lambda client: client.retry(JOB_ID), [DOWN], None, [], ServiceBroken),
        *((call, [DOWN], None, [SHORT] * 3, ServiceBroken) for call in SAFE),
    ],
)
def test_what_is_repeated_and_when(
    service: StubService,
    client: Client,
    pauses: list[float],
    caplog: pytest.LogCaptureFixture,
    call: Callable[[Client], object],
    answers: list[tuple[int, object]],
    asked: str | None,
    waited: list[float],
    outcome: type[Exception] | None,
) -> None:
    """What does nothing the second time, and what was refused for its rate; after as long as the service asks.

    A long pause is logged, else it looks as if the program hung.
    """
    service.otherwise = [*answers]
    service.headers |= {} if asked is None else {"Retry-After": asked}
    with nullcontext() if outcome is None else pytest.raises(outcome):
        call(client)
    assert pauses == waited
    assert caplog.messages == [f"trying again in {pause:.0f} s: what happened" for pause in waited if pause >= 5]
    assert service.received == [service.received[0]] * (len(waited) + 1)
    assert {*service.keys} == ({"k"} if call is submit_with_key else {None})


@pytest.mark.parametrize(
    ("answers", "outcome"),
    [([DOWN, GONE], None), ([DOWN, RATE, GONE], None), ([RATE, GONE], Missing), ([GONE], Missing)],
)
def test_what_a_repeated_deletion_does_not_find_was_deleted_before(
    service: StubService,
    client: Client,
    pauses: list[float],
    answers: list[tuple[int, object]],
    outcome: type[Exception] | None,
) -> None:
    service.headers |= {"Retry-After": "1"}
    for delete in (client.delete, client.webhooks.delete, client.credentials.delete):
        service.otherwise = [*answers]
        with nullcontext() if outcome is None else pytest.raises(outcome):
            delete(JOB_ID)
    assert len(pauses) == 3 * (len(answers) - 1)


def test_waiting_for_a_service_that_hangs_ends_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("api.client.connection.LEAST_SECONDS", 0.1)
    began = time.monotonic()
    with (
        socket.create_server(("127.0.0.1", 0)) as deaf,
        Client(f"http://127.0.0.1:{deaf.getsockname()[1]}") as client,
        pytest.raises(ServiceUnreachable, match="did not respond in time"),
    ):
        client.wait(JOB_ID, timeout=0.5)
    assert time.monotonic() - began < 10, "not the 30 seconds of a request"


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


def test_waiting_keeps_one_job_however_often_it_changes(
    service: StubService, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job that runs for days changes thousands of times, and has all of its specification each time."""
    seen: list[weakref.ref[Job]] = []
    most = 0

    def read(self: Connection, shape: type[Job], response: httpx2.Response) -> Job:
        nonlocal most
        most = max(most, sum(one() is not None for one in seen))
        job = shape.model_validate_json(response.content)
        seen.append(weakref.ref(job))
        return job

    monkeypatch.setattr(Connection, "read", read)
    monkeypatch.setattr("time.sleep", lambda _: None)
    service.answers[HERE] = [*[(200, a_job(status="running"))] * 20, (200, a_job(status="succeeded"))]
    assert client.wait(JOB_ID).status == "succeeded"
    assert (len(seen), most <= 2) == (21, True)


def test_a_log_is_followed_over_a_restart(service: StubService, client: Client, pauses: list[float]) -> None:
    """Whichever of its requests the service does not answer."""
    line = {"number": 1, "attempt": 1, "at": "2026-11-25T00:00:00Z", "text": "done"}
    down = [(503, a_problem(503))] * 6
    service.answers |= {
        HERE: [*down, (200, a_job(status="succeeded"))],
        f"{HERE}/logs": [*down, (200, {"items": [line], "next_cursor": None})],
    }
    assert [found.text for found in client.follow_log(JOB_ID)] == ["done"]
    assert len(pauses) == 2 * len(down)


def sse(*events: dict[str, object], rest: bytes = b"") -> bytes:
    lines = (f"event: {one['type']}\ndata: {json.dumps(one)}\nid: {one['seq']}\n\n" for one in events)
    return b"retry: 1\n\n: nothing\n\n" + "".join(lines).encode() + rest


@pytest.fixture
def streaming(service: StubService) -> StubService:
    service.headers["content-type"] = "text/event-stream"
    return service


def test_a_stream_resumes_where_it_was_cut(streaming: StubService, client: Client) -> None:
    cut = sse(an_event(1, "created"), an_event(2, "claimed"), rest=b'data: {"seq": 3, "ty')
    streaming.answers[STREAM] = [
        (200, cut),
        (503, a_problem(503)),
        (200, sse()),
        (200, sse(an_event(3, "stage"), an_event(4, "failed"))),
    ]
    assert [event.seq for event in client.stream(JOB_ID)] == [1, 2, 3, 4]
    assert streaming.known == [None, "2", "2", "2"]
    streaming.answers[STREAM] = [(204, b"")]
    assert list(client.stream(JOB_ID, after=7)) == []
    assert streaming.known[-1] == "7"


def test_a_stream_that_is_cut_before_its_first_event_resumes_where_it_began(
    streaming: StubService, client: Client
) -> None:
    streaming.answers["GET /events"] = [(200, sse(rest=b"id: 7\n\n")), (200, sse(an_event(8, "created")))]
    assert next(client.stream()).seq == 8
    assert streaming.known == [None, "7"]


def test_a_long_pause_of_a_stream_is_logged(
    streaming: StubService, client: Client, pauses: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    streaming.headers["Retry-After"] = "7"
    streaming.answers[STREAM] = [(503, a_problem(503)), (200, sse(an_event(1, "failed")))]
    assert [event.seq for event in client.stream(JOB_ID)] == [1]
    assert pauses == [7.0]
    assert caplog.messages == ["trying again in 7 s: what happened"]


def test_a_stream_that_fails(streaming: StubService, client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("api.client.connection.DOWN_SECONDS", 0.2)
    for answer, kind in (((200, b"data: hello\n\n"), NotTheService), ((503, a_problem(503)), ServiceBroken)):
        streaming.answers[STREAM] = [answer]
        with pytest.raises(kind):
            list(client.stream(JOB_ID))


def test_a_page_in_place_of_a_stream_is_not_the_service(service: StubService, client: Client) -> None:
    service.headers["content-type"] = "text/html"
    service.answers[STREAM] = [(200, b"<html>hello</html>")]
    with pytest.raises(NotTheService, match="text/event-stream"):
        list(client.stream(JOB_ID))


def test_a_stream_that_was_kept_alive_tolerates_an_outage(monkeypatch: pytest.MonkeyPatch) -> None:
    """The outage begins when the stream is lost, not with its last event."""
    monkeypatch.setattr("api.client.connection.DOWN_SECONDS", 0.2)

    def kept_alive() -> Iterator[bytes]:
        yield b": keep-alive\n\n"
        time.sleep(0.3)
        raise httpx2.ReadError("cut")

    bodies = [kept_alive(), sse(an_event(1, "failed"))]

    def answer(_: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(200, headers={"content-type": "text/event-stream"}, content=bodies.pop(0))

    with Client(transport=httpx2.MockTransport(answer)) as client:
        assert [event.seq for event in client.stream(JOB_ID)] == [1]


FORKS = """
import os, sys
from api.client.client import Client
with Client(sys.argv[1]) as client:
    client.workers()
    child = os.fork()
    client.workers()
    if child:
        sys.exit(os.waitpid(child, 0)[1])
"""


def test_after_a_fork_both_processes_have_connections_of_their_own() -> None:
    """On a connection in common one would read answers to the other."""
    ports: list[int] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"  # connections are kept

        def do_GET(self) -> None:
            ports.append(self.client_address[1])
            body = b'{"items": [], "next_cursor": null}'
            self.send_response(200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        done = subprocess.run([sys.executable, "-c", FORKS, url], capture_output=True, text=True, check=False)
        server.shutdown()
    assert done.returncode == 0, done.stderr
    assert len(ports) == 3
    assert len(set(ports)) == 2
