"""How many requests a caller may send in a minute, with the headers that say so, and how many read models at once.

The headers are those of the IETF draft "RateLimit header fields for HTTP" (draft-ietf-httpapi-ratelimit-headers-10).
Each process counts for itself: behind N processes a caller may get N times as much.
"""

import asyncio
import math
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from weakref import WeakValueDictionary

from limits import RateLimitItemPerMinute
from limits.aio.storage import MemoryStorage
from limits.aio.strategies import FixedWindowRateLimiter

from api.http.callers import Caller
from replaceme_core.errors import TooManyRequests

MOST_READING, MOST_READING_OF_ONE = 8, 4
"""Requests that read a repository at once: of all callers, and of one. Each may take 100 MB, and waits for the Hub."""
READING_WAIT_SECONDS = 10.0
_POLICY = "requests"
_WINDOW_SECONDS = 60


@dataclass(frozen=True, kw_only=True)
class Usage:
    """What a caller has used of its limit, this request included. `reset_seconds`: until it begins anew."""

    is_within: bool
    limit: int
    remaining: int
    reset_seconds: int

    def headers(self) -> dict[str, str]:
        """`RateLimit-Policy` and `RateLimit`."""
        return {
            "RateLimit-Policy": f'"{_POLICY}";q={self.limit};w={_WINDOW_SECONDS}',
            "RateLimit": f'"{_POLICY}";r={self.remaining};t={self.reset_seconds}',
        }


class RateLimits:
    """Counts requests by key, and all requests without one together."""

    def __init__(self, *, requests_per_minute: int) -> None:
        self._default = requests_per_minute
        self._windows = FixedWindowRateLimiter(MemoryStorage())

    async def count(self, caller: Caller) -> Usage | None:
        """Count a request; `None` where there is no limit."""
        own = caller.limits.requests_per_minute
        limit = self._default if own is None else own
        if limit == 0:
            return None
        window = RateLimitItemPerMinute(limit)
        name = _name_of(caller)
        is_within = await self._windows.hit(window, name)
        stats = await self._windows.get_window_stats(window, name)
        reset_seconds = min(max(math.ceil(stats.reset_time - time.time()), 1), _WINDOW_SECONDS)
        return Usage(is_within=is_within, limit=limit, remaining=stats.remaining, reset_seconds=reset_seconds)


class ReadingSlots:
    """Limits how many requests read a repository at the same time: those of each caller, and all of this process."""

    def __init__(self) -> None:
        self._all = asyncio.Semaphore(MOST_READING)
        self._own: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()

    @asynccontextmanager
    async def hold(self, caller: Caller) -> AsyncIterator[None]:
        """Wait for a slot, without a thread, and hold it. Raises `TooManyRequests` after `READING_WAIT_SECONDS`."""
        own = self._own.setdefault(_name_of(caller), asyncio.Semaphore(MOST_READING_OF_ONE))
        async with AsyncExitStack() as held:
            try:
                async with asyncio.timeout(READING_WAIT_SECONDS):
                    await held.enter_async_context(own)
                    await held.enter_async_context(self._all)
            except TimeoutError:
                raise TooManyRequests(
                    f"too many requests are reading models, of you (at most {MOST_READING_OF_ONE} at once) or of all "
                    f"callers (at most {MOST_READING}); try again in {TooManyRequests.retry_after:g} seconds"
                ) from None
            yield


def _name_of(caller: Caller) -> str:
    return caller.key_id or caller.owner
