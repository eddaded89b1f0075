"""What a job would take, from the sizes of its model and the specification. Pure: reads nothing, asks nobody."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from replaceme_core.hardware import WorkerKind
from replaceme_core.plan import constants as of
from replaceme_core.plan.duration import Duration, expected_duration, inputs_of, modelled_seconds
from replaceme_core.plan.memory import Peak, peaks_of, store_bytes, store_place
from replaceme_core.plan.memory import keeps_streams as keeps
from replaceme_core.plan.model_shape import ModelShape
from replaceme_core.plan.workload import Workload, expected_workload
from replaceme_core.request.method import Method
from replaceme_core.request.resolve import Machine
from replaceme_core.request.spec import CompressionSpec, Dtype, Loading
from replaceme_core.runner.messages import Stage
from replaceme_core.runner.requests import PastJob

_HEADER_BYTES = 112
"""Of a tensor in the header of a weight file."""


@dataclass(frozen=True, kw_only=True)
class Before:
    """A number before and after the compression."""

    before: int
    after: int


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What a job takes. Bytes and seconds.

    `download` is what is fetched from the Hub, `write` the size of the result, `weights` that of its weights,
    `disk` the most that lies on the worker's disk at once. `memory` are the peaks by stage.
    """

    kind: WorkerKind
    method: Method
    loading: Loading
    dtype: Dtype
    samples: int
    max_length: int
    blocks: Before
    parameters: Before
    download: int
    write: int
    weights: int
    disk: int
    memory: Mapping[Stage, Peak]
    duration: Duration
    trials: int = 0
    """A search for the deepest cut has so many at most, and removes at most what `blocks` says."""

    @property
    def host_bytes(self) -> int:
        """The highest peak of the runner process on the host."""
        return max(peak.host for peak in self.memory.values())

    @property
    def device_bytes(self) -> int:
        """The highest peak on the GPU; 0 on a CPU."""
        return max(peak.device for peak in self.memory.values())


def estimate(
    spec: CompressionSpec,
    shape: ModelShape,
    *,
    machine: Machine,
    removed: int,
    download: int,
    side_bytes: int,
    is_remote: bool,
    history: Sequence[PastJob],
) -> Estimate:
    """The estimate on a worker like `machine`.

    `removed` blocks go; `download` and `side_bytes` are the bytes of all files that are fetched, and of those that are
    copied to the result. `history` are earlier jobs on such a worker, the newest first.
    """
    work = expected_workload(spec, shape, machine=machine, removed=removed)
    after = shape.parameters_after(spec.drop if spec.drop is not None else removed)
    weights = written_bytes(shape, after=after, removed=removed)
    write = weights + side_bytes
    largest = write
    if work.trials:  # what is found may remove no more than one block
        largest = written_bytes(shape, after=shape.parameters_after(1), removed=1) + side_bytes
    modelled = modelled_seconds(shape, work, download=download, write=write, is_remote=is_remote)
    return Estimate(
        kind=machine.kind,
        method=work.method,
        loading=work.spec.compute.loading,
        dtype=work.spec.compute.dtype,
        samples=work.samples,
        max_length=work.length,
        blocks=Before(before=shape.blocks, after=shape.blocks - removed),
        parameters=Before(before=shape.parameters, after=after),
        download=download,
        write=write,
        weights=weights,
        disk=(download if is_remote else 0) + 2 * largest + _kept_on_disk(shape, work),
        memory=peaks_of(shape, work),
        duration=expected_duration(modelled, history, method=work.method, inputs=inputs_of(work.spec)),
        trials=work.trials,
    )


def written_bytes(shape: ModelShape, *, after: int, removed: int) -> int:
    """The weight files of a result of `after` parameters, in the dtype in which most of the source is stored."""
    tensors = shape.rest_tensors + shape.block_tensors * (shape.blocks - removed)
    return after * shape.item_bytes + tensors * _HEADER_BYTES


def _kept_on_disk(shape: ModelShape, work: Workload) -> int:
    if not keeps(shape, work) or store_place(shape, work) == "memory":
        return 0
    return min(store_bytes(shape, work), of.CHOICE_STREAM_BYTES)


@dataclass(frozen=True, kw_only=True)
class Shortage:
    """What a job needs more of than there is, in bytes."""

    resource: str
    needed: int
    available: int
    stage: Stage | None = None

    @property
    def message(self) -> str:
        at = f" in the stage {self.stage}" if self.stage is not None else ""
        return f"it needs about {self.needed:,} bytes of {self.resource}{at}, and the worker has {self.available:,}"


def shortages(found: Estimate, machine: Machine) -> Sequence[Shortage]:
    """What a worker like `machine` has too little of; empty where that is not known."""
    missing: list[Shortage] = []
    for resource, attribute, available in (
        ("host memory", "host", machine.memory_bytes),
        ("GPU memory", "device", machine.device_bytes),
    ):
        stage = max(found.memory, key=lambda one: int(getattr(found.memory[one], attribute)))
        needed = int(getattr(found.memory[stage], attribute))
        if available is not None and needed > available:
            missing.append(Shortage(resource=resource, needed=needed, available=available, stage=stage))
    if machine.disk_bytes is not None and found.disk > machine.disk_bytes:
        missing.append(Shortage(resource="disk space", needed=found.disk, available=machine.disk_bytes))
    return missing
