"""What goes through the pipes between a runner and its parent: requests, messages, and errors as a message.

A request is one line of JSON on the runner's standard input, a pipe that stays open while the parent lives. Messages
are lines of its standard output. The pipeline reports to `Progress`, which sends messages; the supervisor and the
command line read them.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, model_validator

from replaceme_core.errors import LONGEST_MESSAGE, InvalidInput, OutOfMemory, OutOfSpace, ReplaceMeError
from replaceme_core.library_errors import is_out_of_memory, is_out_of_space
from replaceme_core.report.reading import Report
from replaceme_core.request.calibration import CalibrationSource
from replaceme_core.request.fields import TextSource, wrong
from replaceme_core.request.method import Method
from replaceme_core.request.spec import CompressionSpec, Dtype
from replaceme_core.request.tasks import TaskNames
from replaceme_core.wording import shorten


class Stage(StrEnum):
    """The stages of a job, in order. `resolve`, `download` and `publish` belong to the supervisor."""

    RESOLVE = "resolve"
    DOWNLOAD = "download"
    CALIBRATE = "calibrate"
    SELECT = "select"
    SOLVE = "solve"
    FOLD = "fold"
    HEAL = "heal"
    SAVE = "save"
    EVALUATE = "evaluate"
    PUBLISH = "publish"


class Line(BaseModel):
    """What goes through the pipe, in one direction or the other."""

    # a measured value may be NaN; both ends of the pipe read and write it as Python's json does
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants")


class Resolved(Line):
    """`expected` has the seconds that stages will take, where they are known."""

    type: Literal["resolved"] = "resolved"
    spec: CompressionSpec
    expected: dict[Stage, float] = Field(default_factory=dict)


class StageStarted(Line):
    type: Literal["stage"] = "stage"
    stage: Stage
    resumed_from: Stage | None = None


class Advanced(Line):
    type: Literal["progress"] = "progress"
    stage: Stage
    fraction: float


class Measured(Line):
    type: Literal["metric"] = "metric"
    stage: Stage
    name: str = Field(max_length=100)
    value: float
    unit: str = Field(max_length=100)
    block: int | None = Field(default=None, ge=0, lt=10_000)
    candidate: str | None = Field(default=None, max_length=500)


class Finished(Line):
    """The last message of a run that succeeded.

    `report` is the content of `replaceme.json`; for an `EvaluateRequest` what each model is worth.
    """

    model_config = ConfigDict(extra="ignore")  # a result that the release before has kept repeats its blocks
    type: Literal["finished"] = "finished"
    report: dict[str, object]

    @property
    def removed_blocks(self) -> list[int]:
        return Report(self.report).blocks("removed_blocks")

    @property
    def kept_blocks(self) -> list[int]:
        return Report(self.report).blocks("kept_blocks")


class Failed(Line):
    """The last message of a run that failed: `code` is one of `replaceme_core.errors`."""

    type: Literal["failed"] = "failed"
    code: str
    message: str
    field: str | None = None


Message = Resolved | StageStarted | Advanced | Measured | Finished | Failed
FINAL_MESSAGES = (Finished, Failed)
MESSAGE: TypeAdapter[Message] = TypeAdapter(Annotated[Message, Field(discriminator="type")])


class Progress:
    """Sends what the pipeline reports as messages. Fractions and metrics belong to the stage that began last."""

    def __init__(self, send: Callable[[Message], None]) -> None:
        self.send = send
        self._stage = Stage.CALIBRATE

    def resolved(self, spec: CompressionSpec, *, expected: Mapping[Stage, float]) -> None:
        """Every default of the specification has been filled in; `expected` are the seconds that stages should take."""
        self.send(Resolved(spec=spec, expected=dict(expected)))

    def stage(self, stage: Stage, *, resumed_from: Stage | None = None) -> None:
        """A stage begins, and the one before it has ended.

        `resumed_from` is the stage whose result an earlier attempt at the job saved; the stages up to it are skipped.
        """
        self._stage = stage
        self.send(StageStarted(stage=stage, resumed_from=resumed_from))

    def advance(self, fraction: float) -> None:
        """The part of the present stage that is done, 0 to 1."""
        self.send(Advanced(stage=self._stage, fraction=fraction))

    def metric(
        self, name: str, value: float, unit: str, *, block: int | None = None, candidate: str | None = None
    ) -> None:
        """A measured value of the present stage. `candidate` is a window such as "12-19"."""
        self.send(Measured(stage=self._stage, name=name, value=value, unit=unit, block=block, candidate=candidate))

    def part(self, start: float, end: float, *, on_metric: Callable[[Measured], None] = lambda _: None) -> "Progress":
        """For a step that is the part from `start` to `end` of the present stage, with no stages of its own.

        Its metrics go to `on_metric`: those of several steps would have the same names.
        """
        reached = 0.0

        def send(message: Message) -> None:
            nonlocal reached
            match message:
                case Advanced(fraction=fraction):
                    reached = max(reached, fraction)  # a step of several parts may begin again at 0
                    self.advance(start + (end - start) * reached)
                case Measured():
                    on_metric(message.model_copy(update={"stage": self._stage}))

        return Progress(send)


LONGEST_LINE = 2000
"""Characters of a line of a runner's log; a longer one is several."""
CACHE_BYTES = 20 * 2**30
"""The default limit of the activation cache, in bytes."""


def _absolute(path: object) -> object:
    return str(Path(path).absolute()) if isinstance(path, str | Path) else path


AbsolutePath = Annotated[str, BeforeValidator(_absolute)]
"""A relative path is taken from the directory of the process that makes the request; a runner has another one."""


class ModelRequest(Line):
    """A request to a runner: one line of JSON on standard input, a pipe that stays open while the parent lives."""

    model_directory: AbsolutePath
    tasks_directory: AbsolutePath | None = None
    """With the YAML files and the data of tasks; `None`: none."""
    cache_directory: AbsolutePath | None = None
    """What was computed from models and texts, for later requests that are about the same; `None`: no cache."""
    cache_bytes: int = Field(default=CACHE_BYTES, ge=0)

    @property
    def reads(self) -> tuple[str | None, ...]:
        """The files and directories that are read; `None` for one that is not given, here and below."""
        return (self.model_directory, self.tasks_directory)

    @property
    def writes(self) -> tuple[str | None, ...]:
        """The directories in which files are made; they need not exist."""
        return (self.cache_directory,)


class PastJob(Line):
    """A job that has succeeded. `stages` are pairs of seconds: those that a model expected, and those that it took.

    Of two jobs with the same `inputs` the later one may find activations, text and measurements of the earlier one.
    """

    method: Method
    inputs: str
    stages: dict[Stage, tuple[float, float]]


class RunnerRequest(ModelRequest):
    """The request to compress a model."""

    spec: CompressionSpec
    calibration_paths: tuple[AbsolutePath | None, ...]
    """One for each of `spec.texts`: a file, or a directory holding a snapshot of a data set; `None`
    for a built-in text and for what the model generates."""
    output_directory: AbsolutePath
    """Must not exist. The runner creates it when the result is complete."""
    job_id: str | None = None
    hub: str | None = None
    """The address of the Hub that model and data sets come from, for links; `None`: directories, which nobody else can
    see."""
    history: tuple[PastJob, ...] = ()
    """Earlier jobs on this kind of worker, the newest first, from which the time of this one is expected."""
    needs_accelerator: bool = False
    """The job is for workers with a GPU: without one it fails and does not run on the CPU."""
    checkpoint_directory: AbsolutePath | None = None
    """Where this job's attempts save checkpoints; need not exist. `None`: no checkpoints."""
    pruned_directory: AbsolutePath | None = None
    """An earlier result, without the blocks that `spec.drop` names, which is healed; `None`: blocks are removed."""
    pruned_by: Method | None = None
    """The method that made it, where its request left that open."""
    compare_with: AbsolutePath | None = None
    """A directory with the weights that should come out: the final report also has the `comparison` with these."""

    @property
    def reads(self) -> tuple[str | None, ...]:
        return (*super().reads, *self.calibration_paths, self.compare_with, self.pruned_directory)

    @property
    def writes(self) -> tuple[str | None, ...]:
        return (*super().writes, str(Path(self.output_directory).parent), self.checkpoint_directory)


MOST_PROMPTS = 64


class EvaluateRequest(ModelRequest):
    """The request to measure models on a text. The runner chooses values that are `None`.

    The text is a file, a directory with a snapshot, or a `builtin` one, read with the options of `source`. `others` are
    further models.
    """

    others: tuple[AbsolutePath, ...] = ()
    prompts: tuple[str, ...] = Field(default=(), max_length=MOST_PROMPTS)
    """What the models are asked instead; then nothing is measured, and there is no text."""
    new_tokens: int = Field(default=128, ge=1, le=4096)
    """Of an answer, at most."""
    text_path: AbsolutePath | None = None
    builtin: TextSource | None = None
    source: CalibrationSource | None = None
    samples: int = Field(default=16, ge=1, le=100_000)
    max_length: int | None = Field(default=None, ge=8, le=131_072)
    device: str | None = Field(default=None, pattern=r"^[a-z]+(:\d+)?$")
    dtype: Dtype | None = None
    threads: int | None = Field(default=None, ge=1, le=1024)
    tasks: TaskNames = ()
    task_limit: int | None = Field(default=None, ge=1)
    few_shot: int | None = Field(default=None, ge=0, le=100)

    @model_validator(mode="after")
    def _one_text(self) -> Self:
        if not self.prompts and (self.text_path is None) == (self.builtin is None):
            raise wrong("text_path", "give either text_path or builtin")
        return self

    @property
    def directories(self) -> tuple[str, ...]:
        """Those of all models, in order."""
        return (self.model_directory, *self.others)

    @property
    def reads(self) -> tuple[str | None, ...]:
        return (*super().reads, *self.others, self.text_path)


REQUEST: TypeAdapter[RunnerRequest | EvaluateRequest] = TypeAdapter(RunnerRequest | EvaluateRequest)


_PATH = re.compile(r"(?<![\w:/.])/(?:[^/\s'\"]+/)+[^/\s'\",;:)\]]*")
_ALLOCATION = re.compile(r"allocate ([\d.,]+ ?(?:bytes|[KMGTP]?i?B))")


def describe(error: BaseException) -> Failed:
    """The failure to report. Where an error wraps others, the outermost that has a code of its own counts."""
    for each, is_cause in _chain(error):
        if isinstance(each, ReplaceMeError) and is_cause:
            field = each.field if isinstance(each, InvalidInput) else None
            return Failed(code=each.code, message=shorten(without_paths(each.message), LONGEST_MESSAGE), field=field)
        if is_out_of_memory(each):
            return Failed(code=OutOfMemory.code, message=f"out of memory{_amount(each)}")
        if is_out_of_space(each):
            return Failed(code=OutOfSpace.code, message="no space left on the disk where this ran")
    kind = type(error).__name__
    return Failed(code=ReplaceMeError.code, message=f"a mistake of the service ({kind}); the worker's log says more")


def is_mistake(failed: Failed) -> bool:
    """Whether the service itself is at fault, so that a traceback helps. A full disk or memory explains itself."""
    return failed.code == ReplaceMeError.code


def without_paths(text: str) -> str:
    """`text` with the name of the file in place of each absolute path: a client may not learn where the worker has it.

    >>> without_paths("/srv/cache/models/config.json is not JSON; see https://example.org/a/b and org/name")
    'config.json is not JSON; see https://example.org/a/b and org/name'
    """
    return _PATH.sub(lambda found: found[0].rstrip("/").rpartition("/")[2], text)


def _chain(error: BaseException) -> Iterator[tuple[BaseException, bool]]:
    """The error and those behind it. True for the error itself and its causes (`raise ... from`), else false.

    An error of ours that was only being handled does not explain the bug that came after it. Memory or disk space that
    ran out does explain what follows.
    """
    seen: set[int] = set()
    each: BaseException | None = error
    is_cause = True
    while each is not None and id(each) not in seen:
        seen.add(id(each))
        yield each, is_cause
        is_cause = is_cause and each.__cause__ is not None
        each = each.__cause__ or (None if each.__suppress_context__ else each.__context__)


def _amount(error: BaseException) -> str:
    """How much could not be allocated, where the error says so."""
    found = _ALLOCATION.search(str(error))
    return f": {found[1]} could not be allocated" if found else ""
