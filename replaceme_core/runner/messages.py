"""What a runner tells its parent, one JSON object a line, and the `Progress` protocol that the pipeline speaks.

The pipeline calls `Progress`; the runner turns the calls into messages; the supervisor and the command line read them.
"""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal, Protocol

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter

from replaceme_core.spec import CompressionSpec

PLAN_FILE = "plan.json"
"""In the directory that workers share for a job: says under "plan" which plan is in force there."""
CACHE_BYTES = 20 * 2**30
"""What a cache of calibration statistics may take at most, unless told otherwise."""


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
    """Where the pipeline reports to."""

    def resolved(self, spec: CompressionSpec) -> None:
        """Every default is now filled in."""

    def stage(self, stage: Stage, *, resumed_from: Stage | None = None) -> None:
        """A stage begins; the one before it is over.

        `resumed_from` is the stage whose result an earlier attempt at the job has left; those up to it are skipped.
        """

    def advance(self, fraction: float) -> None:
        """The part of the present stage that is done, 0 to 1."""

    def metric(
        self, name: str, value: float, unit: str, *, block: int | None = None, candidate: str | None = None
    ) -> None:
        """A measured value of the present stage. `candidate` is a window such as "12-19"."""


class _Message(BaseModel):
    # a measured value may be NaN; both ends of the pipe read and write it as Python does
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
    """The fit tokens go in `count` shards under the id `plan`; results of those in `done` are there. Is answered."""

    type: Literal["shards_planned"] = "shards_planned"
    plan: str = Field(pattern=r"^[0-9a-f]{32}$")
    count: int = Field(ge=1)
    done: list[int]


class ShardWanted(_Message):
    """Another shard is asked for; the result of `finished` is there. Is answered."""

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
    """The last message of `--evaluate` that succeeded: perplexity, tokens, parameters, bytes, speed, dtype."""

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


class RunnerRequest(_Message):
    """What a runner is given on its standard input: one line of JSON. The pipe then stays open as a life line."""

    spec: CompressionSpec
    model_directory: AbsolutePath
    calibration_path: AbsolutePath | None
    """A file, or a directory holding a snapshot of a data set; `None` for a built-in text."""
    output_directory: AbsolutePath
    """Must not exist; the runner creates it last, complete."""
    job_id: str | None = None
    cache_directory: AbsolutePath | None = None
    """Where streams and sums of calibration are kept for later jobs on the same model and data; `None`: nowhere."""
    cache_bytes: int = Field(default=CACHE_BYTES, ge=0)
    needs_accelerator: bool = False
    """The job is for workers with a GPU: where there is none it fails, and is not done on the CPU."""
    checkpoint_directory: AbsolutePath | None = None
    """Of this job: where an attempt leaves what later ones can go on from; need not exist. `None`: nowhere."""
    shard_tokens: int | None = Field(default=None, ge=1)
    """Calibration tokens from which on a job that does not say goes in `shard_count` shards; `None`: never."""
    shard_count: int = Field(default=8, ge=1)
    shard_directory: AbsolutePath | None = None
    """Of this job: where workers leave what they have summed; need not exist. `None`: one does all, and leaves none."""


class ShardRequest(_Message):
    """What a runner is given with `--shards`: take shards of another worker's job, whose `spec` is resolved."""

    spec: CompressionSpec
    model_directory: AbsolutePath
    shard_directory: AbsolutePath
    plan: str
    job_id: str


class ShardAnswer(_Message):
    """What a runner that has planned or asked is told, one line on its standard input.

    `number` is the shard to compute next; `None`: none is free at present. `done` of `count` have their results.
    """

    number: int | None = None
    done: int
    count: int


class Exchange(Protocol):
    """Where a runner agrees with others on who computes what."""

    def plan(self, plan: str, *, count: int, done: list[int]) -> None:
        """From now on others may take shards."""

    def next(self, finished: int | None) -> ShardAnswer:
        """The result of `finished` is there; another shard is asked for."""


class EvaluateRequest(_Message):
    """What a runner is given with `--evaluate`: measure a model on a text. `None`: decided by the runner."""

    model_directory: AbsolutePath
    text_path: AbsolutePath
    samples: int = Field(default=16, ge=1, le=100_000)
    max_length: int | None = Field(default=None, ge=8, le=131_072)
    device: str | None = Field(default=None, pattern=r"^[a-z]+(:\d+)?$")
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    threads: int | None = Field(default=None, ge=1, le=1024)
