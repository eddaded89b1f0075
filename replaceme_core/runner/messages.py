"""The messages between a runner and its parent, one JSON object a line, and the protocol that the pipeline calls.

The pipeline calls `Progress`; the runner sends these calls as messages; the supervisor and the command line read them.
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from replaceme_core.request.spec import CompressionSpec


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

    def resolved(self, spec: CompressionSpec, *, expected: Mapping[Stage, float]) -> None:
        """Every default of the specification has been filled in; the stages are expected to take so many seconds."""

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
    name: str
    value: float
    unit: str
    block: int | None = None
    candidate: str | None = None


class Finished(Line):
    """The last message of a run that succeeded. `report` is the content of `replaceme.json`."""

    type: Literal["finished"] = "finished"
    removed_blocks: list[int]
    kept_blocks: list[int]
    report: dict[str, object]


class Failed(Line):
    """The last message of a run that failed: `code` is one of `replaceme_core.errors`."""

    type: Literal["failed"] = "failed"
    code: str
    message: str
    field: str | None = None


class Evaluated(Line):
    """The last message of `--evaluate` that succeeded: what each model is worth (`evaluation.evaluate`)."""

    type: Literal["evaluated"] = "evaluated"
    report: dict[str, object]


Message = Resolved | StageStarted | Advanced | Measured | Finished | Evaluated | Failed
type_of_message = Annotated[Message, Field(discriminator="type")]
FINAL_MESSAGES = (Finished, Evaluated, Failed)
MESSAGE: TypeAdapter[Message] = TypeAdapter(type_of_message)
