"""Pages and plots of reports: drawn one at a time, outside of the event loop, and kept for those who come back."""

import asyncio
import hashlib
import json
from collections import OrderedDict
from collections.abc import Callable, Mapping

from starlette.concurrency import run_in_threadpool

from replaceme_core.report_page.page import plots_of, render_page
from replaceme_core.report_page.plots.style import Format, can_draw, rendered

MOST_BYTES = 64 * 2**20
"""Of what is kept."""


class ReportPages:
    """By the content of the reports: a report that changes is another one.

    One at a time, because drawing takes a second of a processor, and those who wait must not occupy the threads that
    all routes share.
    """

    def __init__(self, *, most_bytes: int = MOST_BYTES) -> None:
        self._most_bytes = most_bytes
        self._kept: OrderedDict[tuple[str, str], bytes] = OrderedDict()
        self._drawing = asyncio.Lock()

    async def page(self, report: Mapping[str, object]) -> bytes:
        """The HTML of a report, the content of `replaceme.json`."""
        return await self._found(report, "page", lambda: render_page(report).encode())

    async def plot(self, report: Mapping[str, object], name: str, kind: Format) -> bytes | None:
        """The plot of that name; `None` where the report has none, and without matplotlib."""
        plot = next((one for one in plots_of(report) if one.name == name), None) if can_draw() else None
        if plot is None:
            return None
        return await self._found(report, f"{name}.{kind}", lambda: rendered(plot.draw, kind))

    async def _found(self, report: Mapping[str, object], name: str, make: Callable[[], bytes]) -> bytes:
        key = (digest_of(report), name)
        if key not in self._kept:
            async with self._drawing:
                if key not in self._kept:  # else another request has made it meanwhile
                    self._keep(key, await run_in_threadpool(make))
        self._kept.move_to_end(key)
        return self._kept[key]

    def _keep(self, key: tuple[str, str], made: bytes) -> None:
        """The last one stays, however large it is."""
        self._kept[key] = made
        while len(self._kept) > 1 and sum(map(len, self._kept.values())) > self._most_bytes:
            self._kept.popitem(last=False)


def digest_of(report: Mapping[str, object]) -> str:
    """The same for the same content."""
    return hashlib.sha256(json.dumps(report, sort_keys=True).encode()).hexdigest()
