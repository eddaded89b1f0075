"""What commands do with a service: connect, print what it lists, wait for a job, and handle interrupts meanwhile."""

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Annotated, TypeVar

import typer
from rich.console import RenderableType

from api.cli.exit_codes import ExitCode, Failure, exit_code_of_job, exit_code_of_status
from api.cli.output.ci import Ended, write_for_pipeline
from api.cli.output.console import make_console, print_json, print_note
from api.cli.output.jobs import print_job
from api.cli.output.progress import progress_display
from api.client.client import Client
from api.client.connection import KEY_VARIABLE
from api.client.errors import Conflicting, Refused, ServiceError
from api.client.models import Job
from replaceme_core.shapes import Shape

One = TypeVar("One", bound=Shape)
Url = Annotated[str, typer.Option("--url", envvar="REPLACEME_URL", help="URL of the service.")]
ApiKeyOption = Annotated[
    str | None,
    typer.Option(
        "--api-key",
        envvar=KEY_VARIABLE,
        show_envvar=True,
        help="API key. Default: for a service on this machine, the one in the data directory. Prefer the variable: "
        "others on this machine see arguments.",
    ),
]
JobId = Annotated[str, typer.Argument(metavar="ID", help="ID of the job.")]
Label = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME=VALUE", help="Only jobs with this label. Repeatable; a job must have all of them."),
]
Cursor = Annotated[str | None, typer.Option(help="Continue after a page: the next_cursor of its JSON.")]


@contextmanager
def connect(url: str, *, api_key: str | None = None, as_json: bool) -> Iterator[Client]:
    """A client whose errors end the command with their message and exit code."""
    try:
        client = Client(url, api_key=api_key)
    except ValueError as error:  # before any request: the key cannot be sent
        raise Failure(str(error), ExitCode.BAD_INPUT, as_json=as_json) from error
    except ServiceError as error:
        raise Failure(str(error), ExitCode.SERVICE_UNREACHABLE, code="service_unreachable", as_json=as_json) from error
    try:
        with client:
            yield client
    except Refused as error:
        problem = error.problem
        raise Failure(
            str(error),
            exit_code_of_status(problem.status),
            code=problem.code,
            errors=tuple(each.model_dump(mode="json") for each in problem.errors),
            as_json=as_json,
        ) from error
    except ServiceError as error:
        raise Failure(str(error), ExitCode.SERVICE_UNREACHABLE, code="service_unreachable", as_json=as_json) from error


def print_items(
    items: Sequence[One],
    table: Callable[[Sequence[One]], RenderableType],
    *,
    nothing: str,
    cursor: str | None = None,
    as_json: bool,
) -> None:
    """What a service lists, as JSON or as a table; `cursor` asks for the next page, if there is one."""
    if as_json:
        print_json({"items": [one.model_dump(mode="json") for one in items], "next_cursor": cursor})
        return
    if items:
        make_console(stderr=False).print(table(items))
    else:
        print_note(nothing)
    if cursor:
        print_note(f"there are more: --cursor {cursor}")


CANCEL_SECONDS = 30.0
"""How long an interrupted command waits until the job has been stopped."""


def finite(value: float | None) -> float | None:
    """A callback for options: refuses NaN and infinities."""
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter(f"expected a number, got {value}")
    return value


Wait = Annotated[bool, typer.Option("--wait", help="Wait until the job has ended.")]
Timeout = Annotated[
    float | None,
    typer.Option(min=0, callback=finite, help="Wait as with --wait, but at most this many seconds; the job continues."),
]
CancelOnInterrupt = Annotated[
    bool,
    typer.Option(
        "--cancel-on-interrupt",
        help="Wait as with --wait, and cancel the job if this command gets SIGINT (Ctrl-C) or SIGTERM.",
    ),
]


class Interrupts:
    """Signals that end the command with `KeyboardInterrupt`. One that comes while they are held is kept until then."""

    def __init__(self) -> None:
        self._is_held = True
        self._has_come = False

    def release(self) -> None:
        """Raise `KeyboardInterrupt` for a signal that has come, and from now on for each."""
        self._is_held = False
        if self._has_come:
            self._has_come = False
            raise KeyboardInterrupt

    def hold(self) -> None:
        self._is_held = True

    def on_signal(self, _number: int, _frame: FrameType | None) -> None:
        if self._is_held and not self._has_come:  # a second one ends the command in any case
            self._has_come = True
            return
        raise KeyboardInterrupt


@contextmanager
def interrupts(*, wanted: bool) -> Iterator[Interrupts | None]:
    """Handle SIGINT and SIGTERM, if that is `wanted`. They are held at first: the job may not have an id yet."""
    if not wanted or threading.current_thread() is not threading.main_thread():
        yield None
        return
    found = Interrupts()
    before = {number: signal.signal(number, found.on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield found
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def finish(
    client: Client,
    job: Job,
    *,
    wait: bool,
    timeout: float | None,
    held: Interrupts | None,
    junit: Path | None = None,
    as_json: bool,
) -> None:
    """Print a new job, after its end if that is to be waited for; then end the command with its exit code.

    What a pipeline reads is written about a job whose end was waited for.
    """
    waits = wait or timeout is not None or held is not None
    if waits:
        job = _watch(client, job, timeout=timeout, held=held, as_json=as_json)
    print_job(job, as_json=as_json)
    if job.is_terminal:
        if waits:
            write_for_pipeline(Ended.of_job(job), junit=junit)
        raise typer.Exit(int(exit_code_of_job(job.status, code=job.error.code if job.error else None)))


def _watch(client: Client, submitted: Job, *, timeout: float | None, held: Interrupts | None, as_json: bool) -> Job:
    job = submitted
    print_note(f"job {job.id}")
    try:
        if held is not None:
            held.release()
        with progress_display(make_console(stderr=True), clock=time.monotonic) as show:
            for job in client.watch(submitted.id, timeout=timeout):
                show(
                    job.stage or job.status,
                    job.progress.overall,
                    job.progress.eta_seconds,
                    job.progress.eta_error_seconds,
                )
    except TimeoutError as error:
        print_job(job, as_json=as_json)
        raise Failure(f"{error}; it continues, see: replaceme status {job.id}", ExitCode.TIMED_OUT) from error
    except KeyboardInterrupt:
        if held is not None:
            return _cancel(client, job, held=held, as_json=as_json)
        print_note(f"the job continues; see: replaceme status {job.id}, or stop it: replaceme cancel {job.id}")
        raise
    return job


def _cancel(client: Client, job: Job, *, held: Interrupts, as_json: bool) -> Job:
    """Cancel the job and return it once it has ended. Ends the command with `CANCELLED` if that takes too long."""
    held.hold()
    print_note(f"interrupted: job {job.id} is being cancelled")
    try:
        job = client.cancel(job.id)
        held.release()
        return client.wait(job.id, timeout=CANCEL_SECONDS)
    except Conflicting:  # it has ended meanwhile
        return client.job(job.id)
    except (TimeoutError, KeyboardInterrupt) as error:
        print_job(job, as_json=as_json)
        print_note(f"the job is being stopped; see: replaceme status {job.id}")
        raise typer.Exit(int(ExitCode.CANCELLED)) from error
