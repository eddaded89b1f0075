"""The client with responses that the real service does not send on demand."""

import math
import socket
from collections.abc import Iterator

import pytest
from typer.testing import CliRunner

from api.cli.exit_codes import ExitCode
from api.cli.main import app
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
)
from tests.fixtures.cli.stub_service import (
    JOB_ID,
    StubService,
    a_job,
    a_problem,
    an_event,
    stub_service,
)


@pytest.fixture
def server() -> Iterator[StubService]:
    with stub_service() as service:
        yield service


@pytest.fixture
def client(server: StubService) -> Iterator[Client]:
    with Client(server.url) as client:
        yield client


def test_submit_sends_the_request_as_it_is(server: StubService, client: Client) -> None:
    server.answers["POST /jobs"] = [(202, a_job())]
    request = {"model": "acme/tiny", "ratio": 0.25, "calibration": "builtin:pydoc-topics"}
    assert client.submit(request).id == JOB_ID
    assert server.received == [("POST /jobs", request)]


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (401, NotAllowed),
        (403, NotAllowed),
        (404, Missing),
        (409, Conflicting),
        (415, Refused),
        (422, Invalid),
        (500, ServiceBroken),
        (503, ServiceBroken),
    ],
)
def test_problems_become_typed_errors(server: StubService, client: Client, status: int, kind: type[Refused]) -> None:
    entries = [{"field": "ratio", "value": "NaN", "message": "expected a number"}]
    server.answers["POST /jobs"] = [(status, a_problem(status, errors=entries))]
    with pytest.raises(kind, match="what happened") as caught:
        client.submit({})
    assert type(caught.value) is kind
    assert caught.value.problem.status == status
    assert caught.value.problem.errors[0].field == "ratio"


@pytest.mark.parametrize("body", [b"", b"<html>Bad gateway</html>", b"[1]"])
def test_an_error_that_is_not_a_problem(server: StubService, client: Client, body: bytes) -> None:
    server.answers[f"GET /jobs/{JOB_ID}"] = [(502, body)]
    with pytest.raises(ServiceBroken, match="HTTP 502"):
        client.job(JOB_ID)


@pytest.mark.parametrize("body", [b"<html>hello</html>", {"id": 1}, []])
def test_a_success_of_another_service(server: StubService, client: Client, body: object) -> None:
    server.answers[f"GET /jobs/{JOB_ID}"] = [(200, body)]
    with pytest.raises(NotTheService, match="is not one of this service"):
        client.job(JOB_ID)


def test_a_closed_port() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        with Client(url) as client, pytest.raises(ServiceUnreachable, match=url):
            client.job(JOB_ID)


def test_no_response_in_time() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with Client(url, timeout=0.2) as client, pytest.raises(ServiceUnreachable, match="in time"):
            client.job(JOB_ID)


@pytest.mark.parametrize("url", ["localhost:8000", "http://[", "ftp://127.0.0.1", ""])
def test_an_invalid_address(url: str) -> None:
    with pytest.raises(ServiceUnreachable), Client(url) as client:
        client.job(JOB_ID)


def test_a_post_is_sent_once(server: StubService, client: Client) -> None:
    server.answers["POST /jobs"] = [(503, a_problem(503))]
    with pytest.raises(ServiceBroken):
        client.submit({})
    assert len(server.received) == 1


def test_a_submit_with_a_key_is_repeated_until_it_succeeds(server: StubService, client: Client) -> None:
    request = {"model": "acme/tiny"}
    server.answers["POST /jobs"] = [(503, a_problem(503)), (502, b"<html>"), (202, a_job())]
    assert client.submit(request, idempotency_key="k").id == JOB_ID
    assert server.received == [("POST /jobs", request)] * 3
    assert server.keys == ["k"] * 3


@pytest.mark.parametrize(("status", "kind", "tries"), [(503, ServiceBroken, 4), (422, Invalid, 1), (404, Missing, 1)])
def test_a_submit_with_a_key_gives_up(
    server: StubService, client: Client, status: int, kind: type[Refused], tries: int
) -> None:
    server.answers["POST /jobs"] = [(status, a_problem(status))]
    with pytest.raises(kind):
        client.submit({}, idempotency_key="k")
    assert len(server.received) == tries


def test_a_submit_with_a_key_to_a_closed_port() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        with Client(url) as client, pytest.raises(ServiceUnreachable, match=url):
            client.submit({}, idempotency_key="k")


def test_ids_are_quoted_in_paths(server: StubService, client: Client) -> None:
    with pytest.raises(Missing):
        client.job("../health?x=1")
    assert server.received == [("GET /jobs/..%2Fhealth%3Fx%3D1", None)]


def test_unknown_fields_are_kept(server: StubService, client: Client) -> None:
    server.answers[f"GET /jobs/{JOB_ID}"] = [(200, a_job(priority=7))]
    assert client.job(JOB_ID).model_dump()["priority"] == 7


def test_nan_and_infinity_are_numbers_again(server: StubService, client: Client) -> None:
    metric = {"name": "loss", "stage": "select", "block": None, "candidate": "2-3", "unit": "nats"}
    items = [{**metric, "value": value, "at": "2026-11-25T00:00:00Z"} for value in ("NaN", "Infinity", 0.5)]
    server.answers[f"GET /jobs/{JOB_ID}/metrics"] = [(200, {"items": items, "next_cursor": None})]
    not_a_number, infinite, plain = (metric.value for metric in client.metrics(JOB_ID))
    assert math.isnan(not_a_number)
    assert infinite == math.inf
    assert plain == 0.5


def test_filters_reach_the_service(server: StubService, client: Client) -> None:
    server.answers["GET /jobs"] = [(200, {"items": [a_job()], "next_cursor": "abc"})]
    page = client.jobs(status="queued", labels={"team": "nlp"}, limit=1)
    assert page.next_cursor == "abc"
    assert server.received[0][0] == "GET /jobs?status=queued&limit=1&label=team%3Dnlp"


def test_watch_tolerates_a_restart_of_the_service(server: StubService, client: Client) -> None:
    done = {"overall": 1.0, "stage": 1.0, "eta_seconds": None}
    server.answers[f"GET /jobs/{JOB_ID}"] = [
        (200, a_job(status="running")),
        (503, a_problem(503)),
        (200, a_job(status="succeeded", progress=done)),
    ]
    assert [job.status for job in client.watch(JOB_ID)] == ["running", "succeeded"]


def test_watch_gives_up_in_time(server: StubService, client: Client) -> None:
    server.answers[f"GET /jobs/{JOB_ID}"] = [(200, a_job(status="running"))]
    with pytest.raises(TimeoutError, match="still running"):
        client.wait(JOB_ID, timeout=0.1)


def test_history_reads_all_pages(server: StubService, client: Client) -> None:
    server.answers[f"GET /jobs/{JOB_ID}/events"] = [
        (200, {"items": [an_event(1, "created")], "next_cursor": "1"}),
        (200, {"items": [an_event(2, "claimed")], "next_cursor": None}),
    ]
    assert [event.seq for event in client.history(JOB_ID)] == [1, 2]


def test_submit_says_what_to_do_when_its_key_finds_a_failed_job(server: StubService) -> None:
    server.answers["POST /jobs"] = [(202, a_job(status="failed", notice="this key made a job that has failed"))]
    options = ["--model", "acme/tiny", "--ratio", "0.25", "--calibration", "builtin:general", "--idempotency-key", "k"]
    done = CliRunner().invoke(app, ["submit", *options, "--url", server.url, "--json"])
    assert done.exit_code == ExitCode.JOB_FAILED
    assert "this key made a job that has failed" in done.stderr
