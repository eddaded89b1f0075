"""What a job asks for: the request as a client writes it, and the resolved specification that is carried out.

`CompressionRequest` accepts the short forms (`"model": "org/name"`); `CompressionSpec` is the long form with every
default filled in. Fields that depend on the machine (`compute`, the number of calibration tokens) stay `None` until
the runner resolves them on the device that does the work, and are then part of the stored specification, so that the
same resolved specification gives the same tensors.
"""

import hashlib
import json
from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from replaceme_core.request.calibration import CalibrationSource, CalibrationSpec, MixedSource, Source
from replaceme_core.request.defaults import HEAL_LEARNING_RATE
from replaceme_core.request.fields import (
    BlockIndices,
    CredentialName,
    Frozen,
    Labels,
    Name,
    RepositoryId,
    Seconds,
    in_short,
    one_of,
    wrong,
)
from replaceme_core.request.gate import DeepestCut, GateSpec, RatioOrDeepest, check_conditions
from replaceme_core.request.method import TRAITS, Method, MethodSpec
from replaceme_core.request.tasks import TaskNames

NOT_DECIDING = {"labels", "output", "priority", "max_queue_seconds", "max_runtime_seconds"}
"""Fields of a resolved specification that decide nothing about the model that is made."""
DEFAULT_PRIORITY = 5
HIGHEST_PRIORITY = 9
Dtype = Literal["float32", "bfloat16", "float16"]
DEVICES = ("cpu", "cuda", "mps", "xpu", "hpu", "mtia", "npu", "xla")
"""The types of devices of torch that compute."""


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
    """Repository of the model, as org/name, or the name of a directory."""
    revision: Name | None = None
    """Branch, tag or commit of the model. Default: main."""


class ModelRequest(ModelRef):
    """A model on the Hub."""

    repo_id: RepositoryId
    """Model to compress, as org/name."""


class EvaluationSpec(Frozen):
    """Before and after: perplexity on text that calibration did not see, speed, and tasks of the library lm_eval.

    Of models of images: the distance of their embeddings, and accuracy where images have labels or captions.
    """

    enabled: bool = True
    """Whether to measure both models. Default: yes."""
    samples: int = Field(default=16, ge=1, le=100_000)
    """Sequences to measure on; eight times as many images. Default: 16."""
    tasks: TaskNames = ()
    """Tasks of the lm-evaluation-harness, or replaceme_paper for those of the paper. Needs the extra tasks."""
    task_limit: int | None = Field(default=None, ge=1, le=10_000_000)
    """Largest number of questions of each task, for a quick look. Default: all."""
    few_shot: int | None = Field(default=None, ge=0, le=100)
    """Examples in the prompt of each question. Default: as the task says."""

    @model_validator(mode="after")
    def _tasks_are_a_part(self) -> Self:
        if self.tasks and not self.enabled:
            raise wrong("tasks", "tasks are a part of the evaluation: turn enabled on")
        return self


class OutputSpec(Frozen):
    """Where the result goes."""

    repo_id: RepositoryId | None = None
    """Repository for the result, as org/name. Default: a private one named after model and job."""
    private: bool = True
    """Whether the repository is private, if it is new. Default: yes."""
    overwrite: bool = False
    """Replace whatever is in the repository, where the operator allows that.

    The caller's own earlier results are replaced without it.
    """
    create_pr: bool = False
    """Propose the result in a pull request on a repository that exists.

    It changes nothing until it is merged.
    """


class ComputeSpec(Frozen):
    """Fixed on the worker and kept with the job: these decide the rounding."""

    device: str | None = Field(default=None, pattern=r"^[a-z]+(:\d+)?$")
    """Device such as cpu or cuda; only workers that have it run the job. Default: the service decides."""
    dtype: Dtype | None = None
    """Data type of the computation. Default: what is fast on the device."""
    batch_size: int | None = Field(default=None, ge=1, le=4096)
    """Sequences per batch. Default: 8."""
    threads: int | None = Field(default=None, ge=1, le=1024)
    """Number of CPU threads."""
    loading: Annotated[Loading, one_of(Loading)] = Loading.AUTO
    """Load the whole model, or block by block. Default: auto, whole if it fits."""
    quantization: Annotated[Quantization, one_of(Quantization)] | None = None
    """Hold the blocks in 4 or 8 bits while activations are captured. The result is not quantized.

    Maps go into the weights as they are stored.
    """
    pattern_safe: bool = False
    """Of a model with several kinds of blocks, such as gemma3, remove only what leaves their pattern as it is:
    converters to GGUF, MLX and ONNX rely on it."""

    @model_validator(mode="before")
    @classmethod
    def _in_one_pass(cls, given: object) -> object:
        """Leave out `shards: 1`, which requests and reports from before the removal of sharded calibration have."""
        if not isinstance(given, Mapping) or "shards" not in given:
            return given
        shards = given["shards"]
        if shards is not None and not (type(shards) is int and shards == 1):
            raise wrong(
                "shards", "sharded calibration was removed: a job is calibrated by one worker, and jobs are distributed"
            )
        return {name: value for name, value in given.items() if name != "shards"}


class HealedWeights(StrEnum):
    """What healing trains; norms, biases, input embeddings, and a head that is tied to them, stay as they are."""

    ALL = "all"
    """All other matrices."""
    SOME = "some"
    """Those of the blocks around each cut, and of the last three."""


class HealSpec(Frozen):
    """Training after the blocks are removed: the result is distilled from the original model.

    Without it nothing is trained.
    """

    tokens: int = Field(ge=1, le=10**10)
    """Number of tokens to train on, each read once. The original model's likeliest tokens take 600 bytes for each."""
    dataset: Source | None = None
    """Text to train on, without what judges or measures the result. Default: that of the calibration by its shares,
    as far as it goes, and text that the original model generates."""
    learning_rate: float = Field(default=HEAL_LEARNING_RATE, gt=0, le=1)
    """Highest learning rate, for a weight whose values have the root mean square 0.02; that of others is in proportion
    to theirs. It rises over the first steps, and falls along a cosine."""
    time_budget_seconds: Seconds | None = None
    """End the training after this many seconds, with the best state so far. Default: no limit."""
    weights: Annotated[HealedWeights, one_of(HealedWeights)] | None = None
    """Which weights are trained. Default: all if they fit into memory with the state of the optimiser, else some."""

    @model_validator(mode="after")
    def _one_text(self) -> Self:
        if self.dataset is not None and self.dataset.self_generated:
            raise wrong("dataset", "leave dataset out for text that the model generates itself")
        if self.dataset is not None and self.dataset.share is not None:
            raise wrong("dataset.share", "share is for a mix of texts; leave it out here")
        return self

    @property
    def source(self) -> MixedSource | None:
        """The named text; errors about it name the field of the request."""
        if self.dataset is None:
            return None
        place = "heal.dataset"
        return MixedSource.model_construct(**dict(self.dataset) | {"share": 1.0, "field": place, "name_field": place})


class CompressionSpec(Frozen):
    """A job in its long form. Either `ratio` or `drop` is set."""

    model: ModelRef
    """The model to compress."""
    ratio: RatioOrDeepest | None = None
    """Fraction of the blocks to remove, between 0 and 1.

    With a maximum: the deepest cut that passes the gate, at most that fraction, rounded as any ratio is.
    """
    drop: BlockIndices | None = None
    """Blocks to remove, instead of a ratio, counted from 0."""
    calibration: CalibrationSpec
    """What activations are captured on."""
    method: MethodSpec = MethodSpec()
    """How blocks are chosen, and what replaces them. Default: the worker decides."""
    heal: HealSpec | None = None
    """Train the result afterwards. Default: no."""
    evaluation: EvaluationSpec = EvaluationSpec()
    """What is measured before and after."""
    gate: GateSpec | None = None
    """What the result must be worth, else it is rejected.

    A rejected result is not published. `None`: every result is published.
    """
    output: OutputSpec = OutputSpec()
    """Where the result goes. Default: a private repository named after model and job."""
    compute: ComputeSpec = ComputeSpec()
    """How the worker computes."""
    labels: Labels = Field(default_factory=dict)
    """Labels for the job, by which jobs can be listed."""
    priority: int = Field(default=DEFAULT_PRIORITY, ge=0, le=HIGHEST_PRIORITY)
    """Priority from 0 to 9; 9 starts first. Default: 5.

    A job that has started is not interrupted by others.
    """
    max_queue_seconds: Seconds | None = None
    """Fail the job if it has not started after this many seconds.

    Counted from its arrival to its first start. The error is `out_of_time`.
    """
    max_runtime_seconds: Seconds | None = None
    """Fail the job if it has not ended this many seconds after its start.

    Counted from its first start to its end, whatever happens in between.
    """
    credential: CredentialName | None = None
    """Name of your credential for the Hub. Default: the service's own tokens."""

    @model_validator(mode="after")
    def _parts_agree(self) -> Self:
        if (self.ratio is None) == (self.drop is None):
            problem = "neither is given" if self.ratio is None else "both are given"
            raise wrong(
                "ratio", f"give either ratio (a fraction of the blocks) or drop (the blocks themselves): {problem}"
            )
        asked = self.evaluation
        check_conditions(self.gate, deepest=self.searches, evaluated=asked.enabled, tasks=asked.tasks)
        if self.drop is not None and self.method.groups > 1:
            raise wrong("method.groups", "groups divide a ratio; blocks named by drop are grouped as they lie")
        possible = self.method.possible
        if self.compute.quantization is not None and all(TRAITS[method].changes_weights for method in possible):
            allowed = ", ".join(method for method in Method if not TRAITS[method].changes_weights)
            raise wrong(
                "compute.quantization",
                f"4 and 8 bits are for {allowed}; {possible[0]} tries changes of the weights themselves",
            )
        if self.heal is not None and self.compute.loading is Loading.BLOCKWISE:
            raise wrong("heal", "healing trains the whole model in memory; leave compute.loading out, or heal")
        return self

    @property
    def texts(self) -> tuple[MixedSource, ...]:
        """All that a run reads: the mix of the calibration, and the text of the healing."""
        healing = None if self.heal is None else self.heal.source
        return (*self.calibration.mix, *(() if healing is None else (healing,)))

    @property
    def searches(self) -> bool:
        """Whether the deepest cut that passes the gate is looked for."""
        return isinstance(self.ratio, DeepestCut)

    @property
    def greatest_ratio(self) -> float | None:
        """The fraction of the blocks that is removed, at most; `None` where blocks are named."""
        return self.ratio.max if isinstance(self.ratio, DeepestCut) else self.ratio

    @property
    def expected_method(self) -> Method:
        """The method that is named, or the best that the request allows; the worker may find that it does not fit."""
        for method in self.method.possible:
            if self.compute.quantization is None or not TRAITS[method].changes_weights:
                return method
        return self.method.possible[-1]

    @property
    def one_text(self) -> bool:
        """Whether nothing is mixed into the named text by default: the method fits nothing, or is as published."""
        return self.method.as_published or not TRAITS[self.expected_method].fits

    @property
    def mix_is_open(self) -> bool:
        """Whether other text is mixed into the one text that is named, by default."""
        calibration = self.calibration
        return calibration.dataset is not None and calibration.self_generated is None and not self.one_text

    def fingerprint(self) -> str:
        """Equal for jobs that mean the same, whatever their spelling; 64 hex digits.

        Defaults do not count, so that a field which a later version adds does not change it.
        """
        plain = self.model_dump(mode="json", exclude_defaults=True)
        return hashlib.sha256(json.dumps(plain, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _known_device(compute: ComputeSpec) -> ComputeSpec:
    """Of a request only: a worker may find a device of another name, which is then part of the specification."""
    if compute.device is not None and compute.device.partition(":")[0] not in DEVICES:
        names = f"{', '.join(DEVICES[:-1])} or {DEVICES[-1]}"
        raise wrong("device", f"expected {names}, with a number or not (cuda:0), got {compute.device!r}")
    return compute


class CompressionRequest(CompressionSpec):
    """The body of `POST /jobs`: the same fields, with `model`, `calibration`, `method` and `output` also as strings.

    `calibration` may also be a list of sources.
    """

    model: Annotated[ModelRequest, in_short(str | ModelRequest, repo_id=str)]
    """The model to compress: org/name, or an object."""
    calibration: Annotated[
        CalibrationSpec,
        in_short(str | list[str | CalibrationSource] | CalibrationSpec, dataset=str, sources=list),
    ]
    """Calibration text: builtin:general, file:NAME.txt, or a Hub data set as org/name."""
    method: Annotated[MethodSpec, in_short(str | MethodSpec | None, name=str | None)] = MethodSpec()
    """How blocks are chosen, and what replaces them: a name, or an object. Default: the worker decides."""
    output: Annotated[OutputSpec, in_short(str | OutputSpec, repo_id=str)] = OutputSpec()
    """Where the result goes: org/name, or an object. Default: a private repository named after model and job."""
    compute: Annotated[ComputeSpec, AfterValidator(_known_device)] = ComputeSpec()
    """How the worker computes."""

    def to_spec(self) -> CompressionSpec:
        """The long form, equal to what a stored specification reads back as."""
        values = {name: getattr(self, name) for name in CompressionSpec.model_fields}
        values["model"] = ModelRef(repo_id=self.model.repo_id, revision=self.model.revision)
        return CompressionSpec.model_construct(**values)
