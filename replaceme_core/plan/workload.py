"""What a worker will do for a request, as far as it can be known without that worker."""

from dataclasses import dataclass

from replaceme_core.hardware import WorkerKind
from replaceme_core.plan.model_shape import ModelShape
from replaceme_core.request.calibration import held_out_samples
from replaceme_core.request.method import Method, Selection
from replaceme_core.request.resolve import VALUE_BYTES, Machine, ResolvedSpec, resolve_spec
from replaceme_core.request.spec import CompressionSpec, Loading
from replaceme_core.runner.eta import trials_of


@dataclass(frozen=True, kw_only=True)
class Workload:
    """The amounts that memory and time depend on: sequences of `length` tokens, bytes, numbers of blocks.

    `removed` blocks are removed, at most; a search for the deepest cut has at most `trials` trials, another job 0.
    """

    spec: ResolvedSpec
    machine: Machine
    removed: int
    trials: int

    @property
    def method(self) -> Method:
        return self.spec.method.name

    @property
    def samples(self) -> int:
        return self.spec.calibration.samples

    @property
    def length(self) -> int:
        return self.spec.calibration.max_length

    @property
    def sequences(self) -> int:
        """All that calibrate and judge; some of them are not part of the samples."""
        return self.samples + self.spec.calibration.beside_samples(self.method)

    @property
    def tokens(self) -> int:
        """All calibration tokens, the held-out ones included."""
        return self.sequences * self.length

    @property
    def held_out(self) -> int:
        return held_out_samples(self.samples)

    @property
    def batch_tokens(self) -> int:
        return min(self.spec.compute.batch_size, self.samples) * self.length

    @property
    def measured(self) -> int:
        """Sequences that are evaluated on; 0 without an evaluation."""
        return self.spec.evaluation.samples if self.spec.evaluation.enabled else 0

    @property
    def value_bytes(self) -> int:
        """Of a value in the computation."""
        return VALUE_BYTES[self.spec.compute.dtype]

    @property
    def on_gpu(self) -> bool:
        return self.machine.kind is WorkerKind.GPU

    @property
    def is_lazy(self) -> bool:
        """Whether blocks are read one at a time."""
        return self.spec.compute.loading is Loading.BLOCKWISE

    @property
    def one_by_one(self) -> bool:
        """Whether blocks are chosen one at a time, with a map for each set that is tried."""
        if self.spec.drop is not None:
            return False
        if self.method is Method.REFIT:
            return self.spec.method.selection is Selection.ONE_BY_ONE and self.spec.method.groups == 1
        return self.method is Method.AUTO


def expected_workload(spec: CompressionSpec, shape: ModelShape, *, machine: Machine, removed: int) -> Workload:
    """The workload on a worker like `machine`."""
    return Workload(
        spec=resolve_spec(spec, machine, values=shape.parameters),
        machine=machine,
        removed=removed,
        trials=trials_of(spec, blocks=shape.blocks),
    )
