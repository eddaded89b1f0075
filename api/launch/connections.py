"""Connections within limits: how many, how large the head of a request may be, and how long it may take.

Uvicorn limits none of these for its fast parser. Its own limit of concurrency counts idle connections and then refuses
everybody; here the connection that has been idle for longest makes room for a new one, so that a client that only
holds connections shuts nobody out.
"""

import asyncio
import time
from http import HTTPStatus
from typing import Any, ClassVar

import structlog
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from api.http.problems import PROBLEM_JSON, problem_response

HEAD_BYTES = 16 * 1024  # of a request line and its headers together
HEAD_FIELDS = 100
HEAD_SECONDS = 10.0
MESSAGE_BYTES = 1024 * 1024  # as sent: a body within its limit is smaller, even in chunks of one byte each
KEEP_ALIVE_SECONDS = 5
_PIECE_BYTES = 8 * 1024  # how much the parser gets at once, since it keeps all of an incomplete header
_REPORT_SECONDS = 60.0

_log = structlog.get_logger(__name__)


class HeadTooLarge(Exception):
    """Raised within the parser to end it."""


class OpenConnections:
    """The open connections of a process, oldest first. At most `most` stay open."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._open: dict[LimitedProtocol, None] = {}
        self._reported_at = float("-inf")

    def add(self, connection: "LimitedProtocol") -> None:
        """Add a new one. If there are too many, the one that has been idle for longest is closed, else the new one."""
        self._open[connection] = None
        if len(self._open) > self.most:
            superfluous = next((each for each in self._open if each.is_idle), connection)
            self.remove(superfluous)
            superfluous.transport.abort()
            self._report()

    def touch(self, connection: "LimitedProtocol") -> None:
        """A response has been sent: the connection is idle from now on."""
        if connection in self._open:
            del self._open[connection]
            self._open[connection] = None

    def remove(self, connection: "LimitedProtocol") -> None:
        self._open.pop(connection, None)

    def _report(self) -> None:
        now = time.monotonic()
        if now - self._reported_at > _REPORT_SECONDS:
            self._reported_at = now
            _log.warning("the limit of connections is reached; the longest idle ones are closed", most=self.most)


class LimitedProtocol(HttpToolsProtocol):
    """Uvicorn's protocol with limits. A subclass for each server holds its `open_connections`."""

    open_connections: ClassVar[OpenConnections]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._in_head = True
        self._message_bytes = 0  # received for the present request
        self._fields = 0
        self._timer: asyncio.TimerHandle | None = None

    @property
    def is_idle(self) -> bool:
        """Whether no request is being answered; one may have begun to arrive."""
        return self.cycle is None or self.cycle.response_complete

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._start_timer()
        self.open_connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        self.open_connections.remove(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        for start in range(0, len(data), _PIECE_BYTES):
            if self.transport.is_closing():
                return
            if self._in_head:  # empty lines before a request are no request yet, but end the wait for one
                self._start_timer()
            piece = data[start : start + _PIECE_BYTES]
            self._message_bytes += len(piece)
            super().data_received(piece)
            if self.transport.is_closing():
                return
            if self._in_head and self._message_bytes > HEAD_BYTES:
                self.send_400_response("")
            elif self._message_bytes > MESSAGE_BYTES:
                self.transport.abort()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head = True
        self._message_bytes = self._fields = 0
        self._start_timer()

    def on_header(self, name: bytes, value: bytes) -> None:
        self._fields += 1
        if self._fields > HEAD_FIELDS:
            raise HeadTooLarge
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._stop_timer()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._in_head = True
        self._message_bytes = 0

    def on_response_complete(self) -> None:
        self.open_connections.touch(self)
        super().on_response_complete()

    def send_400_response(self, msg: str) -> None:
        """Refuse what cannot be read, and close the connection."""
        if self._fields > HEAD_FIELDS or self._message_bytes > HEAD_BYTES:
            status, code = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "headers_too_large"
            detail = f"expected at most {HEAD_BYTES} bytes of headers in at most {HEAD_FIELDS} lines"
        else:
            status, code, detail = HTTPStatus.BAD_REQUEST, "bad_request", "the request is not valid HTTP"
        if self.is_idle or not self.cycle.response_started:
            body = bytes(problem_response(status=status, code=code, detail=detail).body)
            lines = [f"content-type: {PROBLEM_JSON}", f"content-length: {len(body)}", "connection: close", "", ""]
            self.transport.write(STATUS_LINE[status] + "\r\n".join(lines).encode() + body)
        self.transport.close()

    def _start_timer(self) -> None:
        if self._timer is None:
            self._timer = self.loop.call_later(HEAD_SECONDS, self._end_late_head)

    def _end_late_head(self) -> None:
        self._timer = None
        if self.is_idle:
            self.transport.close()
        else:  # it is the next request that is late; the present one is still to be answered
            self._start_timer()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def limited_to(most: int) -> type[LimitedProtocol]:
    """The protocol for one server with at most `most` open connections."""
    return type("LimitedProtocol", (LimitedProtocol,), {"open_connections": OpenConnections(most)})
