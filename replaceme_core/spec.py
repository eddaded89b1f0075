"""What a job asks for: the request as a client writes it, and the resolved specification that is carried out.

`CompressionRequest` accepts the short forms (`"model": "org/name"`); `CompressionSpec` is the long form with every
default filled in. Fields that depend on the machine (`compute`, the number of calibration tokens) stay `None` until
the runner resolves them on the device that does the work, and are then part of the stored specification, so that the
same resolved specification gives the same tensors.
"""

import hashlib
import json
from enum import StrEnum
from typing import Annotated, Literal, Self

from pydantic import BaseModel, BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from replaceme_core.fields import (
    LONGEST_SECONDS,
    BlockIndices,
    Frozen,
    LabelText,
    Name,
    Ratio,
    RepositoryId,
    Seconds,
    TextSource,
    one_of,
)
from replaceme_core.map_structure import MapStructure
from replaceme_core.method_traits import TRAITS, Method, methods_with

DEFAULT_PRIORITY = 5
HIGHEST_PRIORITY = 9
MOST_SHARDS = 256
Dtype = Literal["float32", "bfloat16", "float16"]
CosineLoss = Literal["exact", "light"]


class Selection(StrEnum):
    """How `refit` chooses the blocks that go."""

    ONE_BY_ONE = "one_by_one"
    """In each step the block without which the held-out loss is least."""
    WINDOW = "window"
    """One run of neighbours, as `least_squares` chooses it."""


class Loading(StrEnum):
    """How a model is brought into memory."""

    AUTO = "auto"
    """Whole where that fits into what is free."""
    WHOLE = "whole"
    BLOCKWISE = "blockwise"
    """One block at a time, from the files."""


class Quantization(StrEnum):
    """In how many bits the blocks are held while activations are captured."""

    FOUR_BITS = "4bit"
    EIGHT_BITS = "8bit"


class ModelRef(Frozen):
    """A model. `revision` is a branch, tag or sha in a request and always a sha once resolved.

    `repo_id` is any name here: `replaceme compress` puts a directory's name there. Over HTTP it is a repository.
    """

    repo_id: str = Field(min_length=1, max_length=255)
    revision: Name | None = None


class ModelRequest(ModelRef):
    """A model on the Hub."""

    repo_id: RepositoryId


class CalibrationSpec(Frozen):
    """The text that activations are captured on.

    `samples` sequences of `max_length` tokens, packed without padding; the sequences held out for choosing the cut
    are part of that count. `None` means: decided on the worker (64 x 512 on a CPU, 1,024 x 1,024 on a GPU).
    """

    dataset: TextSource
    revision: Name | None = None
    config: Name | None = None
    split: Name = "train"
    column: Name | None = None
    samples: int | None = Field(default=None, ge=2, le=1_000_000)
    max_length: int | None = Field(default=None, ge=8, le=131_072)
    seed: int = Field(default=0, ge=0, lt=2**31)
    template: Literal["auto", "chat", "plain"] = "auto"
    self_generated: float = Field(default=0.0, ge=0, le=1)
    """Share of the samples that the model writes itself, in place of text of `dataset`."""


class MethodSpec(Frozen):
    """The method and its strengths.

    `ridge` is relative to the mean diagonal of the Gram matrix and pulls the map toward the identity (plain removal);
    `None` lets the held-out tokens choose. `replays` is how many of the best windows are judged by held-out loss.
    `loss` is for `cosine` only. `groups` is into how many cuts, with kept blocks between them, a `ratio` is divided.
    """

    name: Annotated[Method, one_of(Method)] = Method.LEAST_SQUARES
    ridge: float | None = Field(default=None, ge=0, le=1e6)
    replays: int = Field(default=6, ge=1, le=64)
    loss: CosineLoss = "exact"
    groups: int = Field(default=1, ge=1, le=64)
    structure: Annotated[MapStructure, one_of(MapStructure)] | None = None
    """Of `least_squares` and `cosine`; `None`: full where the model takes that over, else diagonal."""
    selection: Annotated[Selection, one_of(Selection)] = Selection.ONE_BY_ONE
    """Of `refit` only."""
    time_budget_seconds: float | None = Field(default=None, ge=1, le=LONGEST_SECONDS)
    """Of `auto` only: contenders that are not expected to end in time are left out; `None`: all are tried."""
    ridge_later: float | None = Field(default=None, ge=0, le=1e6)
    """Of `refit` only: pulls every projection after the first cut toward its old weight; relative, like `ridge`."""
    as_published: bool = False
    """Of `least_squares`: choose and fit as the reference implementation does, for comparison."""

    @model_validator(mode="after")
    def _options_of_the_method(self) -> Self:
        for option, field in type(self).model_fields.items():
            methods = methods_with(option)  # a stored specification has every field, most at their defaults
            if methods and self.name not in methods and getattr(self, option) != field.default:
                raise PydanticCustomError(
                    "option_of_another_method",
                    "{field} is for {methods}, not for {name}",
                    {"field": option, "methods": " and ".join(methods), "name": str(self.name)},
                )
        if self.as_published and self.groups > 1:
            raise PydanticCustomError("published_groups", "as published there is one cut", {"field": "groups"})
        if self.as_published and self.structure is not None:
            raise PydanticCustomError("published_structure", "as published the map is full", {"field": "structure"})
        return self


class EvaluationSpec(Frozen):
    """Before and after: perplexity on text that calibration did not see, and speed."""

    enabled: bool = True
    samples: int = Field(default=16, ge=1, le=100_000)


class OutputSpec(Frozen):
    """Where the result goes. Repositories are private unless asked otherwise.

    `overwrite`: over whatever is there; the caller's own earlier results are replaced without it.
    """

    repo_id: RepositoryId | None = None
    private: bool = True
    overwrite: bool = False


class ComputeSpec(Frozen):
    """Fixed on the worker and kept with the job: these decide the rounding."""

    device: str | None = Field(default=None, pattern=r"^[a-z]+(:\d+)?$")
    dtype: Dtype | None = None
    batch_size: int | None = Field(default=None, ge=1, le=4096)
    threads: int | None = Field(default=None, ge=1, le=1024)
    loading: Annotated[Loading, one_of(Loading)] = Loading.AUTO
    quantization: Annotated[Quantization, one_of(Quantization)] | None = None
    """While activations are captured; maps go into the weights as they are stored. `None`: not at all."""
    shards: int | None = Field(default=None, ge=1, le=MOST_SHARDS)
    """Parts in which the fit tokens are summed, perhaps by several workers; they decide the order of the sums. `None`:
    decided on the worker, by the number of tokens."""


class CompressionSpec(Frozen):
    """A job in its long form. Either `ratio` or `drop` is set."""

    model: ModelRef
    ratio: Ratio | None = None
    drop: BlockIndices | None = None
    calibration: CalibrationSpec
    method: MethodSpec = MethodSpec()
    evaluation: EvaluationSpec = EvaluationSpec()
    output: OutputSpec = OutputSpec()
    compute: ComputeSpec = ComputeSpec()
    labels: dict[LabelText, LabelText] = Field(default_factory=dict, max_length=32)
    priority: int = Field(default=DEFAULT_PRIORITY, ge=0, le=HIGHEST_PRIORITY)
    """9 goes first. Says nothing about how long a job that has started may go on."""
    max_queue_seconds: Seconds | None = None
    """From its arrival to its first start; `None`: no limit. A job that is late fails with `out_of_time`."""
    max_runtime_seconds: Seconds | None = None
    """From its first start to its end, whatever happens in between; `None`: no limit."""

    @model_validator(mode="after")
    def _one_way_to_choose(self) -> Self:
        if (self.ratio is None) == (self.drop is None):
            problem = "neither is given" if self.ratio is None else "both are given"
            raise PydanticCustomError(
                "ratio_or_drop",
                "give either ratio (a fraction of the blocks) or drop (the blocks themselves): {problem}",
                {"field": "ratio", "problem": problem},
            )
        return self

    @model_validator(mode="after")
    def _groups_are_for_a_ratio(self) -> Self:
        if self.drop is not None and self.method.groups > 1:
            raise PydanticCustomError(
                "groups_with_drop",
                "groups divide a ratio; blocks named by drop are grouped as they lie",
                {"field": "method.groups"},
            )
        return self

    @model_validator(mode="after")
    def _shards_are_for_sums(self) -> Self:
        if (self.compute.shards or 1) > 1 and not self.needs_sums_only:
            sums_only = [method for method in Method if TRAITS[method].needs_sums_only]
            raise PydanticCustomError(
                "shards_of_another_method",
                "shards are for {methods} of one window that a ratio chooses; other methods need more than sums",
                {"field": "compute.shards", "methods": " and ".join(sums_only)},
            )
        return self

    @model_validator(mode="after")
    def _quantized_weights_cannot_be_changed(self) -> Self:
        if self.compute.quantization is not None and TRAITS[self.method.name].changes_weights:
            allowed = [str(method) for method in Method if not TRAITS[method].changes_weights]
            raise PydanticCustomError(
                "quantization_of_another_method",
                "4 and 8 bits are for {methods}; {name} tries changes of the weights themselves",
                {"field": "compute.quantization", "methods": ", ".join(allowed), "name": str(self.method.name)},
            )
        return self

    @property
    def needs_sums_only(self) -> bool:
        """Whether the method needs nothing of the fit tokens but the sums of windows of the dense model."""
        one_window = self.drop is None and self.method.groups == 1 and not self.method.as_published
        return TRAITS[self.method.name].needs_sums_only and one_window

    def with_limits(self, *, max_queue_seconds: float | None, max_runtime_seconds: float | None) -> Self:
        """The same with these limits where it names none."""
        given = {"max_queue_seconds": max_queue_seconds, "max_runtime_seconds": max_runtime_seconds}
        return self.model_copy(update={name: value for name, value in given.items() if getattr(self, name) is None})


def _shorthand(key: str, model: type[BaseModel]) -> BeforeValidator:
    """Let a plain string stand for `{key: string}`."""
    return BeforeValidator(
        lambda value: {key: value} if isinstance(value, str) else value, json_schema_input_type=str | model
    )


class CompressionRequest(CompressionSpec):
    """The body of `POST /jobs`: the same fields, with `model`, `calibration`, `method` and `output` also as strings."""

    model: Annotated[ModelRequest, _shorthand("repo_id", ModelRequest)]
    calibration: Annotated[CalibrationSpec, _shorthand("dataset", CalibrationSpec)]
    method: Annotated[MethodSpec, _shorthand("name", MethodSpec)] = MethodSpec()
    output: Annotated[OutputSpec, _shorthand("repo_id", OutputSpec)] = OutputSpec()

    def to_spec(self) -> CompressionSpec:
        """The long form, equal to what a stored specification reads back as."""
        values = {name: getattr(self, name) for name in CompressionSpec.model_fields}
        values["model"] = ModelRef(repo_id=self.model.repo_id, revision=self.model.revision)
        return CompressionSpec.model_construct(**values)

    def fingerprint(self) -> str:
        """Equal for requests that mean the same, whatever their spelling; 64 hex digits.

        Defaults do not count, so that a field which a later version adds does not change it.
        """
        plain = self.model_dump(mode="json", exclude_defaults=True)
        return hashlib.sha256(json.dumps(plain, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
