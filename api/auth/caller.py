"""Who a request comes from, and where it is kept: in the request's ASGI scope, from the moment it is known."""

from dataclasses import dataclass

from starlette.types import Scope as AsgiScope

from replaceme_core.ledger.keys import DEFAULT_OWNER, NO_LIMITS_OF_ITS_OWN, ApiKey, KeyLimits, Scope

_SCOPE_KEY = "replaceme.caller"


@dataclass(frozen=True, kw_only=True)
class Caller:
    """The owner that a request acts for, and what it may do. `key_id` is `None` without a key."""

    owner: str
    key_id: str | None
    scopes: frozenset[Scope]
    limits: KeyLimits = NO_LIMITS_OF_ITS_OWN

    @classmethod
    def of(cls, key: ApiKey) -> "Caller":
        return cls(owner=key.owner, key_id=key.id, scopes=key.scopes, limits=key.limits)


def limit_of(own: int | None, default: int) -> int | None:
    """The limit of a key, by default that of the settings; `None`: no limit, written as 0 in both."""
    return (default if own is None else own) or None


WITHOUT_KEY = Caller(owner=DEFAULT_OWNER, key_id=None, scopes=frozenset(Scope))


def set_caller(scope: AsgiScope, caller: Caller) -> None:
    scope[_SCOPE_KEY] = caller


def known_caller(scope: AsgiScope) -> Caller | None:
    """The caller of any request; `None` if it has not passed `Guard`, or needed no caller."""
    found: Caller | None = scope.get(_SCOPE_KEY)
    return found


def caller_of(scope: AsgiScope) -> Caller:
    """The caller of a request that has passed `Guard`."""
    found: Caller = scope[_SCOPE_KEY]
    return found
