"""The messages between a runner and its parent, one JSON object a line, and the protocols that the pipeline calls.

The pipeline calls `Progress` and `Exchange`; the runner sends these calls as messages; the supervisor and the command
line read them.
"""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal, Protocol, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, model_validator
from pydantic_core import PydanticCustomError

from replaceme_core.calibration_spec import CalibrationSource
from replaceme_core.fields import TextSource
from replaceme_core.gate.suite import TaskNames
from replaceme_core.spec import CompressionSpec, Dtype

PLAN_FILE = "plan.json"
"""A file in the directory that workers share for a job; its field "plan" is the id of the present plan."""
CACHE_BYTES = 20 * 2**30
"""The default limit of the activation cache, in bytes."""


class Stage(StrEnum):
    """The stages of a job, in order. `resolve`, `download` and `publish` belong to the supervisor."""

    RESOLVE = "resolve"
    DOWNLOAD = "download"
    CALIBRATE = "calibrate"
    SELECT = "select"
    SOLVE = "solve"
    FOLD = "fold"
    SAVE = "save"
    EVALUATE = "evaluate"
    PUBLISH = "publish"


class Progress(Protocol):
    """Receives the progress of the pipeline."""

    def resolved(self, spec: CompressionSpec) -> None:
        """Every default of the specification has been filled in."""

    def stage(self, stage: Stage, *, resumed_from: Stage | None = None) -> None:
        """A stage begins, and the one before it has ended.

        `resumed_from` is the stage whose result an earlier attempt at the job saved; the stages up to it are skipped.
        """

    def advance(self, fraction: float) -> None:
        """The part of the present stage that is done, 0 to 1."""

    def metric(
        self, name: str, value: float, unit: str, *, block: int | None = None, candidate: str | None = None
    ) -> None:
        """A measured value of the present stage. `candidate` is a window such as "12-19"."""


class _Message(BaseModel):
    # a measured value may be NaN; both ends of the pipe read and write it as Python's json does
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants")


class Resolved(_Message):
    type: Literal["resolved"] = "resolved"
    spec: CompressionSpec


class StageStarted(_Message):
    type: Literal["stage"] = "stage"
    stage: Stage
    resumed_from: Stage | None = None


class Advanced(_Message):
    type: Literal["progress"] = "progress"
    stage: Stage
    fraction: float


class Measured(_Message):
    type: Literal["metric"] = "metric"
    stage: Stage
    name: str
    value: float
    unit: str
    block: int | None = None
    candidate: str | None = None


class ShardsPlanned(_Message):
    """The fit tokens were divided into `count` shards; the results of those in `done` exist. Is answered."""

    type: Literal["shards_planned"] = "shards_planned"
    plan: str = Field(pattern=r"^[0-9a-f]{32}$")
    count: int = Field(ge=1)
    done: list[int]


class ShardWanted(_Message):
    """Asks for another shard, after the result of `finished` has been written. Is answered."""

    type: Literal["shard_wanted"] = "shard_wanted"
    finished: int | None = None


class ShardsEnded(_Message):
    """The last message of `--shards`: no shard is left for this runner."""

    type: Literal["shards_ended"] = "shards_ended"


class Finished(_Message):
    """The last message of a run that succeeded. `report` is the content of `replaceme.json`."""

    type: Literal["finished"] = "finished"
    removed_blocks: list[int]
    kept_blocks: list[int]
    report: dict[str, object]


class Failed(_Message):
    """The last message of a run that failed: `code` is one of `replaceme_core.errors`."""

    type: Literal["failed"] = "failed"
    code: str
    message: str
    field: str | None = None


class Evaluated(_Message):
    """The last message of `--evaluate` that succeeded: what each model is worth (`evaluation.evaluate`)."""

    type: Literal["evaluated"] = "evaluated"
    report: dict[str, object]


Message = (
    Resolved
    | StageStarted
    | Advanced
    | Measured
    | ShardsPlanned
    | ShardWanted
    | ShardsEnded
    | Finished
    | Evaluated
    | Failed
)
type_of_message = Annotated[Message, Field(discriminator="type")]
FINAL_MESSAGES = (Finished, Evaluated, ShardsEnded, Failed)
MESSAGE: TypeAdapter[Message] = TypeAdapter(type_of_message)


def _absolute(path: str) -> str:
    return str(Path(path).absolute())


AbsolutePath = Annotated[str, AfterValidator(_absolute)]
"""A relative path is taken from the directory of the process that makes the request; a runner has another one."""


class ModelRequest(_Message):
    """A request to a runner: one line of JSON on standard input, a pipe that stays open while the parent lives."""

    model_directory: AbsolutePath

    @property
    def reads(self) -> tuple[str, ...]:
        """The files and directories that are read."""
        return (self.model_directory,)

    @property
    def writes(self) -> tuple[str, ...]:
        """The directories in which files are made; they need not exist."""
        return ()


class RunnerRequest(ModelRequest):
    """The request to compress a model."""

    spec: CompressionSpec
    calibration_paths: tuple[AbsolutePath | None, ...]
    """One for each source of `spec.calibration.mix`: a file, or a directory holding a snapshot of a data set; `None`
    for a built-in text and for what the model generates."""
    output_directory: AbsolutePath
    """Must not exist. The runner creates it when the result is complete."""
    job_id: str | None = None
    hub: str | None = None
    """The address of the Hub that model and data sets come from, for links; `None`: directories, which nobody else can
    see."""
    cache_directory: AbsolutePath | None = None
    """The activation cache, for later jobs on the same model and data; `None`: no cache."""
    cache_bytes: int = Field(default=CACHE_BYTES, ge=0)
    rates: dict[Stage, float] = Field(default_factory=dict)
    """By stage: how many times as long as the stated model says earlier jobs on this kind of worker took."""
    needs_accelerator: bool = False
    """The job is for workers with a GPU: without one it fails and does not run on the CPU."""
    checkpoint_directory: AbsolutePath | None = None
    """Where this job's attempts save checkpoints; need not exist. `None`: no checkpoints."""
    shard_tokens: int | None = Field(default=None, ge=1)
    """Calibration tokens from which on a job that names no number of shards gets `shard_count`; `None`: never."""
    shard_count: int = Field(default=8, ge=1)
    shard_directory: AbsolutePath | None = None
    """Where workers save the sums of this job's shards; need not exist. `None`: one runner computes all of them."""
    tasks_directory: AbsolutePath | None = None
    """With the YAML files and the data of tasks; `None`: none."""
    compare_with: AbsolutePath | None = None
    """A directory with the weights that should come out: the final report also has the `comparison` with these."""

    @property
    def reads(self) -> tuple[str, ...]:
        others = (*self.calibration_paths, self.compare_with, self.tasks_directory)
        return (self.model_directory, *(path for path in others if path is not None))

    @property
    def writes(self) -> tuple[str, ...]:
        beside = str(Path(self.output_directory).parent)
        places = (beside, self.cache_directory, self.checkpoint_directory, self.shard_directory)
        return tuple(place for place in places if place is not None)


class ShardRequest(ModelRequest):
    """The request with `--shards`: compute shards of another worker's job, whose `spec` is resolved."""

    spec: CompressionSpec
    shard_directory: AbsolutePath
    plan: str
    job_id: str

    @property
    def writes(self) -> tuple[str, ...]:
        return (self.shard_directory,)


class ShardAnswer(_Message):
    """The answer to `ShardsPlanned` and `ShardWanted`: one line on the runner's standard input.

    `number` is the shard to compute next; `None`: none is free at present. `done` of `count` shards have their results.
    """

    number: int | None = None
    done: int
    count: int


class Exchange(Protocol):
    """Divides the shards of a job among several runners."""

    def plan(self, plan: str, *, count: int, done: list[int]) -> None:
        """Announce the shards, so that other workers can take them. The results of those in `done` exist."""

    def next(self, finished: int | None) -> ShardAnswer:
        """Report the shard that was finished, if any, and ask for another one."""


class EvaluateRequest(ModelRequest):
    """The request with `--evaluate`: measure models on a text. The runner chooses values that are `None`.

    The text is a file, a directory with a snapshot of `data_set`, or a `builtin` one. `others` are further models.
    """

    others: tuple[AbsolutePath, ...] = ()
    text_path: AbsolutePath | None = None
    builtin: TextSource | None = None
    data_set: CalibrationSource | None = None
    samples: int = Field(default=16, ge=1, le=100_000)
    max_length: int | None = Field(default=None, ge=8, le=131_072)
    device: str | None = Field(default=None, pattern=r"^[a-z]+(:\d+)?$")
    dtype: Dtype | None = None
    threads: int | None = Field(default=None, ge=1, le=1024)
    tasks: TaskNames = ()
    tasks_directory: AbsolutePath | None = None
    """With the YAML files and the data of tasks; `None`: none."""
    task_limit: int | None = Field(default=None, ge=1)
    few_shot: int | None = Field(default=None, ge=0, le=100)
    cache_directory: AbsolutePath | None = None
    """With results of the same models in earlier runs; `None`: no cache."""
    cache_bytes: int = Field(default=CACHE_BYTES, ge=0)

    @model_validator(mode="after")
    def _one_text(self) -> Self:
        if (self.text_path is None) == (self.builtin is None):
            raise PydanticCustomError("one_text", "give either text_path or builtin", {"field": "text_path"})
        return self

    @property
    def directories(self) -> tuple[str, ...]:
        """Those of all models, in order."""
        return (self.model_directory, *self.others)

    @property
    def reads(self) -> tuple[str, ...]:
        others = (self.text_path, self.tasks_directory)
        return (*self.directories, *(path for path in others if path is not None))

    @property
    def writes(self) -> tuple[str, ...]:
        return () if self.cache_directory is None else (self.cache_directory,)
