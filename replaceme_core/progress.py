"""What a runner tells its parent, one JSON object a line, and the `Progress` protocol that the pipeline speaks.

The pipeline calls `Progress`; the runner turns the calls into messages; the supervisor and the command line read them.
"""

from enum import StrEnum
from typing import Annotated, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from replaceme_core.spec import CompressionSpec

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


Message = Resolved | StageStarted | Advanced | Measured | Finished | Evaluated | Failed
type_of_message = Annotated[Message, Field(discriminator="type")]
LAST_WORDS = (Finished, Evaluated, Failed)
MESSAGE: TypeAdapter[Message] = TypeAdapter(type_of_message)


class RunnerRequest(_Message):
    """What a runner is given on its standard input: one line of JSON. The pipe then stays open as a life line."""

    spec: CompressionSpec
    model_directory: str
    calibration_path: str | None
    """A file, or a directory holding a snapshot of a data set; `None` for a built-in text."""
    output_directory: str
    """Must not exist; the runner creates it last, complete."""
    job_id: str | None = None
    cache_directory: str | None = None
    """Where streams and sums of calibration are kept for later jobs on the same model and data; `None`: nowhere."""
    cache_bytes: int = Field(default=CACHE_BYTES, ge=0)
    needs_accelerator: bool = False
    """The job is for workers with a GPU: where there is none it fails, and is not done on the CPU."""
    checkpoint_directory: str | None = None
    """Of this job: where an attempt leaves what later ones can go on from; need not exist. `None`: nowhere."""


class EvaluateRequest(_Message):
    """What a runner is given with `--evaluate`: measure a model on a text. `None`: decided by the runner."""

    model_directory: str
    text_path: str
    samples: int = Field(default=16, ge=1, le=100_000)
    max_length: int | None = Field(default=None, ge=8, le=131_072)
    device: str | None = Field(default=None, pattern=r"^[a-z]+(:\d+)?$")
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    threads: int | None = Field(default=None, ge=1, le=1024)
