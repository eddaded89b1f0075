"""Run the runner for a call on this machine: its progress is shown, its final message is the result."""

import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Protocol

from replaceme_core.errors import InvalidInput, ReplaceMeError
from replaceme_core.plan.resources import planned_host_bytes
from replaceme_core.runner.eta import Course
from replaceme_core.runner.messages import (
    Advanced,
    Evaluated,
    Failed,
    Finished,
    Message,
    ModelRequest,
    Resolved,
    Stage,
    StageStarted,
)
from replaceme_core.runner.process import Confinement, Runner

GRACE_SECONDS = 5.0
_LOG_LINES = 20
_OF_A_SERVICE = (Stage.RESOLVE, Stage.PUBLISH)


class ShowProgress(Protocol):
    """Show the progress. `overall` runs from 0 to 1; `eta_seconds` is `None` while it is unknown."""

    def __call__(self, stage: str, overall: float, eta_seconds: float | None) -> None: ...


def show_nothing(stage: str, overall: float, eta_seconds: float | None) -> None:
    """A `ShowProgress` for those who do not look."""


class ShownCourse:
    """The course of a call through its stages, shown as it goes on.

    `weights` are the relative durations of the job's stages; without `downloads` nothing is downloaded.
    """

    def __init__(self, weights: Mapping[Stage, float], show: ShowProgress, *, downloads: bool) -> None:
        left_out = _OF_A_SERVICE if downloads else (*_OF_A_SERVICE, Stage.DOWNLOAD)
        here = {stage: weight for stage, weight in weights.items() if stage not in left_out}
        self._course = Course(weights=here, started=time.monotonic())
        self._show = show

    def start(self) -> None:
        """The runner starts, which takes some seconds."""
        self._show("starting", self._course.overall, None)

    def move(self, stage: Stage, fraction: float) -> None:
        now = time.monotonic()
        self._course.move(stage, fraction, now)
        self._show(stage, self._course.overall, self._course.eta_seconds(now))

    def expect(self, seconds: Mapping[Stage, float]) -> None:
        """The runner has planned what the stages take."""
        self._course.expect(seconds, time.monotonic())


def run(
    command: Sequence[str], request: ModelRequest, *, confinement: Confinement, course: ShownCourse
) -> Finished | Evaluated:
    """The final message of a successful run.

    Raises the error of `replaceme_core.errors` with which the runner failed; where that is not on purpose, the last
    lines of its log are notes of the exception. At `KeyboardInterrupt` the runner ends with all that it started.
    """
    with (
        tempfile.TemporaryDirectory(prefix="replaceme-") as scratch,
        Runner(
            command,
            request,
            scratch=Path(scratch),
            confinement=confinement.for_plan(partial(planned_host_bytes, request)),
        ) as runner,
    ):
        try:
            final = _follow(runner.messages(), course)
        except KeyboardInterrupt:
            runner.terminate(grace_seconds=GRACE_SECONDS)
            raise
        except ReplaceMeError as error:
            raise _with_log(error, runner) from error
    if isinstance(final, Failed):
        failure = error_of(final)
        raise _with_log(failure, runner) if final.code == ReplaceMeError.code else failure
    return final


def error_of(failed: Failed) -> ReplaceMeError:
    """The error with this code; an unknown one is an internal error."""
    kind = _kinds().get(failed.code, ReplaceMeError)
    if issubclass(kind, InvalidInput):
        return kind(failed.message, field=failed.field)
    return kind(failed.message)


def _kinds() -> dict[str, type[ReplaceMeError]]:
    """Codes to classes; of several with one code the class nearest to the root."""
    found: dict[str, type[ReplaceMeError]] = {}
    waiting: list[type[ReplaceMeError]] = [ReplaceMeError]
    for kind in waiting:
        found.setdefault(kind.code, kind)
        waiting += kind.__subclasses__()
    return found


def _with_log(error: ReplaceMeError, runner: Runner) -> ReplaceMeError:
    for line in runner.end_of_log()[-_LOG_LINES:]:
        error.add_note(line)
    return error


def _follow(messages: Iterator[Message], course: ShownCourse) -> Finished | Evaluated | Failed:
    """Show the progress in `messages` up to the final one, and return that."""
    course.start()
    for message in messages:
        match message:
            case Resolved(expected=expected) if expected:
                course.expect(expected)
            case StageStarted(stage=stage):
                course.move(stage, 0.0)
            case Advanced(stage=stage, fraction=fraction):
                course.move(stage, fraction)
            case Finished() | Evaluated() | Failed():
                return message
    raise AssertionError("Runner.messages() ends with a final message or raises")
