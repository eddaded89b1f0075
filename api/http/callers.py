"""Who a request comes from: the holder of its key, somebody signed in to the dashboard or, where allowed, anybody.

The caller is kept in the request's ASGI scope, from the moment it is known. Keys that were looked up a moment ago are
used for `CACHE_SECONDS`, so that a request does not cost a read of the database: a key that another process revokes, or
that expires, is accepted for that long at most. A session is sealed in a cookie, so that no process has to remember
anybody. The cookie has the hash of a key and not the key: a session ends with its key, and nobody reads the key from
it. The database has the sessions that were ended by signing out. Only pages have sessions; the API knows no cookies.
"""

import asyncio
import ipaddress
import json
import secrets
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from typing import Any, TypeVar

import structlog
from cryptography.fernet import Fernet
from starlette.datastructures import Headers
from starlette.types import Scope as AsgiScope

from replaceme_core.errors import InvalidInput, SecretUnreadable
from replaceme_core.ledger.database import Database
from replaceme_core.ledger.keys import (
    DEFAULT_OWNER,
    NO_LIMITS_OF_ITS_OWN,
    ApiKey,
    Keys,
    Scope,
    hash_of,
    is_key,
)
from replaceme_core.secrets_box import SecretsBox
from replaceme_core.settings import Settings
from replaceme_core.shapes import KeyLimits

# Callers

CALLER, SESSION = "replaceme.caller", "replaceme.session"
"""In the scope of a request."""


@dataclass(frozen=True, kw_only=True)
class Caller:
    """The owner that a request acts for, and what it may do. `key_id` is `None` without a key."""

    owner: str
    key_id: str | None
    scopes: frozenset[Scope]
    limits: KeyLimits = NO_LIMITS_OF_ITS_OWN

    @property
    def name(self) -> str:
        """What limits are counted by: the key, or all requests without one together."""
        return self.key_id or self.owner

    @classmethod
    def of(cls, key: ApiKey) -> "Caller":
        return cls(owner=key.owner, key_id=key.id, scopes=frozenset(key.scopes), limits=key.limits)


def limit_of(own: int | None, default: int) -> int | None:
    """The limit of a key, by default that of the settings; `None`: no limit, written as 0 in both."""
    return (default if own is None else own) or None


WITHOUT_KEY = Caller(owner=DEFAULT_OWNER, key_id=None, scopes=frozenset(Scope))


def known_caller(scope: AsgiScope) -> Caller | None:
    """The caller of any request; `None` if `Guard` has not seen it, or let it pass without one."""
    found: Caller | None = scope.get(CALLER)
    return found


def caller_of(scope: AsgiScope) -> Caller:
    """The caller of a request that has passed `Guard`."""
    found: Caller = scope[CALLER]
    return found


# Sessions of the dashboard

COOKIE = "replaceme_session"
SESSION_SECONDS = 12 * 3600
_LONGEST_COOKIE = 2000


@dataclass(frozen=True, kw_only=True)
class Session:
    """Somebody with a browser. `key_hash` is `None` where nobody has signed in; every form must have `csrf_token`.

    `expires_at` is in seconds since 1970, by the clock of the API.
    """

    key_hash: str | None
    csrf_token: str
    expires_at: float

    @classmethod
    def start(cls, key_hash: str | None = None) -> "Session":
        """A new session, of the holder of this key."""
        return cls(key_hash=key_hash, csrf_token=secrets.token_urlsafe(32), expires_at=time.time() + SESSION_SECONDS)

    @property
    def id(self) -> str:
        """Tells it from others, and does not give its token away: 64 hex digits."""
        return hash_of(self.csrf_token)


class Sessions:
    """Seals sessions and opens them. Without a key of the service it makes one, which ends with this process."""

    def __init__(self, box: SecretsBox) -> None:
        self._box = box if box.has_keys else SecretsBox(Fernet.generate_key().decode())

    def seal(self, session: Session) -> str:
        """The value of the cookie."""
        text = json.dumps([session.key_hash, session.csrf_token, session.expires_at])
        return self._box.seal(text, field=COOKIE)

    def open(self, cookie: str) -> Session | None:
        """The session in a cookie; `None` if it is not one of ours, or has expired."""
        if len(cookie) > _LONGEST_COOKIE:
            return None
        try:
            key_hash, csrf_token, expires_at = json.loads(self._box.open(cookie))
            found = Session(key_hash=key_hash, csrf_token=csrf_token, expires_at=float(expires_at))
        except (SecretUnreadable, ValueError, TypeError):  # another secret that was sealed with the same key
            return None
        return found if time.time() < found.expires_at else None


def session_of(scope: AsgiScope) -> Session | None:
    """The session of a request for a page; `None` for every other request."""
    found: Session | None = scope.get(SESSION)
    return found


# Keys

CACHE_SECONDS = 5.0
MOST_ENTRIES = 10_000
_ANY_ISSUED = ""  # no hash of a key
T = TypeVar("T")
_log = structlog.get_logger(__name__)


@dataclass(frozen=True, kw_only=True)
class _Entry:
    """A read, finished or not, and until when its result is used (seconds of the monotonic clock)."""

    read: asyncio.Future[Any]
    expires_at: float


# From a request to its caller

_FORWARDED = ("forwarded", "x-forwarded-for", "x-real-ip")


@dataclass(frozen=True, kw_only=True)
class Unknown:
    """Why a request has no caller, in a sentence. `has_key`: a key came with it."""

    detail: str
    has_key: bool = True


class Callers:
    """Identifies callers. Keys are looked up in a thread of its own, which never waits for one behind submissions."""

    def __init__(self, settings: Settings, database: Database) -> None:
        self._settings = settings
        self._database = database
        self._entries: dict[str, _Entry] = {}
        self._reading = ThreadPoolExecutor(max_workers=1, thread_name_prefix="keys")
        self._writing = ThreadPoolExecutor(max_workers=1, thread_name_prefix="key-use")

    async def identify(self, scope: AsgiScope) -> Caller | Unknown:
        """The caller of a request. Raises `DatabaseUnreachable`."""
        headers = Headers(scope=scope)
        given = headers.getlist("authorization")
        if not given:
            session = session_of(scope)
            if session is not None and session.key_hash is not None:
                return await self._holder(session.key_hash, session_id=session.id)
            return await self._without_key(scope, headers)
        kind, _, text = given[0].partition(" ")
        if len(given) > 1 or kind.lower() != "bearer":
            return Unknown(detail="expected one header `Authorization: Bearer KEY`")
        return await self.holder_of(text.strip())

    async def holder_of(self, text: str) -> Caller | Unknown:
        """The caller who has the key with this text. Raises `DatabaseUnreachable`."""
        if not is_key(text):
            return Unknown(detail="this is no key of this service: its form or its checksum is wrong")
        return await self._holder(hash_of(text))

    def forget(self) -> None:
        """Look everything up again: keys have changed. For the process that made the change."""
        self._entries.clear()

    def close(self) -> None:
        """Stop the threads. A use that was noted and not written yet is lost."""
        self._reading.shutdown(cancel_futures=True)
        self._writing.shutdown(cancel_futures=True)

    async def _holder(self, key_hash: str, *, session_id: str = "") -> Caller | Unknown:
        key = await self._find(key_hash + session_id, lambda keys: keys.find_live(key_hash, session_id))
        if key is None and session_id:
            return Unknown(detail="you have signed out, or your key is revoked or has expired")
        if key is None:
            return Unknown(detail="this key is not known here, is revoked, or has expired")
        return Caller.of(key)

    async def _without_key(self, scope: AsgiScope, headers: Headers) -> Caller | Unknown:
        if self._settings.require_key:
            return _needs_key("this service requires an API key")
        if not self._settings.allow_unauthenticated and _is_from_elsewhere(scope, headers):
            return _needs_key("requests from other machines, or through a proxy, require an API key")
        if await self._find(_ANY_ISSUED, Keys.is_any_issued):
            return _needs_key("this service requires an API key, since some have been created")
        return WITHOUT_KEY

    async def _find(self, name: str, read: Callable[[Keys], T]) -> T:
        entry = self._entries.get(name)
        if entry is None or time.monotonic() >= entry.expires_at:
            future = asyncio.get_running_loop().run_in_executor(self._reading, self._read, read)
            entry = _Entry(read=future, expires_at=time.monotonic() + CACHE_SECONDS)
            self._entries.pop(name, None)
            self._entries[name] = entry
            while len(self._entries) > MOST_ENTRIES:
                del self._entries[next(iter(self._entries))]  # the oldest
        try:
            found: T = await asyncio.shield(entry.read)  # a client that disconnects must not end the read of others
        except Exception:
            if self._entries.get(name) is entry:
                del self._entries[name]
            raise
        return found

    def _read(self, read: Callable[[Keys], T]) -> T:
        with self._database.session(read_only=True) as session:
            found = read(Keys(session))
        if isinstance(found, ApiKey):
            self._writing.submit(self._write_use, found.id)  # no request waits for a writer
        return found

    def _write_use(self, key_id: str) -> None:
        try:
            with self._database.session() as session:
                Keys(session).note_use([key_id])
        except Exception as error:
            _log.warning("the last use of a key could not be written", key_id=key_id, error=type(error).__name__)


def _needs_key(reason: str) -> Unknown:
    return Unknown(detail=f"{reason}; send it as `Authorization: Bearer KEY`", has_key=False)


def _is_from_elsewhere(scope: AsgiScope, headers: Headers) -> bool:
    """Whether the request comes from another machine, or through a proxy, which others may reach."""
    if any(name in headers for name in _FORWARDED):
        return True
    client = scope.get("client")
    try:
        return client is not None and not ipaddress.ip_address(client[0].partition("%")[0]).is_loopback
    except ValueError:  # a Unix socket, or a test without a network
        return False


def check_exposure(host: str, settings: Settings) -> None:
    """Raises `InvalidInput` if other machines can reach `host` and nobody has a key, unless the operator agrees.

    The database is read only if they can. A name that has no address is no error here: `claim_port` says what is wrong
    with it. Raises `DatabaseUnreachable` too.
    """
    if settings.allow_unauthenticated or settings.require_key:
        return
    try:
        found = socket.getaddrinfo(host or None, 0, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError:
        return
    addresses = (ipaddress.ip_address(str(address[0]).partition("%")[0]) for *_, address in found)
    if not all(address.is_loopback for address in addresses) and not _has_live_key(settings):
        raise InvalidInput(
            f"nobody has an API key, and other machines can reach {host or 'every address'}; create one with "
            "`replaceme keys create`, or set REPLACEME_ALLOW_UNAUTHENTICATED=true if all who reach the address may use "
            "the service and its tokens",
            field="host",
            value=host,
        )


def _has_live_key(settings: Settings) -> bool:
    with closing(Database(settings.resolved_database_url)) as database, database.session(read_only=True) as session:
        return Keys(session).is_any_live()
