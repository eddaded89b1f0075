"""The process of the API: uvicorn with limits of connections.

    python -m api.http.server --host 127.0.0.1 --port 8000

Exit status 2: the settings forbid this address, or are not valid, or the database does not say whether there are keys.

Limited are how many connections there are, of whom, how large the head of a request may be, how long it may take, and
how many requests one connection may send before they are answered.
Whatever a client holds open is a connection: a stream of events, a response that is waited for, half a body, half a
head, or nothing at all. So connections are what is counted, for each key and, where no key is known yet, for each
address. One caller has at most half of them. When all are in use, the caller who holds most loses one to the next that
comes. Uvicorn has no such limits for its fast parser. Its own limit of concurrency counts idle connections and then
refuses everybody.
"""

import argparse
import asyncio
import resource
import sys
import time
from collections import defaultdict, deque
from functools import partial
from http import HTTPStatus
from typing import Any, ClassVar

import structlog
import uvicorn
from fastapi import Response
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from api.http.callers import check_exposure
from api.http.guard import HOLD
from api.http.hosts import is_trusted, network_of
from api.http.problems import problem_of, problem_response
from api.http.request_log import FOR_BROWSERS
from replaceme_core import telemetry
from replaceme_core.errors import ReplaceMeError, Unavailable
from replaceme_core.settings import read_settings, warn_of_unknown_settings

HEAD_BYTES = 16 * 1024  # of a request line and its headers together
HEAD_FIELDS = 100
HEAD_SECONDS = 10.0
MESSAGE_BYTES = 1024 * 1024  # as sent: a body within its limit is smaller, even in chunks of one byte each
KEEP_ALIVE_SECONDS = 5
MOST_WAITING = 16  # requests of a connection behind the one that is being answered: each is parsed, and takes memory
_PIECE_BYTES = 8 * 1024  # how much the parser gets at once, since it keeps all of an incomplete header
_REPORT_SECONDS = 60.0
_PROXIES = "proxies"
_log = structlog.get_logger(__name__)


class LimitExceeded(Exception):
    """Raised within the parser to end it."""


class OpenConnections:
    """The open connections of a process by their holders, keys or addresses. At most `most` stay open.

    Those of a holder are in the order of their last requests. `proxies` are addresses that hold connections for others:
    one belongs to no caller before its request has come.
    """

    def __init__(self, most: int, *, proxies: tuple[str, ...] = ()) -> None:
        self.most = most
        self.share = most // 2
        self._proxies = proxies
        self._held: defaultdict[str, dict[LimitedProtocol, None]] = defaultdict(dict)
        self._reported_at = float("-inf")

    def add(self, connection: "LimitedProtocol", address: str) -> None:
        """Add a new one. If there are too many now, one of the holder with most is closed."""
        self.hold(connection, _PROXIES if is_trusted(address, self._proxies) else network_of(address))
        if sum(map(len, self._held.values())) > self.most:
            held = max(self._held.values(), key=len)
            self._close(_first_waiting(held, besides=connection) or next(iter(held)))

    def hold(self, connection: "LimitedProtocol", holder: str) -> int | None:
        """Count a connection, unless it is being closed, for this holder from now on.

        Returns the limit if the holder has more than it may. If one of them waits for its client, the one that has
        waited longest is closed instead.
        """
        self.remove(connection)
        if connection.transport.is_closing():
            return None
        connection.holder = holder
        held = self._held[holder]
        held[connection] = None
        if len(held) <= self.share or holder == _PROXIES:
            return None
        waiting = _first_waiting(held, besides=connection)
        if waiting is None:
            return self.share
        self._close(waiting)
        return None

    def remove(self, connection: "LimitedProtocol") -> None:
        held = self._held.get(connection.holder, {})
        held.pop(connection, None)
        if not held:
            self._held.pop(connection.holder, None)

    def _close(self, connection: "LimitedProtocol") -> None:
        now = time.monotonic()
        if now - self._reported_at > _REPORT_SECONDS:
            self._reported_at = now
            holder, held = connection.holder, len(self._held[connection.holder])
            _log.warning("a caller holds too many connections; the oldest are closed", holder=holder, held=held)
        self.remove(connection)
        connection.shed()


def _first_waiting(held: dict["LimitedProtocol", None], *, besides: "LimitedProtocol") -> "LimitedProtocol | None":
    return next((each for each in held if each.waits_for_client and each is not besides), None)


class LimitedProtocol(HttpToolsProtocol):
    """Uvicorn's protocol with limits. A subclass for each server holds its `open_connections`."""

    open_connections: ClassVar[OpenConnections]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.holder = ""
        self._in_head = True
        self._message_bytes = 0  # received for the present request
        self._fields = 0
        self._timer: asyncio.TimerHandle | None = None
        self._unanswered: deque[RequestResponseCycle] = deque()
        """The request that is being answered, and those that wait behind it; the last one may still be arriving."""

    @property
    def is_idle(self) -> bool:
        """Whether no request is being answered; one may have begun to arrive."""
        return not self._unanswered

    @property
    def waits_for_client(self) -> bool:
        """Whether the client has to send something next: a request, or the rest of one."""
        return self.is_idle or (self.cycle.more_body and not self.cycle.response_started)

    def shed(self) -> None:
        """Close it to make room for another. A client that has sent a request, or a part of one, gets 503."""
        is_begun = self._in_head and self._message_bytes > 0 if self.is_idle else not self.cycle.response_started
        if is_begun and len(self._unanswered) < 2:
            excess = Unavailable(
                "you hold too many connections, and this one was closed for another; check whether the request took "
                "effect before you retry"
            )
            self._respond(problem_of(excess))
            self.transport.close()
        else:
            self.transport.abort()
        self._disconnect()

    def _disconnect(self) -> None:
        """What the application sends now has nowhere to go. Uvicorn says so for the last request only."""
        for cycle in self._unanswered:
            cycle.disconnected = True
            cycle.message_event.set()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._start_timer()
        self.open_connections.add(self, self.client[0] if self.client else "")

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        self.open_connections.remove(self)
        self._disconnect()
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
        if len(self._unanswered) > MOST_WAITING:
            raise LimitExceeded
        super().on_message_begin()
        self.scope[HOLD] = partial(self.open_connections.hold, self)  # type: ignore[literal-required]
        self._in_head = True
        self._fields = 0
        self._start_timer()

    def on_header(self, name: bytes, value: bytes) -> None:
        self._fields += 1
        if self._fields > HEAD_FIELDS:
            raise LimitExceeded
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._stop_timer()
        super().on_headers_complete()
        self._unanswered.append(self.cycle)

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._in_head = True
        self._message_bytes = 0

    def on_response_complete(self) -> None:
        self._unanswered.popleft()
        self.open_connections.hold(self, self.holder)  # now the last of those that wait
        super().on_response_complete()

    def send_400_response(self, msg: str) -> None:
        """Refuse what cannot be read, and close the connection.

        Without a response where requests wait: a client would take it for that to an earlier one.
        """
        if self._fields > HEAD_FIELDS or self._message_bytes > HEAD_BYTES:
            status = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
            detail = f"expected at most {HEAD_BYTES} bytes of headers in at most {HEAD_FIELDS} lines"
        else:
            status, detail = HTTPStatus.BAD_REQUEST, "the request is not valid HTTP"
        if self.is_idle or (len(self._unanswered) == 1 and not self.cycle.response_started):
            self._respond(problem_response(status=status, detail=detail))
        self.transport.close()
        self._disconnect()

    def _respond(self, response: Response) -> None:
        """Send a response of the server itself, the last one on this connection."""
        response.headers.update(FOR_BROWSERS)
        head = b"".join(b"%s: %s\r\n" % header for header in [*response.raw_headers, (b"connection", b"close")])
        self.transport.write(STATUS_LINE[response.status_code] + head + b"\r\n" + bytes(response.body))

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


def limited_to(most: int, *, proxies: tuple[str, ...] = ()) -> type[LimitedProtocol]:
    """The protocol for one server with at most `most` open connections; `proxies` as for `OpenConnections`."""
    return type("LimitedProtocol", (LimitedProtocol,), {"open_connections": OpenConnections(most, proxies=proxies)})


# The process

DRAIN_SECONDS = 5
RESERVED_DESCRIPTORS = 256  # for the backlog, which is accepted at once, and for database, broker, Hub and log
_BACKLOG = 128
_MOST_DESCRIPTORS = 65_536
_FEWEST_CONNECTIONS = 16


def raise_descriptor_limit() -> int:
    """Raise this process's limit of open files as far as it may; returns what it is now."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    now, most = (_MOST_DESCRIPTORS if one == resource.RLIM_INFINITY else min(one, _MOST_DESCRIPTORS) for one in limits)
    if now < most:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, limits[1]))
        except (ValueError, OSError):  # macOS has a further limit
            return now
    return most


def most_connections(wanted: int, descriptors: int) -> int:
    """How many connections may be open, so that files and other sockets have descriptors too."""
    return max(min(wanted, descriptors - RESERVED_DESCRIPTORS), _FEWEST_CONNECTIONS)


def main() -> int:
    """Serve until SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser(prog="python -m api.http.server", description="Run the API.")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=int, default=8000, help="port to listen on")
    arguments = parser.parse_args()
    try:
        settings = read_settings()
        check_exposure(arguments.host, settings)
    except ReplaceMeError as error:
        sys.stderr.write(f"error: {error.message}\n")
        return 2
    telemetry.configure_logs(settings.log_format, service="api")
    warn_of_unknown_settings()
    most = most_connections(settings.max_connections, raise_descriptor_limit())
    uvicorn.run(
        "api.main:app",
        host=arguments.host,
        port=arguments.port,
        http=limited_to(most, proxies=settings.trusted_proxies or ()),
        ws="none",
        backlog=_BACKLOG,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=DRAIN_SECONDS,
        access_log=False,
        log_config=None,  # its loggers write as all others do
        proxy_headers=False,  # REPLACEME_TRUSTED_PROXIES decides
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
