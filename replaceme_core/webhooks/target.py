"""Where a webhook goes: its URL, read strictly, and the addresses of its host, each of them checked.

A host is a name, or an address in its one usual form. Other spellings of an address (decimal, octal, hexadecimal,
shortened) are refused, because libraries disagree on what they mean.
"""

import ipaddress
import queue
import re
import socket
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from replaceme_core.errors import AddressRefused, HostUnknown, InvalidInput
from replaceme_core.webhooks.addresses import Address, Network, is_allowed

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
