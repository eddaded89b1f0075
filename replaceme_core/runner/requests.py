"""The requests to a runner: one line of JSON on its standard input, a pipe that stays open while the parent lives."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Self

from pydantic import AfterValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from replaceme_core.request.calibration import CalibrationSource
from replaceme_core.request.fields import TextSource
from replaceme_core.request.method import Method
from replaceme_core.request.spec import CompressionSpec, Dtype
from replaceme_core.request.tasks import TaskNames
from replaceme_core.runner.messages import Line, Stage

CACHE_BYTES = 20 * 2**30
"""The default limit of the activation cache, in bytes."""


def _absolute(path: str) -> str:
    return str(Path(path).absolute())


AbsolutePath = Annotated[str, AfterValidator(_absolute)]
"""A relative path is taken from the directory of the process that makes the request; a runner has another one."""


class ModelRequest(Line):
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
    history: tuple[PastJob, ...] = ()
    """Earlier jobs on this kind of worker, the newest first, from which the time of this one is expected."""
    needs_accelerator: bool = False
    """The job is for workers with a GPU: without one it fails and does not run on the CPU."""
    checkpoint_directory: AbsolutePath | None = None
    """Where this job's attempts save checkpoints; need not exist. `None`: no checkpoints."""
    tasks_directory: AbsolutePath | None = None
    """With the YAML files and the data of tasks; `None`: none."""
    compare_with: AbsolutePath | None = None
    """A directory with the weights that should come out: the final report also has the `comparison` with these."""

    def text_paths(self, mix: Sequence[CalibrationSource]) -> tuple[Path | None, ...]:
        """One for each source of the resolved `mix`, to which the worker may have added one without a file."""
        given = [None if path is None else Path(path) for path in self.calibration_paths]
        return (*given, *[None] * (len(mix) - len(given)))

    @property
    def reads(self) -> tuple[str, ...]:
        others = (*self.calibration_paths, self.compare_with, self.tasks_directory)
        return (self.model_directory, *(path for path in others if path is not None))

    @property
    def writes(self) -> tuple[str, ...]:
        beside = str(Path(self.output_directory).parent)
        places = (beside, self.cache_directory, self.checkpoint_directory)
        return tuple(place for place in places if place is not None)


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
