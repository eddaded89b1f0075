"""Which caller a request comes from: the holder of its key or, where that is allowed, somebody without one."""

import ipaddress
from dataclasses import dataclass

from starlette.datastructures import Headers
from starlette.types import Scope as AsgiScope

from api.auth.caller import WITHOUT_KEY, Caller
from api.auth.key_cache import KeyCache
from api.auth.sessions import session_of
from replaceme_core.ledger.database import Database
from replaceme_core.ledger.keys import hash_of, is_key
from replaceme_core.settings import Settings

_FORWARDED = ("forwarded", "x-forwarded-for", "x-real-ip")


@dataclass(frozen=True, kw_only=True)
class Unknown:
    """Why a request has no caller, in a sentence. `has_key`: a key came with it."""

    detail: str
    has_key: bool = True


class Callers:
    """Identifies callers."""

    def __init__(self, settings: Settings, database: Database) -> None:
        self._settings = settings
        self._cache = KeyCache(database)

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
        """Look keys up again: this process has changed some."""
        self._cache.forget()

    def close(self) -> None:
        self._cache.close()

    async def _holder(self, key_hash: str, *, session_id: str = "") -> Caller | Unknown:
        key = await self._cache.find_live(key_hash, session_id)
        if key is None and session_id:
            return Unknown(detail="you have signed out, or your key is revoked or has expired")
        if key is None:
            return Unknown(detail="this key is not known here, is revoked, or has expired")
        self._cache.note_use(key.id)
        return Caller.of(key)

    async def _without_key(self, scope: AsgiScope, headers: Headers) -> Caller | Unknown:
        if self._settings.require_key:
            return _needs_key("this service requires an API key")
        if not self._settings.allow_unauthenticated and _is_from_elsewhere(scope, headers):
            return _needs_key("requests from other machines, or through a proxy, require an API key")
        if await self._cache.is_any_issued():
            return _needs_key("this service requires an API key, since some have been created")
        return WITHOUT_KEY


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
