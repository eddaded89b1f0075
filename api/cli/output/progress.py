"""Progress on standard error: a bar on a terminal, otherwise a line from time to time where there is news."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from api.cli.output.console import describe_eta

LINE_SECONDS = 15.0  # between two lines about the same stage, without a terminal


@contextmanager
def progress_display(console: Console, *, clock: Callable[[], float]) -> Iterator[Callable[..., None]]:
    """A display; the function that shows a stage, the part that is done, from 0 to 1, the seconds left, their error."""
    if not console.is_terminal:
        yield _lines(console, clock)
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


def _lines(console: Console, clock: Callable[[], float]) -> Callable[..., None]:
    printed, printed_at = ("", ""), -math.inf

    def show(stage: str, overall: float, eta_seconds: float | None, eta_error_seconds: float | None = None) -> None:
        nonlocal printed, printed_at
        now, done = clock(), f"{overall:4.0%}"
        if (stage, done) == printed or (stage == printed[0] and now - printed_at < LINE_SECONDS):
            return
        printed, printed_at = (stage, done), now
        console.print(f"{stage:<10} {done}  {describe_eta(eta_seconds, eta_error_seconds)}".rstrip())

    return show
