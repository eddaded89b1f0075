"""Progress on standard error: a bar on a terminal, otherwise a line from time to time where there is news."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from api.cli.output.console import describe_eta

LINE_SECONDS = 15.0  # between two lines about the same stage, without a terminal


class ShowProgress(Protocol):
    """Show the progress. `overall` runs from 0 to 1; the time left and its error are `None` while unknown."""

    def __call__(
        self, stage: str, overall: float, eta_seconds: float | None, eta_error_seconds: float | None = None
    ) -> None: ...


@contextmanager
def progress_display(console: Console, *, clock: Callable[[], float]) -> Iterator[ShowProgress]:
    """A display of stage, fraction and ETA; the function that updates it."""
    if not console.is_terminal:
        yield _ProgressLines(console, clock)
        return
    columns = (
        TextColumn("{task.description:<9}", markup=False),
        BarColumn(bar_width=None),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[eta]}", markup=False),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("waiting", total=1.0, eta="")

        def show(stage: str, overall: float, eta_seconds: float | None, eta_error_seconds: float | None = None) -> None:
            bar.update(task, description=stage, completed=overall, eta=describe_eta(eta_seconds, eta_error_seconds))

        yield show


class _ProgressLines:
    def __init__(self, console: Console, clock: Callable[[], float]) -> None:
        self._console, self._clock = console, clock
        self._printed, self._printed_at = ("", ""), -math.inf

    def __call__(
        self, stage: str, overall: float, eta_seconds: float | None, eta_error_seconds: float | None = None
    ) -> None:
        now, done = self._clock(), f"{overall:4.0%}"
        is_new_stage = stage != self._printed[0]
        if (stage, done) == self._printed or (not is_new_stage and now - self._printed_at < LINE_SECONDS):
            return
        self._printed, self._printed_at = (stage, done), now
        self._console.print(f"{stage:<10} {done}  {describe_eta(eta_seconds, eta_error_seconds)}".rstrip())
