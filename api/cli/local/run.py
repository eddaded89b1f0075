"""Run the runner for a command: progress on standard error, its final message as the result."""

import signal
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from api.cli.exit_codes import exit_code_of
from api.cli.failure import Failure, failure_of
from api.cli.output.console import make_console, print_note
from api.cli.output.progress import ShowProgress, progress_display
from replaceme_core.errors import ReplaceMeError
from replaceme_core.runner.confinement import Confinement
from replaceme_core.runner.eta import Course
from replaceme_core.runner.messages import (
    Advanced,
    Evaluated,
    Failed,
    Finished,
    Message,
    ModelRequest,
    Stage,
    StageStarted,
)
from replaceme_core.runner.process import Runner

GRACE_SECONDS = 5.0
_LOG_LINES = 20
_STAGES_OF_THE_SUPERVISOR = (Stage.RESOLVE, Stage.DOWNLOAD, Stage.PUBLISH)


def run(
    command: Sequence[str],
    request: ModelRequest,
    *,
    confinement: Confinement,
    weights: Mapping[Stage, float],
    as_json: bool,
) -> Finished | Evaluated:
    """The final message of a successful run. Raises `Failure`, and `KeyboardInterrupt` at SIGINT and SIGTERM.

    `weights` are the relative durations of the job's stages, for the progress bar.
    """
    console = make_console(stderr=True)
    local_weights = {stage: weight for stage, weight in weights.items() if stage not in _STAGES_OF_THE_SUPERVISOR}
    course = Course(weights=local_weights, started=time.monotonic())
    with (
        tempfile.TemporaryDirectory(prefix="replaceme-") as scratch,
        _sigterm_interrupts(),
        Runner(command, request, scratch=Path(scratch), confinement=confinement) as runner,
    ):
        try:
            with progress_display(console, clock=time.monotonic) as show:
                final = _follow(runner.messages(), course, show)
        except KeyboardInterrupt:
            runner.terminate(grace_seconds=GRACE_SECONDS)
            raise
        except ReplaceMeError as error:
            _print_log(runner)
            raise failure_of(error, as_json=as_json) from error
    if isinstance(final, Failed):
        if final.code == ReplaceMeError.code:
            _print_log(runner)
        raise Failure(final.message, exit_code_of(final.code), code=final.code, field=final.field, as_json=as_json)
    return final


def _print_log(runner: Runner) -> None:
    for line in runner.stderr_tail[-_LOG_LINES:]:
        print_note(line)


def _follow(messages: Iterator[Message], course: Course, show: ShowProgress) -> Finished | Evaluated | Failed:
    """Show the progress in `messages` up to the final one, and return that."""
    show("starting", 0.0, None)
    for message in messages:
        match message:
            case StageStarted(stage=stage):
                course.move(stage, 0.0)
                show(stage, course.overall, course.eta_seconds(time.monotonic()))
            case Advanced(stage=stage, fraction=fraction):
                course.move(stage, fraction)
                show(stage, course.overall, course.eta_seconds(time.monotonic()))
            case Finished() | Evaluated() | Failed():
                return message
    raise AssertionError("Runner.messages() ends with a final message or raises")


@contextmanager
def _sigterm_interrupts() -> Iterator[None]:
    """Handle SIGTERM like Ctrl-C, so that the runner ends and temporary files are removed."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
