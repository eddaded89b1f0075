"""The deadline until a response starts."""

import asyncio
import time
from collections.abc import AsyncIterator
from threading import Event

import pytest
from fastapi import FastAPI, Request
from starlette.responses import StreamingResponse
from starlette.testclient import TestClient

from api.http.deadline import Deadline, check
from replaceme_core.errors import Unavailable
from tests.fixtures.api.requests import assert_problem


def test_a_late_response_becomes_503() -> None:
    app, release = FastAPI(), Event()

    @app.get("/slow")
    def slow() -> str:
        release.wait(30)
        return "late"

    guarded = Deadline(app, reading_seconds=0.05, writing_seconds=30)
    with TestClient(guarded) as client:
        response = client.get("/slow")
        assert_problem(response, status=503, code="unavailable")
        assert response.headers["retry-after"]
        assert guarded.abandoned == 1
        release.set()
        while guarded.abandoned:
            client.get("/none")


def test_a_response_in_time_is_unchanged() -> None:
    app = FastAPI()

    @app.get("/stream")
    def stream(request: Request) -> StreamingResponse:
        async def chunks() -> AsyncIterator[bytes]:
            yield b"started"
            while time.monotonic() < request.scope["replaceme.deadline"]:  # the deadline is for the start only
                await asyncio.sleep(0.01)
            yield b" and ended"

        return StreamingResponse(chunks())

    @app.get("/raise")
    def fail() -> None:
        raise RuntimeError("a reason")

    with TestClient(Deadline(app, reading_seconds=1)) as client:
        assert client.get("/stream").text == "started and ended"
        with pytest.raises(RuntimeError, match="a reason"):
            client.get("/raise")


def test_a_late_commit_is_refused() -> None:
    check({})
    check({"replaceme.deadline": float("inf")})
    with pytest.raises(Unavailable):
        check({"replaceme.deadline": 0.0})
