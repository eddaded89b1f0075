"""Resolves a specification: every default is filled in here and nowhere else, by the facts of one machine.

The worker calls `resolve_spec` with the facts of its own machine, the API for a plan with those of its workers.
`ResolvedSpec` is a type of its own, so that code that computes need not check whether a field is still open.
"""

from dataclasses import dataclass
from typing import Annotated, Self

from pydantic import model_validator

from replaceme_core.hardware import WorkerKind
from replaceme_core.request import defaults
from replaceme_core.request.calibration import (
    GENERAL,
    NO_OTHER_TEXT,
    PARTS_OF_GENERAL,
    CalibrationSpec,
    held_out_samples,
)
from replaceme_core.request.fields import BUILTIN_PREFIX, one_of, wrong
from replaceme_core.request.method import Method, MethodSpec
from replaceme_core.request.spec import CompressionSpec, ComputeSpec, Dtype, Loading

VALUE_BYTES: dict[str, int] = {"float32": 4, "bfloat16": 2, "float16": 2}
MARGIN = 1.25
"""Factor on the bytes of the weights, for temporary tensors while the model is loaded and run."""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What is known of a worker, or of those of one kind. Bytes; `None` where it is not known.

    `cpu_dtype` is the default of a CPU. `cache_bytes` is the limit of the activation cache; 0: no streams are left for
    later jobs.
    """

    kind: WorkerKind
    memory_bytes: int | None = None
    device_bytes: int | None = None
    disk_bytes: int | None = None
    cpu_dtype: Dtype = "float32"
    device: str | None = None
    threads: int = 1
    cache_bytes: int = 0

    @property
    def keeps_cache(self) -> bool:
        return self.cache_bytes > 0

    @property
    def model_bytes(self) -> int | None:
        """Memory where the model is: of the GPU, or of the host."""
        return self.device_bytes if self.kind is WorkerKind.GPU else self.memory_bytes


def judging_sequences(held_out: int, *, length: int) -> int:
    """How many sequences of `length` tokens the text of `judged_on` has, beside `held_out` ones of the others.

    Half as many, within limits; 0 where the built-in text has fewer than the least number.
    """
    count = min(max(defaults.FEWEST_JUDGING, held_out // 2), defaults.MOST_JUDGING, defaults.JUDGING_TOKENS // length)
    return count if count >= defaults.FEWEST_JUDGING else 0


class ResolvedCalibration(CalibrationSpec):
    """With the number of samples and their length; of one `dataset` also with `self_generated`.

    `general`, `repeated` and `judged_on` may be open, as in a specification of an earlier version: then there is none.
    """

    samples: int
    max_length: int

    @property
    def repeating(self) -> int:
        """How many of the fitted sequences repeat passages."""
        return round((self.repeated or 0.0) * (self.samples - held_out_samples(self.samples)))

    def repeating_held_out(self, method: Method) -> int:
        """How many held-out ones do: none, or for `auto` half as many as of the samples, where any is fitted on.

        Where a refit follows they judge; a method that a request names does not look at them
        (docs/explanation/how-the-default-works.md#runs).
        """
        if method is not Method.AUTO or not self.repeating:
            return 0
        return min(max(1, held_out_samples(self.samples) // 2), defaults.MOST_JUDGING)

    @property
    def judges(self) -> tuple[bool, ...]:
        """Of each source of the mix: whether it has held-out sequences beside those of the samples.

        The text of `judged_on` has, unless it is the only text, and so has a text whose share is 0.
        """
        fitted = [source for source in self.mix if not source.self_generated and source.share > 0]
        has_others = any(source.name != self.judged_on for source in fitted)
        return tuple(
            not source.self_generated and (source.share == 0 or (has_others and source.name == self.judged_on))
            for source in self.mix
        )

    @property
    def judging(self) -> int:
        """How many sequences each source of `judges` has."""
        return judging_sequences(held_out_samples(self.samples), length=self.max_length)

    @property
    def own_judging(self) -> int:
        """How many held-out sequences of the model's own text are not part of the samples.

        Where the request names one text and another one judges, own text gets about as many sequences as that one: an
        eighth of the samples is a single one (docs/explanation/how-the-default-works.md#mix).
        """
        if self.dataset is None or self.generated_share == 0 or not any(self.judges):
            return 0
        return max(0, self.judging - round(held_out_samples(self.samples) * self.generated_share))

    @property
    def generating(self) -> int:
        """How many sequences the model generates, about."""
        return round(self.samples * self.generated_share) + self.own_judging

    def beside_samples(self, method: Method) -> int:
        """How many sequences calibrate and judge that are not part of `samples`."""
        texts = sum(self.judges) * self.judging
        return texts + self.own_judging + self.repeating + self.repeating_held_out(method)

    @model_validator(mode="after")
    def _share_is_known(self) -> Self:
        if self.dataset is not None and self.self_generated is None:
            raise wrong("self_generated", "self_generated is still open")
        return self


class ResolvedMethod(MethodSpec):
    """With its name."""

    name: Annotated[Method, one_of(Method)]


class ResolvedCompute(ComputeSpec):
    """With everything that decides the rounding."""

    device: str
    dtype: Dtype
    batch_size: int
    threads: int


class ResolvedSpec(CompressionSpec):
    """What is carried out: every default filled in, on the machine that does the work. Its JSON is that of its base."""

    calibration: ResolvedCalibration
    method: ResolvedMethod
    compute: ResolvedCompute

    @classmethod
    def of(cls, spec: CompressionSpec) -> Self:
        """A stored specification that was resolved before. Raises `ValueError` where something is still open."""
        return cls.model_validate(spec.model_dump())


def resolve_spec(spec: CompressionSpec, machine: Machine, *, values: int) -> ResolvedSpec:
    """`spec` with every default filled in for a model of `values` values on `machine`; what it names stays.

    Where the memory is not known, the model is taken to fit. Of a short text there may be fewer samples in the end
    (`engine.text.tokens`).
    """
    models = 2 if spec.evaluation.enabled else 1  # the dense and the pruned one are evaluated side by side
    compute = resolve_compute(spec.compute, machine, values=values, models=models)
    on_cpu = machine.kind is WorkerKind.CPU
    parts = {name: getattr(spec, name) for name in CompressionSpec.model_fields}
    return ResolvedSpec(
        **parts
        | {
            "compute": compute,
            "calibration": resolve_text(spec, on_cpu=on_cpu, loading=compute.loading),
            "method": _resolve_method(spec, loading=compute.loading),
        }
    )


def resolve_compute(asked: ComputeSpec, machine: Machine, *, values: int = 0, models: int = 1) -> ResolvedCompute:
    """A model is read as a whole if `models` of this size fit into free memory at once, with a margin."""
    on_cpu, loading, free = machine.kind is WorkerKind.CPU, asked.loading, machine.model_bytes
    dtype = asked.dtype or (machine.cpu_dtype if on_cpu else "bfloat16")
    if loading is Loading.AUTO:
        needed = MARGIN * models * values * VALUE_BYTES[dtype]
        loading = Loading.WHOLE if free is None or needed <= free else Loading.BLOCKWISE
    filled = {
        "device": asked.device or machine.device or ("cpu" if on_cpu else "cuda"),
        "dtype": dtype,
        "batch_size": asked.batch_size or defaults.BATCH_SIZE,
        "threads": asked.threads or machine.threads,
        "loading": loading,
    }
    return ResolvedCompute.model_validate(dict(asked) | filled)


def _resolve_method(spec: CompressionSpec, *, loading: Loading) -> ResolvedMethod:
    """The method that is named; else `auto` where it can run as a whole, else `least_squares`.

    A model that is read block by block would be read again for each step of `auto`. A job with a limit of time gives
    `auto` a part of it for its steps.
    """
    method, name = spec.method, spec.expected_method
    if method.name is None and loading is Loading.BLOCKWISE and Method.LEAST_SQUARES in method.possible:
        name = Method.LEAST_SQUARES
    update: dict[str, object] = {"name": name}
    limit = spec.max_runtime_seconds
    is_open = method.name is None and name is Method.AUTO and method.time_budget_seconds is None
    if is_open and limit is not None and limit <= defaults.LONG_LIMIT_SECONDS:
        update["time_budget_seconds"] = max(1.0, limit * defaults.AUTO_PART_OF_RUNTIME)
    return ResolvedMethod.model_validate(method.model_dump() | update)


def usual_size(spec: CompressionSpec, *, on_cpu: bool) -> tuple[int, int]:
    """The samples and their length, as given or else the usual ones."""
    samples, length = defaults.CPU_CALIBRATION if on_cpu else defaults.ACCELERATOR_CALIBRATION
    if on_cpu and spec.mix_is_open:
        samples = defaults.CPU_SAMPLES_OF_OPEN_MIX
    return spec.calibration.samples or samples, spec.calibration.max_length or length


def resolve_text(spec: CompressionSpec, *, on_cpu: bool, loading: Loading) -> ResolvedCalibration:
    """The calibration with its size, what calibrates beside a single `dataset`, and what judges.

    Text that the model generates, which is of all kinds that it has learned, and the built-in general text are added,
    at most as much as that has. A model that is read block by block would be read from disk for each token that it
    generates, so it gets the built-in text in place of its own as well. A method that fits nothing, one as published,
    and a request with a `self_generated` of 0 get nothing.

    Candidates are also judged on the built-in general text, unless the request is for one text and nothing else, or for
    a part of that text.
    """
    samples, length = usual_size(spec, on_cpu=on_cpu)
    asked = spec.calibration
    update: dict[str, object] = {"samples": samples, "max_length": length}
    if asked.judged_on is None:
        one_text = spec.one_text or asked.self_generated == 0 or asked.dataset in PARTS_OF_GENERAL
        has_enough = judging_sequences(held_out_samples(samples), length=length) > 0
        update["judged_on"] = GENERAL if has_enough and not one_text else NO_OTHER_TEXT
    if asked.sources is None:
        own = general = repeated = 0.0
        if spec.mix_is_open:
            own, general = _usual_shares(asked.dataset)
            if loading is Loading.BLOCKWISE:
                own, general = 0.0, general + own if general else 0.0
            general = min(general, 1 - own, defaults.FITTED_TOKENS / (samples * length))
            repeated = defaults.REPEATED_SHARE
        shares = {"self_generated": own, "general": general, "repeated": repeated}
        update |= {name: share for name, share in shares.items() if getattr(asked, name) is None}
    return ResolvedCalibration.model_validate(asked.model_dump() | update)


def _usual_shares(dataset: str | None) -> tuple[float, float]:
    """Of own and of general text, whose documents must not calibrate and measure under two names."""
    if dataset == GENERAL:
        return defaults.OWN_SHARE, 0.0
    if dataset in PARTS_OF_GENERAL:
        return defaults.OWN_SHARE_OF_PART, 0.0
    if dataset is not None and dataset.startswith(BUILTIN_PREFIX):
        return defaults.OWN_SHARE_OF_BUILT_IN, defaults.GENERAL_SHARE_OF_BUILT_IN
    return defaults.OWN_SHARE, defaults.GENERAL_SHARE
