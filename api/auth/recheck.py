"""Whether the caller of a response that goes on for long may still have it: its key may have ended meanwhile."""

import time

from starlette.types import Scope as AsgiScope

from api.auth.caller import Caller, caller_of
from api.auth.callers import Callers
from replaceme_core.errors import Unavailable
from replaceme_core.jobs.access.records import Scope


class Recheck:
    """Identifies the caller of an open stream again from time to time."""

    def __init__(self, callers: Callers, scope: AsgiScope, *, needed: Scope, seconds: float) -> None:
        """`needed` is what its key must allow; between two checks are at least `seconds`."""
        self._callers = callers
        self._scope = scope
        self._owner = caller_of(scope).owner
        self._needed = needed
        self._seconds = seconds
        self._next = time.monotonic() + seconds

    async def is_allowed(self) -> bool:
        """False once the key is revoked or has expired, or one is needed that was not. An outage changes nothing."""
        if time.monotonic() < self._next:
            return True
        self._next = time.monotonic() + self._seconds
        try:
            found = await self._callers.identify(self._scope)
        except Unavailable:
            return True
        return isinstance(found, Caller) and found.owner == self._owner and self._needed in found.scopes
