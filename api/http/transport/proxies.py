"""Behind a proxy: the path under which it shows the API, and what its forwarded headers say of the client.

The headers count only if the connection comes from an address that the operator trusts: everybody else could claim to
be any client.
"""

import ipaddress
import re
from collections.abc import Callable
from functools import lru_cache

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Receive, Scope, Send

from replaceme_core.settings import Settings

ANY_PROXY = "*"
_PREFIX = re.compile(r"(/[A-Za-z0-9._~-]+)+")


class Proxies:
    """ASGI middleware: sets `root_path`, and `client`, `scheme` and `Host` as a trusted proxy forwards them."""

    def __init__(self, app: ASGIApp, *, settings: Callable[[], Settings]) -> None:
        self._app = app
        self._settings = settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            settings = self._settings()
            if settings.root_path or settings.trusted_proxies:
                scope = _as_seen_outside(scope, settings)
        await self._app(scope, receive, send)


def _as_seen_outside(scope: Scope, settings: Settings) -> Scope:
    scope = {**scope, "headers": list(scope["headers"])}
    headers = MutableHeaders(scope=scope)
    trusted = settings.trusted_proxies or ()
    client = scope.get("client")
    root = settings.root_path
    if client is not None and is_trusted(client[0], trusted):
        forwarded = [part.strip() for part in headers.get("x-forwarded-for", "").split(",") if part.strip()]
        # the last one that no trusted proxy has added: what stands before it is the client's own claim
        origin = next((part for part in reversed(forwarded) if not is_trusted(part, trusted)), None)
        if origin is None and forwarded:
            origin = forwarded[0]
        if origin is not None:
            scope["client"] = (origin[:100], 0)
        scheme = headers.get("x-forwarded-proto", "").strip().lower()
        if scheme in ("http", "https"):
            scope["scheme"] = scheme
        host = headers.get("x-forwarded-host", "").rpartition(",")[2].strip()
        if host:
            headers["host"] = host
        prefix = headers.get("x-forwarded-prefix", "").strip().rstrip("/")
        if _PREFIX.fullmatch(prefix):
            root = prefix
    if root:
        scope["root_path"] = root
        if scope["path"] != root and not scope["path"].startswith(f"{root}/"):  # the proxy has removed it
            scope["path"] = f"{root}{scope['path']}"
            scope["raw_path"] = root.encode() + scope.get("raw_path", b"")
    return scope


def is_trusted(address: str, trusted: tuple[str, ...]) -> bool:
    """Whether an address belongs to a proxy of the operator."""
    if ANY_PROXY in trusted:
        return True
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return False
    return any(found in network for network in _networks(trusted))


def network_of(address: str) -> str:
    """What counts as one caller: an address or, of IPv6, its first 64 bits, behind which a client has all addresses."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(found, ipaddress.IPv4Address):
        return address
    mapped = found.ipv4_mapped
    return str(ipaddress.ip_network((found, 64), strict=False)) if mapped is None else str(mapped)


@lru_cache(maxsize=4)
def _networks(names: tuple[str, ...]) -> tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...]:
    return tuple(ipaddress.ip_network(name) for name in names if name != ANY_PROXY)
