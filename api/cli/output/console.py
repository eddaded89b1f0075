"""What commands print: results on standard output, everything else on standard error.

Models, texts and services of strangers are in much of it. It is printed here and nowhere else, so that nothing of it is
markup or reaches the terminal as a command.
"""

import inspect
import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from typing import Annotated, Any

import typer
from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.segment import Segment
from rich.text import Text

from replaceme_core.report.figures import time_left
from replaceme_core.wording import json_safe, printable

WIDTH_WITHOUT_TERMINAL = 80  # columns, whatever the environment says


JsonFlag = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")]
"""Errors, which are printed in one place for all commands, are JSON then, too."""


def set_parameters(command: Callable[..., None], parameters: Iterable[inspect.Parameter]) -> None:
    """Let the command have these, which are options and arguments of the command line, in their order."""
    ordered = sorted(parameters, key=lambda one: one.kind)
    command.__signature__ = inspect.Signature(ordered)  # type: ignore[attr-defined]
    command.__annotations__ = {one.name: one.annotation for one in ordered}


def describe_eta(seconds: float | None, error: float | None) -> str:
    """The time left, give or take `error` seconds.

    >>> describe_eta(240, 60), describe_eta(240, None), describe_eta(240, 300), describe_eta(None, None)
    ('3 to 5 minutes left', 'about 4 minutes left', 'up to 9 minutes left', '')
    """
    return "" if seconds is None else f"{time_left(seconds, error)} left"


def describe_time(at: datetime | None) -> str:
    """Local time to the second."""
    return "" if at is None else at.astimezone().strftime("%Y-%m-%d %H:%M:%S")


class SafeConsole(Console):
    """Without markup; each text is one line without control characters. What has several lines is a `Group`."""

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(printable(text), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        if isinstance(renderable, Text):
            renderable = renderable.copy()
            renderable.plain = printable(renderable.plain)
        return super().render(renderable, options)


def make_console(*, stderr: bool) -> Console:
    """A console for text of strangers; tables are 80 columns wide if it writes to a file or a pipe."""
    console = SafeConsole(stderr=stderr, highlight=False, emoji=False, markup=False)
    if not console.is_terminal:
        console.width = WIDTH_WITHOUT_TERMINAL
    return console


def print_line(text: str) -> None:
    """Print one line on standard output, whatever is in `text`."""
    typer.echo(printable(text))


def print_note(text: str) -> None:
    """Print one line on standard error, whatever is in `text`."""
    typer.echo(printable(text), err=True)


def print_json(value: Mapping[str, object]) -> None:
    """Print one JSON object on standard output. NaN and infinities are strings in it."""
    text = json.dumps(json_safe(value), indent=2, ensure_ascii=False, allow_nan=False)
    typer.echo(printable(text, lines=True))  # the escapes are those of JSON: the value is the same


# Progress: a bar on a terminal, otherwise a line from time to time where there is news

LINE_SECONDS = 15.0  # between two lines about the same stage, without a terminal


@contextmanager
def progress_display(console: Console, *, clock: Callable[[], float] = time.monotonic) -> Iterator[Callable[..., None]]:
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
