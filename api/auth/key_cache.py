"""Keys that were looked up a moment ago, so that a request does not cost a read of the database.

What was read is used for `CACHE_SECONDS`. So a key that another process revokes, or that expires, is accepted for that
long at most. Requests with the same key that arrive during a read wait for that read.
"""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import structlog

from replaceme_core.ledger.database import Database
from replaceme_core.ledger.keys import LAST_USED_SECONDS, ApiKey, Keys

CACHE_SECONDS = 5.0
MOST_ENTRIES = 10_000
_ANY_ISSUED = ""  # no hash of a key

T = TypeVar("T")

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, kw_only=True)
class _Entry:
    """A read, finished or not, and until when its result is used (seconds of the monotonic clock)."""

    read: "asyncio.Future[ApiKey | bool | None]"
    expires_at: float


class KeyCache:
    """Looks keys up in a thread of its own, so that this never waits for a thread behind submissions."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._entries: dict[str, _Entry] = {}
        self._reading = ThreadPoolExecutor(max_workers=1, thread_name_prefix="keys")
        self._writing = ThreadPoolExecutor(max_workers=1, thread_name_prefix="key-use")
        self._noted_at: dict[str, float] = {}

    async def find_live(self, key_hash: str, session_id: str = "") -> ApiKey | None:
        """The key with this hash; `None` if there is none, or if it or the session has ended.

        Raises `DatabaseUnreachable`.
        """
        found = await self._find(key_hash + session_id, lambda keys: keys.find_live(key_hash, session_id))
        assert not isinstance(found, bool)
        return found

    async def is_any_issued(self) -> bool:
        """Whether a person has ever created a key. Raises `DatabaseUnreachable`."""
        return bool(await self._find(_ANY_ISSUED, Keys.is_any_issued))

    def note_use(self, key_id: str) -> None:
        """Write in the background when the key was last used, at most once a minute."""
        now = time.monotonic()
        if now < self._noted_at.get(key_id, float("-inf")) + LAST_USED_SECONDS:
            return
        self._noted_at.pop(key_id, None)
        self._noted_at[key_id] = now
        _limit(self._noted_at)
        self._writing.submit(self._write_use, key_id)

    def forget(self) -> None:
        """Look everything up again: keys have changed. For the process that made the change."""
        self._entries.clear()

    def close(self) -> None:
        """Stop the threads. A use that was noted and not written yet is lost."""
        self._reading.shutdown(cancel_futures=True)
        self._writing.shutdown(cancel_futures=True)

    async def _find(self, name: str, read: Callable[[Keys], ApiKey | bool | None]) -> ApiKey | bool | None:
        entry = self._entries.get(name)
        if entry is None or time.monotonic() >= entry.expires_at:
            future = asyncio.get_running_loop().run_in_executor(self._reading, self._read, read)
            entry = _Entry(read=future, expires_at=time.monotonic() + CACHE_SECONDS)
            self._entries.pop(name, None)
            self._entries[name] = entry
            _limit(self._entries)
        if entry.read.done() and entry.read.exception() is None:
            return entry.read.result()
        try:
            return await asyncio.shield(entry.read)  # a client that disconnects must not end the read of others
        except Exception:
            if self._entries.get(name) is entry:
                del self._entries[name]
            raise

    def _read(self, read: Callable[[Keys], ApiKey | bool | None]) -> ApiKey | bool | None:
        with self._database.session(read_only=True) as session:
            return read(Keys(session))

    def _write_use(self, key_id: str) -> None:
        try:
            with self._database.session() as session:
                Keys(session).note_use([key_id])
        except Exception as error:
            _log.warning("the last use of a key could not be written", key_id=key_id, error=type(error).__name__)


def _limit(entries: dict[str, T]) -> None:
    """Drop the oldest, which are first."""
    while len(entries) > MOST_ENTRIES:
        del entries[next(iter(entries))]
