"""Pages and plots of reports: drawn one at a time, outside of the event loop, and kept for those who come back."""

import asyncio
import hashlib
import json
from collections import OrderedDict
from collections.abc import Callable, Mapping
from functools import partial

from starlette.concurrency import run_in_threadpool

from replaceme_core.errors import Unavailable
from replaceme_core.report.page import plots_of, render_page
from replaceme_core.report.plots import Format, can_draw, rendered

MOST_BYTES = 64 * 2**20
"""Of what is kept."""
MOST_WAITING = 50
Key = tuple[str, str]
"""Digest of a report, and what is made of it."""


class ReportPages:
    """By the content of the reports: a report that changes is another one.

    One at a time, because drawing takes a second of a processor, and those who wait must not occupy the threads that
    all routes share. What has begun is finished and kept, also for a request that has passed its deadline. Raises
    `Unavailable` where too many are waiting.
    """

    def __init__(self, *, most_bytes: int = MOST_BYTES) -> None:
        self._most_bytes = most_bytes
        self._kept: OrderedDict[Key, bytes] = OrderedDict()
        self._making: dict[Key, asyncio.Task[bytes]] = {}
        self._drawing = asyncio.Lock()

    async def page(self, report: Mapping[str, object], *, back: str = "") -> bytes:
        """The HTML of a report, the content of `replaceme.json`; `back` is the address of the page of its job."""
        return await self._found(report, f"page {back}", lambda: render_page(report, back=back).encode())

    async def plot(self, report: Mapping[str, object], name: str, kind: Format) -> bytes | None:
        """The plot of that name; `None` where the report has none, and without matplotlib."""
        return await self._found(report, f"{name}.{kind}", lambda: _drawn(report, name, kind)) or None

    async def _found(self, report: Mapping[str, object], name: str, make: Callable[[], bytes]) -> bytes:
        digest = hashlib.sha256(json.dumps(report, sort_keys=True).encode()).hexdigest()
        key = (digest, name)
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        if key not in self._making:
            if len(self._making) >= MOST_WAITING:
                raise Unavailable("too many reports are being drawn; try again in a minute")
            self._making[key] = asyncio.create_task(self._make(key, make))
            self._making[key].add_done_callback(partial(self._forget, key))
        return await asyncio.shield(self._making[key])

    async def _make(self, key: Key, make: Callable[[], bytes]) -> bytes:
        async with self._drawing:
            made = await run_in_threadpool(make)
        self._keep(key, made)
        return made

    def _forget(self, key: Key, task: asyncio.Task[bytes]) -> None:
        del self._making[key]
        if not task.cancelled():
            task.exception()  # those who wait have it; where nobody does any more, it is not logged as lost

    def _keep(self, key: Key, made: bytes) -> None:
        """Keep it, and drop the oldest above the limit; the last one stays, however large it is."""
        self._kept[key] = made
        while len(self._kept) > 1 and sum(map(len, self._kept.values())) > self._most_bytes:
            self._kept.popitem(last=False)


def _drawn(report: Mapping[str, object], name: str, kind: Format) -> bytes:
    """The plot of that name; empty where there is none."""
    plot = next((one for one in plots_of(report) if one.name == name), None) if can_draw() else None
    return b"" if plot is None else rendered(plot, kind)
