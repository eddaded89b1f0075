"""What every method is given, the steps that it goes through, and what it returns.

A method looks at the live model and decides which blocks are removed and how the weights that stay change. It saves
nothing and leaves the model as it found it: `models/surgery.py` carries out the decision, on the weights as they are
stored. Its three steps are `calibrate`, `select` and `solve`. Each returns an object that has the next one, so that
none can be left out; the pipeline calls them and begins the stages.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Protocol

from replaceme_core.engine.activations.capture import Activations
from replaceme_core.engine.model.block_runner import BlockRunner
from replaceme_core.engine.model.changes import Change, FittedCut
from replaceme_core.engine.selection.candidate import Candidate
from replaceme_core.engine.text.drawing import TokenSet
from replaceme_core.families.layout import MapStructure
from replaceme_core.request.method import TRAITS, Method
from replaceme_core.request.removal import check_structure
from replaceme_core.request.resolve import ResolvedSpec
from replaceme_core.runner.messages import Progress


@dataclass(frozen=True, kw_only=True)
class Task:
    """A proved model in the dtype to compute in, its calibration tokens, and what is asked of them.

    `activations` is what one dense pass leaves behind; it is computed when it is asked for, or read from the cache.
    `remove` is the number of blocks to remove; `spec.drop` may name them.
    """

    block_runner: BlockRunner
    tokens: TokenSet
    activations: Activations
    spec: ResolvedSpec
    remove: int
    progress: Progress

    @property
    def diagonal(self) -> bool:
        """Whether maps are diagonal. Raises `InvalidInput` for a full map where the family takes diagonal ones only."""
        check_structure(self.spec, self.block_runner.resolved.layout)
        requested = self.spec.method.structure
        return (requested or self.block_runner.resolved.structure) is MapStructure.DIAGONAL

    @property
    def calibration_tokens(self) -> int:
        """Fit and held-out tokens together."""
        return self.tokens.fit.numel() + self.tokens.held_out.numel()


@dataclass(frozen=True, kw_only=True)
class Pruning:
    """The blocks to remove, the maps to fold before them, and changes to other weights; `candidates` explain why.

    Folds are made before changes are added. The output of the final norm is multiplied by `final_scale`.
    `held_out_losses` are summed losses in nats by held-out batch, of the fit on the fit tokens alone; empty where the
    method has not measured them. `method` names the method that was chosen where the request left it open. `left_out`
    are steps that were not begun for lack of time, in words.
    """

    removed: Sequence[int]
    folds: Sequence[FittedCut] = ()
    changes: Sequence[Change] = ()
    final_scale: float = 1.0
    candidates: Sequence[Candidate] = ()
    held_out_losses: Sequence[float] = ()
    method: str | None = None
    left_out: Sequence[str] = ()


class Selected(ABC):
    """The blocks to remove are known."""

    @abstractmethod
    def solve(self) -> Pruning:
        """What compensates for them. Raises `NumericalFailure` where no fit is possible."""


class Calibrated(ABC):
    """What the choice of blocks needs has been computed from the calibration tokens."""

    @abstractmethod
    def select(self) -> Selected:
        """Choose the blocks to remove."""


class PruningMethod(Protocol):
    """The first step. Where the request names the blocks and nothing is to be selected, it returns a `Selected`.

    Raises `CalibrationTooSmall` for too few tokens.
    """

    def __call__(self, task: Task) -> Calibrated | Selected: ...


@dataclass(frozen=True, kw_only=True)
class Decided(Selected):
    """Nothing is left to solve."""

    pruning: Pruning

    def solve(self) -> Pruning:
        return self.pruning


def find_method(name: Method) -> PruningMethod:
    """The function `calibrate` of the module that the method's row in `TRAITS` names."""
    calibrate: PruningMethod = import_module(TRAITS[name].module).calibrate
    return calibrate
