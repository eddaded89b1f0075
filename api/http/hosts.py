"""Which names this service answers to, which pages in a browser may use it, and which proxies speak for clients.

The path under which a proxy shows the API, and what its forwarded headers say of the client, count only if the
connection comes from an address that the operator trusts: everybody else could claim to be any client.

Without `Hosts`, a page that the operator visits could reach a service on the operator's own machine: by a form that
posts to it, or by a name of the page's that is pointed at 127.0.0.1 (DNS rebinding). A browser tells both, in the
headers `Host`, `Origin` and `Sec-Fetch-Site`; other clients send what they like and are not what this is about.
"""

import ipaddress
import re
from functools import lru_cache
from http import HTTPStatus
from urllib.parse import urlsplit

from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from api.http.problems import problem_response
from replaceme_core.settings import Settings
from replaceme_core.wording import shorten

FOREIGN_ORIGIN = "foreign_origin"
ANY_HOST = ANY_PROXY = "*"
READING = ("GET", "HEAD", "OPTIONS")
_NAME = re.compile(r"[a-z0-9_](?:[a-z0-9_.-]*[a-z0-9_])?")
_AUTHORITY = re.compile(r"(\[[^\]]*\]|[^:\[\]]*)(?::(\d{0,5}))?")
_PORTS = {"http": 80, "https": 443}
_OWN_SITE = ("same-origin", "none")
"""Of `Sec-Fetch-Site`; `none`: a person has done it and no page."""
_LONGEST = 100  # characters of a header that are repeated in an answer
_PREFIX = re.compile(r"(/[A-Za-z0-9._~-]+)+")
_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")
_SENT = (
    *("Authorization", "Content-Type", "If-Match", "If-None-Match", "Idempotency-Key", "Last-Event-ID", "Prefer"),
    *("traceparent", "X-Request-ID"),
)
_SHOWN = (
    *("ETag", "Idempotent-Replayed", "Link", "Location", "Preference-Applied", "RateLimit", "RateLimit-Policy"),
    *("Retry-After", "X-Request-ID", "traceparent"),
)


def install(app: Starlette, settings: Settings) -> None:
    """Add `Hosts`, and around it `Cors` and `Proxies` where the settings ask for them."""
    origins = settings.cors_origins or ()
    app.add_middleware(Hosts, allowed=settings.allowed_hosts or (), origins=origins)
    if origins:  # without credentials: the API knows no cookies, and a page sends its key in a header
        app.add_middleware(
            Cors, allow_origins=origins, allow_methods=_METHODS, allow_headers=_SENT, expose_headers=_SHOWN, max_age=600
        )
    if settings.root_path or settings.trusted_proxies:
        app.add_middleware(Proxies, root_path=settings.root_path, trusted=settings.trusted_proxies or ())


def host_of(authority: str) -> str | None:
    """The host in `HOST`, `HOST:PORT` or `[ADDRESS]:PORT`, in the form in which hosts are compared.

    In lower case, without a trailing dot, addresses in their shortest form; `None` if it is no host.

    >>> host_of("LocalHost.:8000"), host_of("[0:0::1]"), host_of("a@b")
    ('localhost', '::1', None)
    """
    found = _place_of(authority)
    return None if found is None else found[0]


def _place_of(authority: str) -> tuple[str, int | None] | None:
    """Host and port of the same; `None` for a port that is not named."""
    found = _AUTHORITY.fullmatch(authority.strip())
    if found is None:
        return None
    name, port = found[1].lower(), int(found[2]) if found[2] else None
    if name.startswith("["):
        try:
            return str(ipaddress.IPv6Address(name[1:-1])), port
        except ValueError:
            return None
    name = name.removesuffix(".")
    return (name, port) if _NAME.fullmatch(name) else None


def is_loopback(host: str) -> bool:
    """Whether a host in the form of `host_of` can only be this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class Hosts:
    """ASGI middleware: 421 for a host that is not allowed, 403 for a page of another origin that writes.

    Loopback names are always allowed. `allowed` are the others, or `*` for all, `origins` those whose pages may write
    although they are not ours. Another port of the same host is another origin: it may be a program of somebody else.
    The metrics answer to any host, since Prometheus may ask at an address: they need a key, which no page has.
    """

    def __init__(self, app: ASGIApp, *, allowed: tuple[str, ...], origins: tuple[str, ...]) -> None:
        self._app = app
        # in the form of `host_of`; addresses may be given without brackets
        hosts = (f"[{name}]" if ":" in name and not name.startswith("[") else name for name in allowed)
        self._allowed = frozenset(name if name == ANY_HOST else host_of(name) for name in hosts)
        self._origins = origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refusal = self._refusal(scope) if scope["type"] == "http" else None
        if refusal is None:
            await self._app(scope, receive, send)
            return
        status, detail = refusal
        code = FOREIGN_ORIGIN if status == HTTPStatus.FORBIDDEN else None
        # the body stays unread, so the connection cannot be reused
        response = problem_response(status=status, code=code, detail=detail, headers={"Connection": "close"})
        await response(scope, receive, send)

    def _refusal(self, scope: Scope) -> tuple[HTTPStatus, str] | None:
        headers = Headers(scope=scope)
        names = headers.getlist("host")
        host = host_of(names[0]) if len(names) == 1 else None
        if host is None:
            return HTTPStatus.BAD_REQUEST, "expected one Host header with the name of this service"
        if not (is_loopback(host) or {host, ANY_HOST} & self._allowed or path_of(scope) == "/metrics"):
            return (
                HTTPStatus.MISDIRECTED_REQUEST,
                f"this service does not answer to the host {shorten(host, _LONGEST)!r}; if it should, its operator can "
                "add the host to REPLACEME_ALLOWED_HOSTS",
            )
        if scope["method"] in READING:
            return None
        origins = headers.getlist("origin")
        if len(origins) == 1 and origins[0] in self._origins:
            return None
        for origin in origins:
            if not self._is_own(origin, names[0]):
                return (
                    HTTPStatus.FORBIDDEN,
                    f"pages of {shorten(origin, _LONGEST)!r} may not change anything here; if they should, the "
                    "operator can add that origin to REPLACEME_CORS_ORIGINS",
                )
        if any(value.strip().lower() not in _OWN_SITE for value in headers.getlist("sec-fetch-site")):
            detail = "pages of other sites, and of other ports of this host, may not change anything here"
            return HTTPStatus.FORBIDDEN, detail
        return None

    def _is_own(self, origin: str, authority: str) -> bool:
        """Whether `SCHEME://HOST[:PORT]` is where a request to `authority` has gone.

        A proxy may send another `Host` than the browser did, so an allowed name at the usual port is ours as well.
        """
        try:
            parts = urlsplit(origin.strip())
        except ValueError:
            return False
        source, asked, usual = _place_of(parts.netloc), _place_of(authority), _PORTS.get(parts.scheme)
        if source is None or asked is None or usual is None:
            return False
        host, port = source[0], source[1] or usual
        return (host, port) == (asked[0], asked[1] or usual) or (port == usual and host in self._allowed)


class Cors(CORSMiddleware):
    """ASGI middleware: lets pages of the origins in the settings use the API. Refusals are problems."""

    def preflight_response(self, request_headers: Headers) -> Response:
        response = super().preflight_response(request_headers)
        if response.status_code == HTTPStatus.OK:
            return response
        detail = bytes(response.body).decode()
        headers = {name: value for name, value in response.headers.items() if not name.startswith("content-")}
        return problem_response(status=HTTPStatus.BAD_REQUEST, detail=detail, headers=headers)


class Proxies:
    """ASGI middleware: sets `root_path`, and `client`, `scheme` and `Host` as a trusted proxy forwards them."""

    def __init__(self, app: ASGIApp, *, root_path: str, trusted: tuple[str, ...]) -> None:
        self._app = _trusting(trusted, app)
        self._root_path = root_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)  # type: ignore[arg-type]  # uvicorn has types of its own
            return
        scope["headers"] = list(scope["headers"])  # the server has the same list
        headers, root, client = MutableHeaders(scope=scope), self._root_path, scope.get("client")
        if client is not None and client[0] in self._app.trusted_hosts:
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
        await self._app(scope, receive, send)  # type: ignore[arg-type]


def is_trusted(address: str, trusted: tuple[str, ...]) -> bool:
    """Whether an address belongs to a proxy of the operator."""
    return address in _trusting(trusted).trusted_hosts


@lru_cache(maxsize=4)
def _trusting(trusted: tuple[str, ...], app: ASGIApp | None = None) -> ProxyHeadersMiddleware:
    return ProxyHeadersMiddleware(app, "*" if ANY_PROXY in trusted else list(trusted))  # type: ignore[arg-type]


def network_of(address: str) -> str:
    """What counts as one caller: an address or, of IPv6, its first 64 bits, behind which a client has all addresses.

    >>> [network_of(one) for one in ("192.0.2.1", "::ffff:192.0.2.1", "2001:db8::ffff:1", "fe80::2%eth0", "unix")]
    ['192.0.2.1', '192.0.2.1', '2001:db8::/64', 'fe80::/64', 'unix']
    """
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(found, ipaddress.IPv4Address):
        return address
    mapped = found.ipv4_mapped
    return str(ipaddress.ip_network((found, 64), strict=False)) if mapped is None else str(mapped)


def root_of(scope: Scope) -> str:
    """The path under which the service is reached, usually ""."""
    root: str = scope.get("root_path", "")
    return root.rstrip("/")


def path_of(scope: Scope) -> str:
    """The path of a request below that root, whether a proxy has removed it or not."""
    path, root = str(scope["path"]), root_of(scope)
    return path.removeprefix(root) if path.startswith(f"{root}/") else path
