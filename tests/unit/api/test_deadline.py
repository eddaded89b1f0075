"""Requests that take too long, clients that hang up, and transactions that wait for each other."""

import asyncio
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from typing import Any

import anyio.to_thread
import pytest
from fastapi import FastAPI, Request
from starlette.responses import StreamingResponse
from starlette.testclient import TestClient

from api.http.deadline import Deadline
from api.routes.deps import WRITE_SLOTS
from tests.fixtures.api.requests import SMALLEST, assert_problem


def test_a_late_response_becomes_503(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("api.http.deadline.READING_SECONDS", 0.05)
    app, release = FastAPI(), Event()

    @app.get("/slow")
    def slow() -> str:
        release.wait(30)
        return "late"

    guarded = Deadline(app)
    with TestClient(guarded) as client:
        response = client.get("/slow")
        assert_problem(response, status=503, code="unavailable")
        assert response.headers["retry-after"]
        assert len(guarded.abandoned) == 1
        release.set()
        while guarded.abandoned:
            client.get("/none")


def test_a_response_in_time_is_unchanged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("api.http.deadline.READING_SECONDS", 1.0)
    app = FastAPI()

    @app.get("/stream")
    def stream(request: Request) -> StreamingResponse:
        async def chunks() -> AsyncIterator[bytes]:
            yield b"started"
            while time.monotonic() < request.scope["replaceme.deadline"]:  # the deadline is for the start only
                await asyncio.sleep(0.01)
            yield b" and ended"

        return StreamingResponse(chunks())

    with TestClient(Deadline(app)) as client:
        assert client.get("/stream").text == "started and ended"


@pytest.mark.parametrize("pieces", [[], [b'{"model": ', b'"org/na']])
def test_a_request_that_breaks_off(client: TestClient, pieces: list[bytes], capfd: pytest.CaptureFixture[str]) -> None:
    arriving: list[dict[str, Any]] = [{"type": "http.request", "body": piece, "more_body": True} for piece in pieces]
    arriving.append({"type": "http.disconnect"})
    sent: list[Any] = []

    async def receive() -> Any:
        return arriving.pop(0) if len(arriving) > 1 else arriving[0]

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(b"host", b"testserver"), (b"content-type", b"application/json"), (b"content-length", b"500")]
    scope = {"type": "http", "method": "POST", "path": "/jobs", "query_string": b"", "headers": headers}
    assert client.portal is not None
    client.portal.call(client.app, scope, receive, send)
    assert [message.get("status") for message in sent[:1]] == [499]
    assert "Traceback" not in "".join(capfd.readouterr())


THREADS = WRITE_SLOTS + 3
REQUESTS = 4 * THREADS


def test_waiting_requests_do_not_block_the_commit_of_another(client: TestClient) -> None:
    """Between the route of a cancellation and its commit the framework takes a thread of the pool once more."""

    async def set_threads(number: float) -> float:
        limiter = anyio.to_thread.current_default_thread_limiter()
        before, limiter.total_tokens = limiter.total_tokens, number
        return before

    assert client.portal is not None
    before = client.portal.call(set_threads, THREADS)
    with ThreadPoolExecutor(REQUESTS) as pool:
        replies = list(pool.map(lambda _: client.post("/jobs", json=SMALLEST), range(REQUESTS)))
    assert [reply.status_code for reply in replies] == [202] * REQUESTS
    assert len({reply.headers["location"] for reply in replies}) == REQUESTS
    jobs = [reply.headers["location"] for reply in replies]
    with ThreadPoolExecutor(REQUESTS) as pool:
        replies = list(pool.map(lambda job: client.post(f"{job}/cancel"), jobs))
    assert [reply.status_code for reply in replies] == [200] * REQUESTS
    client.portal.call(set_threads, before)
