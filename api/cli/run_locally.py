"""Run a runner for the command line: progress on standard error, its last word as the result."""

import signal
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from pydantic import BaseModel

from api.cli.console import Failure, ShowProgress, make_console, progress_shown, say
from api.cli.exits import exit_code_of
from replaceme_core.errors import ReplaceMeError
from replaceme_core.runner.eta import Course
from replaceme_core.runner.messages import Advanced, Evaluated, Failed, Finished, Message, Stage, StageStarted
from replaceme_core.runner.process import Runner

GRACE_SECONDS = 5.0
_TAIL_LINES = 20
_SUPERVISED = (Stage.RESOLVE, Stage.DOWNLOAD, Stage.PUBLISH)


def run(
    command: Sequence[str], request: BaseModel, *, weights: Mapping[Stage, float], as_json: bool
) -> Finished | Evaluated:
    """The last word of a run that succeeded. Raises `Failure`, and `KeyboardInterrupt` at Ctrl-C and SIGTERM.

    `weights` are those of the job's stages, for the progress bar.
    """
    console = make_console(stderr=True)
    here = {stage: weight for stage, weight in weights.items() if stage not in _SUPERVISED}
    course = Course(weights=here, started=time.monotonic())
    with (
        tempfile.TemporaryDirectory(prefix="replaceme-") as scratch,
        _sigterm_interrupts(),
        Runner(command, request, scratch=Path(scratch)) as runner,
    ):
        try:
            with progress_shown(console, clock=time.monotonic) as show:
                last = _follow(runner.messages(), course, show)
        except KeyboardInterrupt:
            runner.terminate(grace_seconds=GRACE_SECONDS)
            raise
        except ReplaceMeError as error:
            _show_log(runner)
            raise Failure(error.message, exit_code_of(error.code), code=error.code, as_json=as_json) from error
    if isinstance(last, Failed):
        if last.code == ReplaceMeError.code:
            _show_log(runner)
        raise Failure(last.message, exit_code_of(last.code), code=last.code, field=last.field, as_json=as_json)
    return last


def _show_log(runner: Runner) -> None:
    for line in runner.stderr_tail[-_TAIL_LINES:]:
        say(line)


def _follow(messages: Iterator[Message], course: Course, show: ShowProgress) -> Finished | Evaluated | Failed:
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
    raise AssertionError("Runner.messages() ends with a last word or raises")


@contextmanager
def _sigterm_interrupts() -> Iterator[None]:
    """SIGTERM ends the command as Ctrl-C does: the runner first, then what it left."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
