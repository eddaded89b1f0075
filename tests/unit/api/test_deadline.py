"""A bounded time until a response begins."""

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


def test_who_waits_too_long_is_told_to_try_again() -> None:
    app, held = FastAPI(), Event()

    @app.get("/held")
    def worker_kind() -> str:
        held.wait(30)
        return "late"

    guarded = Deadline(app, reading_seconds=0.05, writing_seconds=30)
    with TestClient(guarded) as client:
        response = client.get("/held")
        assert_problem(response, status=503, code="unavailable")
        assert response.headers["retry-after"]
        assert guarded.left_behind == 1
        held.set()
        while guarded.left_behind:
            client.get("/none")


def test_what_answers_in_time_passes() -> None:
    app = FastAPI()

    @app.get("/stream")
    def worker_kind(request: Request) -> StreamingResponse:
        async def parts() -> AsyncIterator[bytes]:
            yield b"begun"
            while time.monotonic() < request.scope["replaceme.deadline"]:  # which is for the beginning only
                await asyncio.sleep(0.01)
            yield b" and ended"

        return StreamingResponse(parts())

    @app.get("/raise")
    def fail() -> None:
        raise RuntimeError("a reason")

    with TestClient(Deadline(app, reading_seconds=1)) as client:
        assert client.get("/stream").text == "begun and ended"
        with pytest.raises(RuntimeError, match="a reason"):
            client.get("/raise")


def test_a_late_commit_is_refused() -> None:
    check({})
    check({"replaceme.deadline": float("inf")})
    with pytest.raises(Unavailable):
        check({"replaceme.deadline": 0.0})
