"""A client that hangs up in the middle of its request is no error."""

import asyncio
from typing import Any

import pytest

from api.main import create_app
from replaceme_core.settings import Settings


@pytest.mark.parametrize("pieces", [[], [b'{"model": '], [b'{"model": ', b'"org/na']])
def test_a_request_that_breaks_off(settings: Settings, pieces: list[bytes], capfd: pytest.CaptureFixture[str]) -> None:
    arriving: list[dict[str, Any]] = [{"type": "http.request", "body": piece, "more_body": True} for piece in pieces]
    arriving.append({"type": "http.disconnect"})
    sent: list[Any] = []

    async def receive() -> Any:
        return arriving.pop(0) if len(arriving) > 1 else arriving[0]

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(b"host", b"testserver"), (b"content-type", b"application/json"), (b"content-length", b"500")]
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "path": "/jobs",
        "raw_path": b"/jobs",
        "query_string": b"",
        "root_path": "",
        "scheme": "http",
        "headers": headers,
        "client": ("127.0.0.1", 1),
        "server": ("testserver", 80),
    }
    asyncio.run(create_app(settings)(scope, receive, send))  # type: ignore[arg-type]
    assert [message.get("status") for message in sent[:1]] == [499]
    assert "Traceback" not in "".join(capfd.readouterr())
