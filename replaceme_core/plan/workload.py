"""What a worker will do for a request, as far as it can be known without that worker's hardware."""

from dataclasses import dataclass

from replaceme_core.plan.model_shape import ModelShape
from replaceme_core.request.calibration_spec import held_out_samples
from replaceme_core.request.method_traits import Method
from replaceme_core.request.resolved_spec import (
    BATCH_SIZE,
    resolve_method,
    resolve_text,
)
from replaceme_core.request.spec import CompressionSpec, Dtype, Loading, Quantization
from replaceme_core.request.worker_kind import WorkerKind
from replaceme_core.runner.eta import trials_of

VALUE_BYTES: dict[str, int] = {"float32": 4, "bfloat16": 2, "float16": 2}
MARGIN = 1.25
"""Factor on the bytes of the weights, for temporary tensors while the model is loaded and run."""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What is known of the workers of one kind. Bytes; `None` where it is not known.

    `cpu_dtype` is the default of a CPU. `keeps_cache` is false where streams are not left for later jobs.
    """

    kind: WorkerKind
    memory_bytes: int | None = None
    device_bytes: int | None = None
    disk_bytes: int | None = None
    cpu_dtype: Dtype = "float32"
    keeps_cache: bool = True
    cache_bytes: int = 0

    @property
    def model_bytes(self) -> int | None:
        """Memory where the model is: of the GPU, or of the host."""
        return self.device_bytes if self.kind is WorkerKind.GPU else self.memory_bytes


@dataclass(frozen=True, kw_only=True)
class Workload:
    """The amounts that memory and time depend on: sequences of `length` tokens, bytes, numbers of blocks.

    `spec` has the method and the calibration that the worker is expected to decide.
    `value_bytes` is the size of a value in the computation. `beside` sequences calibrate and judge that are not part of
    `samples`. `generated` sequences are written by the model itself.
    `measured` sequences are evaluated on; 0 without an evaluation. `removed` blocks go, at most; a search for the
    deepest cut has at most so many `trials`, another job 0.
    """

    spec: CompressionSpec
    method: Method
    kind: WorkerKind
    loading: Loading
    quantization: Quantization | None
    dtype: Dtype
    value_bytes: int
    samples: int
    beside: int
    held_out: int
    length: int
    generated: int
    batch_size: int
    removed: int
    named: tuple[int, ...] | None
    one_by_one: bool
    groups: int
    replays: int
    trials: int
    measured: int
    keeps_cache: bool
    cache_bytes: int
    memory_bytes: int | None

    @property
    def sequences(self) -> int:
        """All that calibrate and judge."""
        return self.samples + self.beside

    @property
    def tokens(self) -> int:
        """All calibration tokens, the held-out ones included."""
        return self.sequences * self.length

    @property
    def batch_tokens(self) -> int:
        return min(self.batch_size, self.samples) * self.length

    @property
    def on_gpu(self) -> bool:
        return self.kind is WorkerKind.GPU

    @property
    def is_lazy(self) -> bool:
        """Whether blocks are read one at a time."""
        return self.loading is Loading.BLOCKWISE


def fits_whole(*, weight_bytes: int, models: int, free_bytes: int) -> bool:
    """Whether `models` models of `weight_bytes` each fit into free memory with a margin."""
    return MARGIN * models * weight_bytes <= free_bytes


def expected_workload(spec: CompressionSpec, shape: ModelShape, *, machine: Machine, removed: int) -> Workload:
    """The workload on a worker like `machine`; where its memory is not known, the model is taken to fit."""
    on_gpu = machine.kind is WorkerKind.GPU
    compute = spec.compute
    dtype: Dtype = compute.dtype or ("bfloat16" if on_gpu else machine.cpu_dtype)
    loading, free = compute.loading, machine.model_bytes
    if loading is Loading.AUTO:
        fits = free is None or fits_whole(
            weight_bytes=shape.parameters * VALUE_BYTES[dtype],
            models=2 if spec.evaluation.enabled else 1,
            free_bytes=free,
        )
        loading = Loading.WHOLE if fits else Loading.BLOCKWISE
    calibration = resolve_text(spec, on_cpu=not on_gpu, loading=loading)
    method = resolve_method(spec, loading=loading)
    return Workload(
        spec=spec.model_copy(update={"method": method, "calibration": calibration}),
        method=method.name,
        kind=machine.kind,
        loading=loading,
        quantization=compute.quantization,
        dtype=dtype,
        value_bytes=VALUE_BYTES[dtype],
        samples=calibration.samples,
        beside=calibration.beside_samples(method.name),
        held_out=held_out_samples(calibration.samples),
        length=calibration.max_length,
        generated=calibration.generating,
        batch_size=compute.batch_size or BATCH_SIZE,
        removed=removed,
        named=spec.drop,
        one_by_one=spec.drop is None and _searches(spec, method.name),
        groups=method.groups,
        replays=method.replays,
        trials=trials_of(spec, blocks=shape.blocks),
        measured=spec.evaluation.samples if spec.evaluation.enabled else 0,
        keeps_cache=machine.keeps_cache,
        cache_bytes=machine.cache_bytes,
        memory_bytes=machine.memory_bytes,
    )


def _searches(spec: CompressionSpec, method: Method) -> bool:
    """Whether blocks are chosen one at a time, with a map for each set that is tried."""
    if method is Method.REFIT:
        return spec.method.selection == "one_by_one" and spec.method.groups == 1
    return method is Method.AUTO
