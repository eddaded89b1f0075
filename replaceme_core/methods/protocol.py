"""What every method is given, and what it gives back.

A method looks at the live model and says which blocks go and how the weights that stay change. It saves nothing and
leaves the model as it found it: `modeling/surgery.py` carries out what it says, on the weights as they are stored.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from replaceme_core.activations.capture import Activations
from replaceme_core.admission.family_options import check_structure
from replaceme_core.calibration.packing import TokenSet
from replaceme_core.models.block_runner import BlockRunner
from replaceme_core.models.cut import FittedCut
from replaceme_core.models.weight_changes import Change
from replaceme_core.numerics.structure import MapStructure
from replaceme_core.results.stage_clock import StageClock
from replaceme_core.selection.choose import Candidate
from replaceme_core.spec import CompressionSpec


@dataclass(frozen=True, kw_only=True)
class Task:
    """A proved model in the dtype to compute in, its calibration tokens, and what is wanted of them.

    `captured` is what one dense pass leaves behind; it is made when it is asked for, or read from an earlier job.
    `remove` is the number of blocks that go; `spec` is resolved, and its `drop` may name them. The stage `calibrate`
    has begun; a method begins `select` and `solve` itself.
    """

    block_runner: BlockRunner
    tokens: TokenSet
    activations: Activations
    spec: CompressionSpec
    remove: int
    clock: StageClock

    @property
    def structure(self) -> MapStructure:
        """Of the maps that are wanted. Raises `InvalidInput` where the family takes over diagonal ones only."""
        check_structure(self.spec, self.block_runner.resolved.layout)
        asked = self.spec.method.structure
        return self.block_runner.resolved.structure if asked is None else MapStructure(asked)

    @property
    def batch_size(self) -> int:
        assert self.spec.compute.batch_size is not None, "the specification is not resolved"
        return self.spec.compute.batch_size


@dataclass(frozen=True, kw_only=True)
class Pruning:
    """The blocks that go, the maps to fold before them, and changes to other weights; `candidates` tell why.

    Folds are made before changes are added. What the final norm gives is multiplied by `final_scale`. `held_out_loss`
    in nats is of the fit that saw no held-out token, where the method has measured it. `method` names the one that was
    chosen where the request left that open.
    """

    removed: Sequence[int]
    folds: Sequence[FittedCut] = ()
    changes: Sequence[Change] = ()
    final_scale: float = 1.0
    candidates: Sequence[Candidate] = ()
    held_out_loss: float | None = None
    method: str | None = None


class PruningMethod(Protocol):
    """Raises `CalibrationTooSmall` for too few tokens and `NumericalFailure` where no fit is possible."""

    def __call__(self, task: Task) -> Pruning: ...
