"""Sessions of the dashboard: who has signed in, sealed in a cookie, so that no process has to remember anybody.

The cookie has the hash of a key and not the key: a session ends with its key, and nobody reads the key from it. The
database has the sessions that were ended by signing out. Only pages have sessions; the API knows no cookies.
"""

import base64
import json
import os
import secrets
import time
from dataclasses import dataclass

from starlette.types import Scope as AsgiScope

from replaceme_core.errors import SecretUnreadable
from replaceme_core.ledger.keys import hash_of
from replaceme_core.secrets_box import KEY_BYTES, SecretsBox

COOKIE = "replaceme_session"
SESSION_SECONDS = 12 * 3600
_SCOPE_KEY = "replaceme.session"
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

    @property
    def is_live(self) -> bool:
        return time.time() < self.expires_at


class Sessions:
    """Seals sessions and opens them. Where the service has no key for secrets, with one that lives as this process."""

    def __init__(self, box: SecretsBox) -> None:
        own = base64.b64encode(os.urandom(KEY_BYTES)).decode()
        self._box = box if box.has_keys else SecretsBox([own])

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
        return found if found.is_live else None


def set_session(scope: AsgiScope, session: Session) -> None:
    scope[_SCOPE_KEY] = session


def session_of(scope: AsgiScope) -> Session | None:
    """The session of a request for a page; `None` for every other request."""
    found: Session | None = scope.get(_SCOPE_KEY)
    return found
