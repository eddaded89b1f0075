"""What commands do with a service: connect, print what it lists, wait for a job, and handle interrupts meanwhile."""

import inspect
import math
import re
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property, wraps
from pathlib import Path
from types import FrameType
from typing import Annotated, TypeVar

import typer
from rich.console import RenderableType

from api.cli.exit_codes import ExitCode, exit_code_of_job, handled
from api.cli.output.ci import Ended, write_for_pipeline
from api.cli.output.console import JsonFlag, make_console, print_json, print_note, progress_display, set_parameters
from api.cli.output.jobs import print_job
from api.client.client import DEFAULT_URL, Client
from api.client.connection import KEY_VARIABLE
from api.client.errors import Conflicting
from api.client.models import Job
from replaceme_core.errors import InvalidInput
from replaceme_core.shapes import BEGINNING_OF_ID, Shape

One = TypeVar("One", bound=Shape)
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
JobId = Annotated[str, typer.Argument(metavar="ID", help="ID of the job, or its beginning, of 4 characters at least.")]
Label = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME=VALUE", help="Only jobs with this label. Repeatable; a job must have all of them."),
]
Cursor = Annotated[str | None, typer.Option(help="Continue after a page: the next_cursor of its JSON.")]


class Service:
    """The service that a command asks, and how the command prints what it gets."""

    def __init__(self, url: str | None, *, api_key: str | None, as_json: bool) -> None:
        self.url = url
        self.as_json = as_json
        self._api_key = api_key

    @cached_property
    def client(self) -> Client:
        try:
            return Client(self.url or DEFAULT_URL, api_key=self._api_key)
        except ValueError as error:  # the key cannot be sent
            raise InvalidInput(str(error), field="api_key") from error

    def whole_id(self, given: str) -> str:
        """The id of the one job that begins with `given`, as lists show it; `given` where it is no such beginning."""
        if not re.fullmatch(BEGINNING_OF_ID, given):
            return given
        found = self.client.jobs(id_prefix=given, limit=2).items
        if len(found) > 1:
            raise InvalidInput(f"several jobs begin with {given}; give more of the id", field="id", value=given)
        return found[0].id if found else given

    def show(self, found: Shape | Mapping[str, object], shown: RenderableType) -> None:
        """Print JSON, or `shown`: a table, or a sentence on standard error."""
        if self.as_json:
            print_json(found.model_dump(mode="json") if isinstance(found, Shape) else found)
        elif isinstance(shown, str):
            print_note(shown)
        else:
            make_console(stderr=False).print(shown)

    def show_list(
        self,
        items: Sequence[One],
        table: Callable[[Sequence[One]], RenderableType],
        *,
        nothing: str,
        cursor: str | None = None,
    ) -> None:
        """Print what a service lists; `cursor` asks for the next page, if there is one."""
        body = {"items": [one.model_dump(mode="json") for one in items], "next_cursor": cursor}
        self.show(body, table(items) if items else nothing)
        if cursor and not self.as_json:
            print_note(f"there are more: --cursor {cursor}")


def asks_service(*, without: str | None = None) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """The command with the options that say which service is asked, and with which key; its first argument has both.

    `without`: a command that does without a service, with this help about its URL.
    """
    url = typer.Option("--url", envvar="REPLACEME_URL", help=without or "URL of the service.")

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @wraps(command)
        def run(*, url: str | None, api_key: str | None, as_json: bool, **given: object) -> None:
            service = Service(url, api_key=api_key, as_json=as_json)
            try:
                if isinstance(job_id := given.get("job_id"), str):
                    given["job_id"] = service.whole_id(job_id)
                command(service, **given)
            finally:
                if "client" in vars(service):
                    service.client.close()

        _, *own = inspect.signature(command).parameters.values()
        options = (
            ("url", Annotated[str | None, url], DEFAULT_URL if without is None else None),
            ("api_key", ApiKeyOption, None),
            ("as_json", JsonFlag, False),
        )
        last = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind)
            for name, kind, default in options
        ]
        set_parameters(run, [*own, *last])
        return run

    return decorate


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
    if not wanted:
        yield None
        return
    found = Interrupts()
    with handled(found.on_signal, signal.SIGINT, signal.SIGTERM):
        yield found


def print_notice(job: Job) -> None:
    """Print what the service says of the job of a repeated request, where there is something to say."""
    if job.notice is not None:
        print_note(f"{job.notice} (--idempotency-key)")


def finish(
    service: Service, job: Job, *, wait: bool, timeout: float | None, held: Interrupts | None, junit: Path | None = None
) -> None:
    """Print a new job, or wait for its end first if the options say so; then end the command with its exit code.

    What a pipeline reads is written about a job whose end was waited for.
    """
    print_notice(job)
    waits = wait or timeout is not None or held is not None
    if waits:
        job = watch(service, job, timeout=timeout, held=held)
    if waits and job.is_terminal:  # before it is printed, which a closed pipe may end
        write_for_pipeline(Ended.of_job(job), junit=junit)
    print_job(job, as_json=service.as_json)
    if job.is_terminal:
        if service.as_json and job.error is not None:  # the log of a pipeline whose JSON goes to a file
            print_note(f"error: {job.error.code}: {job.error.message}")
        raise typer.Exit(exit_code_of_job(job))
    if timeout is not None:
        print_note(
            f"error: job {job.id} is still {job.status} after {timeout:g} s; it continues, see: "
            f"replaceme status {job.id}"
        )
        raise typer.Exit(int(ExitCode.TIMED_OUT))


def watch(service: Service, submitted: Job, *, timeout: float | None, held: Interrupts | None) -> Job:
    """The job once it has ended, or as it is after `timeout` seconds, with its progress until then."""
    job = submitted
    print_note(f"job {job.id}")
    try:
        if held is not None:
            held.release()
        with progress_display(make_console(stderr=True)) as show:
            for job in service.client.watch(submitted.id, timeout=timeout):
                show(
                    job.stage or job.status,
                    job.progress.overall,
                    job.progress.eta_seconds,
                    job.progress.eta_error_seconds,
                )
    except TimeoutError:
        return job
    except KeyboardInterrupt:
        if held is not None:
            return _cancel(service, job, held=held)
        print_note(f"the job continues; see: replaceme status {job.id}, or stop it: replaceme cancel {job.id}")
        raise
    return job


def _cancel(service: Service, job: Job, *, held: Interrupts) -> Job:
    """Cancel the job and return it once it has ended. Ends the command with `CANCELLED` if that takes too long."""
    held.hold()
    print_note(f"interrupted: job {job.id} is being cancelled")
    try:
        job = service.client.cancel(job.id)
        held.release()
        return service.client.wait(job.id, timeout=CANCEL_SECONDS)
    except Conflicting:  # it has ended meanwhile
        return service.client.job(job.id)
    except (TimeoutError, KeyboardInterrupt) as error:
        print_job(job, as_json=service.as_json)
        print_note(f"the job is being stopped; see: replaceme status {job.id}")
        raise typer.Exit(int(ExitCode.CANCELLED)) from error
