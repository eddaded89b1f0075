"""Pages and plots of reports: drawn one at a time, outside of the event loop, and kept for those who come back."""

import json
from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from typing import TypeVar

from anyio import CapacityLimiter, to_thread

from replaceme_core.errors import Unavailable
from replaceme_core.report.page import plots_of, render_page
from replaceme_core.report.plots import Format, can_draw, rendered

MOST_KEPT = 64
"""Pages, and plots, of about 100 kB to 1 MB each."""
MOST_WAITING = 50
_Made = TypeVar("_Made", bytes, bytes | None)


class ReportPages:
    """One at a time, because drawing takes a second of a processor; those who wait occupy no thread.

    Raises `Unavailable` where too many are waiting.
    """

    def __init__(self, *, most_kept: int = MOST_KEPT) -> None:
        self._one_at_a_time = CapacityLimiter(1)
        # of the report as JSON: one that changes is another one
        self._page = lru_cache(most_kept)(lambda text, back: render_page(json.loads(text), back=back).encode())
        self._plot = lru_cache(most_kept)(_drawn)

    async def page(self, report: Mapping[str, object], *, back: str = "") -> bytes:
        """The HTML of a report, the content of `replaceme.json`; `back` is the address of the page of its job."""
        return await self._made(report, partial(self._page, back=back))

    async def plot(self, report: Mapping[str, object], name: str, kind: Format) -> bytes | None:
        """The plot of that name; `None` where the report has none, and without matplotlib."""
        return await self._made(report, partial(self._plot, name=name, kind=kind))

    async def _made(self, report: Mapping[str, object], make: Callable[[str], _Made]) -> _Made:
        if self._one_at_a_time.statistics().tasks_waiting >= MOST_WAITING:
            raise Unavailable("too many reports are being drawn; try again in a minute")
        return await to_thread.run_sync(make, json.dumps(report), limiter=self._one_at_a_time)


def _drawn(text: str, name: str, kind: Format) -> bytes | None:
    plot = next((one for one in plots_of(json.loads(text)) if one.name == name), None) if can_draw() else None
    return None if plot is None else rendered(plot, kind)
