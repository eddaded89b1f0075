"""Where a webhook may go, how a message is signed and sent, and when it is sent again. Knows no database and no jobs.

The receiver is a stranger's machine. So its URL is read strictly, and its name is resolved here. Every address is
checked, and the connection goes to an address that was checked, while `Host`, SNI and the certificate are those of the
name: a name that changes its address in between gains nothing. Redirects are not followed, proxies are not used, the
body of the response is not kept, and one deadline holds for everything together.
"""

import base64
import ipaddress
import os
import queue
import random
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

import httpcore2
import httpx2
from standardwebhooks import Webhook

from replaceme_core.errors import AddressRefused, HostUnknown, InvalidInput

# Addresses
#
# A webhook goes to addresses of the public internet, and to those that the operator allows. The table follows the
# registries of special addresses of IANA and does not depend on the Python version. An IPv6 address that contains an
# IPv4 address (mapped, compatible, NAT64, 6to4, Teredo) is refused whatever it contains: who can be reached in another
# way does not need it.

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_NOT_PUBLIC = tuple(
    ipaddress.ip_network(network)
    for network in (
        "0.0.0.0/8",  # this host
        "10.0.0.0/8",  # private
        "100.64.0.0/10",  # carrier-grade NAT, and the metadata service of one cloud
        "127.0.0.0/8",  # loopback
        "168.63.129.16/32",  # the platform service of another cloud
        "169.254.0.0/16",  # link-local, and the metadata services of most clouds
        "172.16.0.0/12",  # private
        "192.0.0.0/24",  # protocol assignments, and the metadata service of a third cloud
        "192.0.2.0/24",  # documentation
        "192.31.196.0/24",  # AS112
        "192.52.193.0/24",  # AMT
        "192.88.99.0/24",  # 6to4 relays
        "192.168.0.0/16",  # private
        "192.175.48.0/24",  # AS112
        "198.18.0.0/15",  # benchmarks
        "198.51.100.0/24",  # documentation
        "203.0.113.0/24",  # documentation
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",  # reserved, and broadcast
        "2001::/23",  # protocol assignments, Teredo among them
        "2001:db8::/32",  # documentation
        "2002::/16",  # 6to4
        "2620:4f:8000::/48",  # AS112
        "3fff::/20",  # documentation
    )
)
_UNICAST_6 = ipaddress.IPv6Network("2000::/3")  # all that is assigned; loopback, NAT64, mapped, private are outside


def is_allowed(address: Address, *, networks: Sequence[Network] = ()) -> bool:
    """Whether a webhook may be sent to `address`: it is public, or in one of `networks`. Never with a zone.

    >>> [is_allowed(ipaddress.ip_address(text)) for text in ("1.1.1.1", "10.0.0.1", "::ffff:1.1.1.1", "2606:4700::1")]
    [True, False, False, True]
    """
    if isinstance(address, ipaddress.IPv6Address) and address.scope_id is not None:
        return False
    is_public = address.version == 4 or address in _UNICAST_6
    is_public = is_public and not any(address in network for network in _NOT_PUBLIC)
    return is_public or any(address in network for network in networks)


# URLs
#
# A host is a name, or an address in its one usual form. Other spellings of an address (decimal, octal, hexadecimal,
# shortened) are refused, because libraries disagree on what they mean.

LONGEST_URL = 2000
_VISIBLE = re.compile(r"[!-~]+")
_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")
_PORTS = {"http": 80, "https": 443}
_LOCALLY = (
    "to receive webhooks on the same machine, the operator sets REPLACEME_WEBHOOK_ALLOW_HTTP=true and "
    "REPLACEME_WEBHOOK_NETWORKS=127.0.0.0/8,::1/128"
)

Resolve = Callable[[str, int], Sequence[str]]


@dataclass(frozen=True, kw_only=True)
class TargetRules:
    """What the operator allows: plain HTTP, and networks that are not public."""

    allow_http: bool = False
    networks: tuple[Network, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Target:
    """A URL in parts. `host` is in lower case and without brackets, `path` has the query."""

    scheme: str
    host: str
    port: int
    path: str

    @property
    def authority(self) -> str:
        """The value of the header `Host`."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"


def parse_target(url: str, rules: TargetRules) -> Target:
    """The parts of `url`. Raises `InvalidInput` (field `url`), of which `AddressRefused` for an address.

    Does not look names up; see `addresses_of`. No error repeats the URL, which may hold a password.
    """
    if not url.isascii() or not _VISIBLE.fullmatch(url) or "\\" in url or len(url) > LONGEST_URL:
        raise _refused(
            f"expected at most {LONGEST_URL} visible ASCII characters without backslashes; other characters are "
            "written as %XX in the path, and as xn--... in the host"
        )
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise _refused("expected https://HOST[:PORT]/PATH") from None
    schemes = ("https", "http") if rules.allow_http else ("https",)
    if parts.scheme not in schemes:
        expected = " or ".join(f"{scheme}://" for scheme in schemes)
        raise _refused(f"expected a URL that begins with {expected}{'' if rules.allow_http else f'; {_LOCALLY}'}")
    if "@" in parts.netloc:
        raise _refused("expected no user name or password in the URL; put a token into its path or query")
    if "#" in url:
        raise _refused("expected no fragment (#...), which is never sent")
    if port == 0 or parts.netloc.endswith(":"):
        raise _refused("expected a port from 1 to 65535")
    host = _host(parts.netloc, parts.hostname or "", rules)
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return Target(scheme=parts.scheme, host=host, port=port or _PORTS[parts.scheme], path=path)


def _host(authority: str, host: str, rules: TargetRules) -> str:
    if authority.startswith("["):
        try:
            address: Address = ipaddress.IPv6Address(host)
        except ValueError:
            raise _refused("the address in brackets is not a valid IPv6 address") from None
        return _checked(address, rules)
    name = host.removesuffix(".")
    labels = name.split(".")
    if len(name) > 253 or not all(_LABEL.fullmatch(label) for label in labels):
        raise _refused("expected a host name or an address behind the ://")
    if _NUMBER.fullmatch(labels[-1]):
        try:
            return _checked(ipaddress.IPv4Address(name), rules)
        except ipaddress.AddressValueError:
            raise _refused("expected an IPv4 address as four decimal numbers without leading zeros") from None
    return name


def _checked(address: Address, rules: TargetRules) -> str:
    if not is_allowed(address, networks=rules.networks):
        raise _forbidden()
    return str(address)


def system_addresses(host: str, port: int) -> list[str]:
    """The addresses that the system's resolver finds for `host`, in its order. Raises `OSError`."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


def addresses_of(
    target: Target, rules: TargetRules, *, seconds: float, resolve: Resolve = system_addresses
) -> list[str]:
    """All addresses of the target's host. Raises `AddressRefused` if one of them is not allowed, and `HostUnknown`.

    One that is not allowed is enough: which one is taken would be decided by the name server. A
    resolver that does not return within `seconds` is left behind in its thread, since it cannot be interrupted.
    """
    answer: queue.SimpleQueue[Sequence[str] | None] = queue.SimpleQueue()

    def look_up() -> None:
        try:
            answer.put(resolve(target.host, target.port))
        except (OSError, UnicodeError):
            answer.put(None)

    threading.Thread(target=look_up, name="resolve", daemon=True).start()
    try:
        found = answer.get(timeout=max(seconds, 0.0))
    except queue.Empty:
        found = None
    if not found:
        raise HostUnknown("the host has no address, or none was found in time", field="url")
    try:
        addresses = [ipaddress.ip_address(text) for text in found]
    except ValueError:
        raise _forbidden() from None
    if not all(is_allowed(address, networks=rules.networks) for address in addresses):
        raise _forbidden()
    return [str(address) for address in addresses]


def _refused(message: str) -> InvalidInput:
    return InvalidInput(message, field="url")


def _forbidden() -> AddressRefused:
    return AddressRefused(
        "the host has an address that is private, reserved or of this machine; webhooks go to public addresses only, "
        f"unless the operator adds the network; {_LOCALLY}",
        field="url",
    )


# Secrets and signatures, as Standard Webhooks describes them (https://www.standardwebhooks.com)

SECRET_PREFIX = "whsec_"
_SECRET_BYTES = 32


def new_secret() -> str:
    """A random secret: `whsec_` and 32 bytes in base64."""
    return SECRET_PREFIX + base64.b64encode(os.urandom(_SECRET_BYTES)).decode("ascii")


def signed_headers(*, message_id: str, body: str, secrets: Sequence[str], at: datetime) -> dict[str, str]:
    """The headers of a message that is sent at `at`, with one signature for each of `secrets`."""
    seconds = at.astimezone(UTC).replace(microsecond=0)
    signatures = (Webhook(secret).sign(message_id, seconds, body) for secret in secrets)
    return {
        "webhook-id": message_id,
        "webhook-timestamp": str(int(seconds.timestamp())),
        "webhook-signature": " ".join(signatures),
    }


# Sending again: with longer and longer pauses, for three days

HOUR = 3600.0
PAUSES = (5.0, 30.0, 120.0, 600.0, 1800.0, 2 * HOUR, 5 * HOUR, 10 * HOUR, 14 * HOUR, 18 * HOUR, 22 * HOUR)
"""Seconds between one try and the next. The first try is at once, so there are 12 in all."""
LONGEST_RETRY_AFTER = 24 * HOUR
_JITTER = 0.1


def pause_after(tries: int, *, retry_after: float | None = None) -> float | None:
    """Seconds until the next try after `tries` tries; `None`: there is none.

    A tenth is added at random, so that messages which failed together do not return together. `retry_after` is what
    the receiver asked for, in seconds: the pause is not shorter, but at most a day.
    """
    if tries > len(PAUSES):
        return None
    pause = PAUSES[tries - 1] * (1 + random.uniform(0, _JITTER))
    return max(pause, min(retry_after or 0.0, LONGEST_RETRY_AFTER))


# Sending

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


@dataclass(frozen=True, kw_only=True)
class Sender:
    """`seconds` is the limit for one message: name, connection, TLS, request and response together."""

    rules: TargetRules
    seconds: float
    resolve: Resolve = system_addresses
    ssl_context: ssl.SSLContext = field(default_factory=httpx2.create_ssl_context)

    def send(self, url: str, *, body: str, headers: Mapping[str, str]) -> Outcome:
        """Send `body` as JSON. Raises nothing: what goes wrong is in the outcome."""
        began = time.monotonic()
        deadline = began + self.seconds
        try:
            target = parse_target(url, self.rules)
            addresses = addresses_of(target, self.rules, seconds=self.seconds, resolve=self.resolve)
            status, retry_after = self._post(target, addresses, body=body.encode(), headers=headers, deadline=deadline)
        except tuple(_ERRORS) as error:
            return Outcome(error=_word_of(error), seconds=time.monotonic() - began)
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
            httpcore2.ConnectionPool(ssl_context=self.ssl_context, network_backend=backend) as pool,
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


_ERRORS: Mapping[type[Exception], str] = {
    AddressRefused: "address_refused",
    HostUnknown: "host_unknown",
    InvalidInput: "url_refused",  # the operator allows less than when the URL was stored
    ssl.SSLError: "tls_failed",
    httpcore2.ConnectError: "not_connected",
    httpcore2.TimeoutException: "timeout",
    httpcore2.NetworkError: "connection_lost",
    httpcore2.ProtocolError: "connection_lost",
    OSError: "connection_lost",
}


def _word_of(error: Exception) -> str:
    if isinstance(error, httpcore2.ConnectError) and isinstance(error.__cause__ or error.__context__, ssl.SSLError):
        return "tls_failed"
    return next(word for kind, word in _ERRORS.items() if isinstance(error, kind))


@dataclass
class _PinnedBackend(httpcore2.NetworkBackend):
    """Connects to the first of `addresses` that accepts, whatever the host is. Nothing goes on past `deadline`."""

    addresses: Sequence[str]
    deadline: float

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,
    ) -> httpcore2.NetworkStream:
        connect = httpcore2.SyncBackend().connect_tcp
        last: httpcore2.ConnectError | httpcore2.ConnectTimeout | None = None
        for left, address in zip(range(len(self.addresses), 0, -1), self.addresses, strict=True):
            try:
                # the ones after it must have time too
                share = _left(self.deadline, httpcore2.ConnectTimeout) / left
                stream = connect(address, port, timeout=share, socket_options=socket_options)
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout) as error:
                last = error
            else:
                return _LimitedStream(stream, self.deadline)
        raise last or httpcore2.ConnectError("no address")


@dataclass
class _LimitedStream(httpcore2.NetworkStream):
    """A stream on which no operation goes on past `deadline`."""

    stream: httpcore2.NetworkStream
    deadline: float

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self.stream.read(max_bytes, timeout=_left(self.deadline, httpcore2.ReadTimeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        for start in range(0, len(buffer), _PIECE_BYTES):  # the limit within a call is for each of its own pieces
            piece = buffer[start : start + _PIECE_BYTES]
            self.stream.write(piece, timeout=_left(self.deadline, httpcore2.WriteTimeout))

    def close(self) -> None:
        self.stream.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore2.NetworkStream:
        left = _left(self.deadline, httpcore2.ConnectTimeout)
        return _LimitedStream(self.stream.start_tls(ssl_context, server_hostname, timeout=left), self.deadline)

    def get_extra_info(self, info: str) -> Any:
        return self.stream.get_extra_info(info)


def _left(deadline: float, error: type[httpcore2.TimeoutException]) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise error("the time for this message is over")
    return left
