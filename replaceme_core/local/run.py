"""A run of the runner on this machine: what it needs, where its result goes, its progress and its final message."""

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache, partial
from importlib.util import find_spec
from itertools import chain
from pathlib import Path

from replaceme_core.errors import InvalidInput, ReplaceMeError
from replaceme_core.hub.model_config import read_outline
from replaceme_core.hub.model_files import CONFIG, used_files
from replaceme_core.hub.port import Hub
from replaceme_core.plan.eta import USUAL_BLOCKS, Course, weights_of
from replaceme_core.plan.resources import planned_host_bytes
from replaceme_core.request.spec import CompressionSpec
from replaceme_core.runner.inputs import Pinned, fetch, held
from replaceme_core.runner.messages import (
    Advanced,
    Failed,
    Finished,
    Message,
    ModelRequest,
    Resolved,
    RunnerRequest,
    Stage,
    StageStarted,
)
from replaceme_core.runner.process import RUNNER_COMMAND, Runner
from replaceme_core.settings import Settings, read_settings

GRACE_SECONDS = 5.0
_LOG_LINES = 20
_OF_A_SERVICE = (Stage.RESOLVE, Stage.PUBLISH)
_OF_A_MODEL = ("torch", "transformers", "safetensors", "psutil", "PIL")
LIBRARIES = {
    "api": ("fastapi", "fastapi_offline", "limits", "prometheus_client", "uvicorn"),
    "heal": ("accelerate",),
    "local": _OF_A_MODEL,
    "worker": _OF_A_MODEL,
}
"""What each extra installs, as modules, without what can be missing."""


def check_installed(command: str, *extras: str) -> None:
    """Raises `InvalidInput` if libraries of these extras are missing; the message names the one installation needed."""
    missing = [name for name in dict.fromkeys(chain(*map(LIBRARIES.__getitem__, extras))) if find_spec(name) is None]
    if missing:
        raise InvalidInput(
            f"replaceme {command} needs libraries that are not installed ({', '.join(missing)}); "
            f"install them with: pip install 'replaceme[{','.join(extras)}]'"
        )


class Machine:
    """What a call on this machine runs with: the runner and its confinement are those of a worker.

    Raises `InvalidInput` for a setting that is wrong, libraries that are missing, and a sandbox that fails. Of a runner
    of the operator's own, only what it `trains` with is checked.
    """

    def __init__(self, settings: Settings | None, *, command: str, trains: bool = False) -> None:
        self.settings = read_settings() if settings is None else settings
        if trains or self.settings.runner_command is None:
            check_installed(command, "local", *(("heal",) if trains else ()))
        self._confinement = self.settings.confinement()
        self.hub: Callable[[], Hub] = cache(self.settings.open_hub)
        """Opened when it is first needed."""

    @contextmanager
    def fetched(
        self, files: Sequence[Pinned], course: "ShownCourse", *, check: Callable[[Path], object] = read_outline
    ) -> Iterator[list[Path | None]]:
        """The paths of the model, once it passes the `check`, and of the others.

        They are downloaded where need be, and kept until the run has ended. Raises `InvalidInput` or
        `RepositoryNotFound` at the end of the `with` block if they were changed in it: the result is of two versions.
        """
        given = [one.path for one in files if one.path is not None]
        with held(files, self.hub):
            found = fetch(files, self.hub, advance=course.download, check=check)
            before = [_times(path) for path in given]
            yield found
            fetch(files, self.hub, advance=lambda fraction: None, check=lambda path: None)
        for path, times in zip(given, before, strict=True):
            if _times(path) != times:
                raise InvalidInput(f"{path} was changed during the run; start again", field="model", value=str(path))

    def make(
        self,
        spec: CompressionSpec,
        files: Sequence[Pinned],
        *,
        out: Path | None,
        show: "ShowProgress",
        blocks: int = USUAL_BLOCKS,
        check: Callable[[Path], object] = read_outline,
        check_texts: Callable[[Sequence[Path | None]], None] = lambda paths: None,
        **more: object,
    ) -> Finished:
        """Carry out `spec` on `files`, a model and its texts, and move the result to `out`; `None`: it is not kept.

        The model has that many `blocks`, which decides how long a search takes. `more` are other fields of the request
        to the runner. Raises as `run` does.
        """
        course = ShownCourse(weights_of(spec, blocks=blocks), show, files=files)
        with staged(out) as result, self.fetched(files, course, check=check) as (directory, *paths):
            check_texts(paths)
            request = {
                "spec": spec,
                "model_directory": directory,
                "calibration_paths": tuple(paths),
                "output_directory": result,
                **more,
            }
            return self.run(RunnerRequest.model_validate(request), course=course)

    def run(self, request: ModelRequest, *, course: "ShownCourse") -> Finished:
        """The final message of a successful run.

        Raises the error of `replaceme_core.errors` with which the runner failed; where that is not on purpose, the last
        lines of its log are notes of the exception. At `KeyboardInterrupt` the runner ends with all that it started.
        """
        with (
            tempfile.TemporaryDirectory(prefix="replaceme-") as scratch,
            Runner(
                self.settings.runner_command or RUNNER_COMMAND,
                request,
                scratch=Path(scratch),
                confinement=self._confinement.for_plan(partial(planned_host_bytes, request)),
            ) as runner,
        ):
            try:
                final = course.follow(runner.messages())
            except KeyboardInterrupt:
                runner.terminate(grace_seconds=GRACE_SECONDS)
                raise
            except ReplaceMeError as error:
                raise _with_log(error, runner) from error
        if isinstance(final, Failed):
            failure = error_of(final)
            raise _with_log(failure, runner) if final.code == ReplaceMeError.code else failure
        return final


def _times(path: Path) -> Mapping[str, tuple[int, int]]:
    """Size and time of a file, or of the files of the model in a directory."""
    if path.is_file():
        files = [path]
    else:
        files = [*used_files(path), *path.glob("*.safetensors")] if (path / CONFIG).is_file() else []
    return {file.name: ((facts := file.stat()).st_size, facts.st_mtime_ns) for file in files}


def check_absent(out: Path) -> None:
    """Raises `InvalidInput` if `out` exists."""
    if out.exists() or out.is_symlink():
        raise InvalidInput(f"{out} already exists; choose a new directory with --out", field="out", value=str(out))


@contextmanager
def staged(out: Path | None) -> Iterator[Path]:
    """Where a result is made that is moved to `out` in one step once it is there; `None`: it is not kept.

    Raises `InvalidInput` if `out` exists or cannot be written.
    """
    prefix, parent = "replaceme-", None
    try:
        if out is not None:
            check_absent(out)
            prefix, parent = f".{out.name}.", out.absolute().parent  # beside it, so on the same device
            parent.mkdir(parents=True, exist_ok=True)
        staging = tempfile.TemporaryDirectory(prefix=prefix, dir=parent, ignore_cleanup_errors=True)
    except OSError as error:
        raise InvalidInput(f"{out} cannot be written: {error.strerror}", field="out", value=str(out)) from error
    with staging as place:
        result = Path(place) / "result"
        yield result
        try:
            if out is not None:
                result.rename(out)
        except OSError as error:
            message = f"the result cannot be moved to {out}: {error.strerror}"
            raise InvalidInput(message, field="out", value=str(out)) from error


ShowProgress = Callable[[str, float, float | None], None]
"""Called with the stage, the part of the whole that is done, 0 to 1, and the seconds left; `None`: not known."""


def show_nothing(stage: str, overall: float, eta_seconds: float | None) -> None:
    """A `ShowProgress` for those who do not look."""


class ShownCourse:
    """The course of a call through its stages, shown as it goes on.

    `weights` are the relative durations of the job's stages, `files` what is downloaded before the run, if anything.
    """

    def __init__(self, weights: Mapping[Stage, float], show: ShowProgress, *, files: Sequence[Pinned] = ()) -> None:
        self._downloads = any(one.snapshot is not None for one in files)
        left_out = _OF_A_SERVICE if self._downloads else (*_OF_A_SERVICE, Stage.DOWNLOAD)
        here = {stage: weight for stage, weight in weights.items() if stage not in left_out}
        self._course = Course(weights=here, started=time.monotonic())
        self._show = show

    def download(self, fraction: float) -> None:
        if self._downloads:
            self.move(Stage.DOWNLOAD, fraction)

    def move(self, stage: Stage, fraction: float) -> None:
        now = time.monotonic()
        self._course.move(stage, fraction, now)
        self._show(stage, self._course.overall, self._course.eta_seconds(now))

    def follow(self, messages: Iterator[Message]) -> Finished | Failed:
        """Show the progress in the messages of a runner, which takes some seconds to start; returns the final one."""
        self._show("starting", self._course.overall, None)
        for message in messages:
            match message:
                case Resolved(expected=expected) if expected:
                    self._course.expect(expected, time.monotonic())
                case StageStarted(stage=stage):
                    self.move(stage, 0.0)
                case Advanced(stage=stage, fraction=fraction):
                    self.move(stage, fraction)
                case Finished() | Failed():
                    return message
        raise AssertionError("Runner.messages() ends with a final message or raises")


def error_of(failed: Failed) -> ReplaceMeError:
    """The error with this code, of several classes the one nearest to the root; an unknown one is an internal error."""
    kinds: list[type[ReplaceMeError]] = [ReplaceMeError]
    for kind in kinds:
        kinds += kind.__subclasses__()
    found = next((kind for kind in kinds if kind.code == failed.code), ReplaceMeError)
    if issubclass(found, InvalidInput):
        return found(failed.message, field=failed.field)
    return found(failed.message)


def _with_log(error: ReplaceMeError, runner: Runner) -> ReplaceMeError:
    for line in runner.end_of_log()[-_LOG_LINES:]:
        error.add_note(line)
    return error
