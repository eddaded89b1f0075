"""What the commands print. Standard output carries the answer, standard error all the rest."""

import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from typing import Protocol

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from api.cli.exits import ExitCode
from replaceme_core.json_values import json_safe
from replaceme_core.settings import Settings

PLAIN_WIDTH = 120  # columns, where the output is not a terminal
PLAIN_SECONDS = 15.0  # between two lines about the same stage, where the output is not a terminal


def make_console(*, stderr: bool) -> Console:
    """A console that does not break lines at 80 columns when it writes to a file or a pipe."""
    console = Console(stderr=stderr, highlight=False, emoji=False, markup=False)
    if not console.is_terminal:
        console = Console(stderr=stderr, highlight=False, emoji=False, markup=False, width=PLAIN_WIDTH)
    return console


def say(text: str) -> None:
    """One line on standard error."""
    typer.echo(text, err=True)


def print_json(value: Mapping[str, object]) -> None:
    """One JSON object on standard output. What JSON cannot carry (NaN, infinity) is given as a string."""
    typer.echo(json.dumps(json_safe(value), indent=2, ensure_ascii=False, allow_nan=False))


class Failure(typer.Exit):
    """Ends a command: the sentence goes to standard error, with `--json` also as an object to standard output."""

    def __init__(
        self,
        message: str,
        exit_code: ExitCode,
        *,
        code: str = "",
        field: str | None = None,
        errors: tuple[Mapping[str, object], ...] = (),
        as_json: bool = False,
    ) -> None:
        super().__init__(int(exit_code))
        say(f"error: {message}")
        for error in errors:
            say(f"  {error['field']}: {error['message']}" if error.get("field") else f"  {error['message']}")
        if as_json:
            print_json({"error": {"code": code, "message": message, "field": field, "errors": list(errors)}})


def read_settings(**given: object) -> Settings:
    """Settings from the environment, and those `given`. Raises `Failure` that names the first bad one."""
    try:
        return Settings.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        name = "REPLACEME_" + "_".join(map(str, first["loc"][:1])).upper()
        raise Failure(f"{name}: {first['msg']}", ExitCode.BAD_INPUT) from error


class ShowProgress(Protocol):
    """Tell where the work is: `overall` runs from 0 to 1, `eta_seconds` is `None` while nobody knows."""

    def __call__(self, stage: str, overall: float, eta_seconds: float | None) -> None: ...


@contextmanager
def progress_shown(console: Console, *, clock: Callable[[], float]) -> Iterator[ShowProgress]:
    """A bar with stage and ETA on a terminal, else a line now and then."""
    if not console.is_terminal:
        yield _PlainProgress(console, clock)
        return
    columns = (
        TextColumn("{task.description:<9}"),
        BarColumn(bar_width=None),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[eta]}"),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("waiting", total=1.0, eta="")

        def show(stage: str, overall: float, eta_seconds: float | None) -> None:
            bar.update(task, description=stage, completed=overall, eta=describe_eta(eta_seconds))

        yield show


class _PlainProgress:
    def __init__(self, console: Console, clock: Callable[[], float]) -> None:
        self._console, self._clock = console, clock
        self._stage, self._spoke_at = "", -math.inf

    def __call__(self, stage: str, overall: float, eta_seconds: float | None) -> None:
        now = self._clock()
        if stage == self._stage and now - self._spoke_at < PLAIN_SECONDS:
            return
        self._stage, self._spoke_at = stage, now
        line = f"{stage:<10} {overall:4.0%}  {describe_eta(eta_seconds)}".rstrip()
        self._console.print(line)


def describe_eta(seconds: float | None) -> str:
    return "" if seconds is None else f"about {describe_duration(seconds)} left"


def describe_duration(seconds: float) -> str:
    """
    >>> [describe_duration(s) for s in (0.4, 59.6, 61, 3700)]
    ['0 s', '1 min 00 s', '1 min 01 s', '1 h 01 min']
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02} min"


def describe_time(at: datetime | None) -> str:
    return "" if at is None else at.astimezone().strftime("%Y-%m-%d %H:%M:%S")
