"""Sends one message to one receiver. Knows neither the database nor jobs.

The receiver is a stranger's machine. So the name is resolved here, every address is checked, and the connection goes to
an address that was checked, while `Host`, SNI and the certificate are those of the name: a name that changes its
address in between gains nothing. Redirects are not followed, proxies are not used, the body of the response is not
kept, and one deadline holds for everything together.
"""

import ssl
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpcore2
import httpx2

from replaceme_core.errors import AddressRefused, HostUnknown, InvalidInput
from replaceme_core.webhooks.target import Resolve, Target, TargetRules, addresses_of, parse_target, system_addresses

USER_AGENT = "replaceme-webhooks"
MOST_RESPONSE_BYTES = 16 * 1024
"""How much of a body is read, and thrown away, so that the receiver can end its response."""
_PIECE_BYTES = 4 * 1024
_GONE = 410
_MOST_ADDRESSES = 4


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of one try. `error` is a short word where there was no good response; see the HTTP reference."""

    status: int | None = None
    error: str | None = None
    seconds: float = 0.0
    retry_after: float | None = None

    @property
    def is_delivered(self) -> bool:
        return self.error is None

    @property
    def is_gone(self) -> bool:
        """Whether the receiver wants no further message."""
        return self.status == _GONE


class Sender:
    """`seconds` is the limit for one message: name, connection, TLS, request and response together."""

    def __init__(
        self,
        *,
        rules: TargetRules,
        seconds: float,
        resolve: Resolve = system_addresses,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        self._rules = rules
        self._seconds = seconds
        self._resolve = resolve
        self._ssl_context = ssl_context or httpx2.create_ssl_context()

    def send(self, url: str, *, body: str, headers: Mapping[str, str]) -> Outcome:
        """Send `body` as JSON. Raises nothing: what goes wrong is in the outcome."""
        began = time.monotonic()
        deadline = began + self._seconds
        try:
            target = parse_target(url, self._rules)
            addresses = addresses_of(target, self._rules, seconds=self._seconds, resolve=self._resolve)
            status, retry_after = self._post(target, addresses, body=body.encode(), headers=headers, deadline=deadline)
        except AddressRefused:
            return _failed("address_refused", began)
        except HostUnknown:
            return _failed("host_unknown", began)
        except InvalidInput:  # the operator allows less than when the URL was stored
            return _failed("url_refused", began)
        except ssl.SSLError:
            return _failed("tls_failed", began)
        except httpcore2.ConnectError as error:
            failed = "tls_failed" if isinstance(error.__cause__ or error.__context__, ssl.SSLError) else "not_connected"
            return _failed(failed, began)
        except httpcore2.TimeoutException:
            return _failed("timeout", began)
        except (httpcore2.NetworkError, httpcore2.ProtocolError, OSError):
            return _failed("connection_lost", began)
        seconds = time.monotonic() - began
        if 200 <= status < 300:
            return Outcome(status=status, seconds=seconds)
        word = "redirect" if 300 <= status < 400 else "status"
        return Outcome(status=status, error=word, seconds=seconds, retry_after=retry_after)

    def _post(
        self, target: Target, addresses: Sequence[str], *, body: bytes, headers: Mapping[str, str], deadline: float
    ) -> tuple[int, float | None]:
        sent = [
            ("host", target.authority),
            ("content-type", "application/json"),
            ("content-length", str(len(body))),
            ("user-agent", USER_AGENT),
            ("accept", "*/*"),
            ("connection", "close"),
            *headers.items(),
        ]
        url = httpcore2.URL(
            scheme=target.scheme.encode(),
            host=target.host.encode(),
            port=target.port,
            target=target.path.encode(),
        )
        backend = _PinnedBackend(addresses[:_MOST_ADDRESSES], deadline)
        with (
            httpcore2.ConnectionPool(ssl_context=self._ssl_context, network_backend=backend) as pool,
            pool.stream("POST", url, headers=sent, content=body) as response,
        ):
            fields = {name.lower(): value for name, value in response.headers}
            _drain(response)
            return response.status, _seconds(fields.get(b"retry-after", b""))


def _drain(response: httpcore2.Response) -> None:
    """Read the end of a short response. What goes wrong here changes nothing: its status is known."""
    read = 0
    try:
        for chunk in response.iter_stream():
            read += len(chunk)
            if read > MOST_RESPONSE_BYTES:
                return
    except (httpcore2.NetworkError, httpcore2.ProtocolError, httpcore2.TimeoutException):
        return


def _seconds(value: bytes) -> float | None:
    """A `Retry-After` in seconds; dates are ignored."""
    text = value.strip()
    return float(text) if text.isdigit() and len(text) < 10 else None


def _failed(error: str, began: float) -> Outcome:
    return Outcome(error=error, seconds=time.monotonic() - began)


class _PinnedBackend(httpcore2.NetworkBackend):
    """Connects to the first of `addresses` that accepts, whatever the host is. Nothing goes on past `deadline`."""

    def __init__(self, addresses: Sequence[str], deadline: float) -> None:
        self._addresses = addresses
        self._deadline = deadline
        self._tcp = httpcore2.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,
    ) -> httpcore2.NetworkStream:
        last: httpcore2.ConnectError | httpcore2.ConnectTimeout | None = None
        for left, address in zip(range(len(self._addresses), 0, -1), self._addresses, strict=True):
            try:
                # the ones after it must have time too
                share = _left(self._deadline, httpcore2.ConnectTimeout) / left
                stream = self._tcp.connect_tcp(address, port, timeout=share, socket_options=socket_options)
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout) as error:
                last = error
            else:
                return _LimitedStream(stream, self._deadline)
        raise last or httpcore2.ConnectError("no address")


class _LimitedStream(httpcore2.NetworkStream):
    """A stream on which no operation goes on past `deadline`."""

    def __init__(self, stream: httpcore2.NetworkStream, deadline: float) -> None:
        self._stream = stream
        self._deadline = deadline

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, timeout=_left(self._deadline, httpcore2.ReadTimeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        for start in range(0, len(buffer), _PIECE_BYTES):  # the limit within a call is for each of its own pieces
            piece = buffer[start : start + _PIECE_BYTES]
            self._stream.write(piece, timeout=_left(self._deadline, httpcore2.WriteTimeout))

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore2.NetworkStream:
        left = _left(self._deadline, httpcore2.ConnectTimeout)
        return _LimitedStream(self._stream.start_tls(ssl_context, server_hostname, timeout=left), self._deadline)

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


def _left(deadline: float, error: type[httpcore2.TimeoutException]) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise error("the time for this message is over")
    return left
