"""How many requests a caller may send in a minute, and the headers that say so.

The headers are those of the IETF draft "RateLimit header fields for HTTP" (draft-ietf-httpapi-ratelimit-headers-10).
Each process counts for itself: behind N processes a caller may get N times as much.
"""

import math
import time
from dataclasses import dataclass

from limits import RateLimitItemPerMinute
from limits.aio.storage import MemoryStorage
from limits.aio.strategies import FixedWindowRateLimiter

from api.auth.caller import Caller

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
        name = caller.key_id or caller.owner
        is_within = await self._windows.hit(window, name)
        stats = await self._windows.get_window_stats(window, name)
        reset_seconds = min(max(math.ceil(stats.reset_time - time.time()), 1), _WINDOW_SECONDS)
        return Usage(is_within=is_within, limit=limit, remaining=stats.remaining, reset_seconds=reset_seconds)
