"""What a method is given, and what it returns.

A method is a function from a `Task` to a `Pruning`. It looks at the live model and decides which blocks are removed and
how the weights that stay change. It saves nothing and leaves the model as it found it: the decision is carried out on
the weights as they are stored (`model/changes.py`). A method runs in the stage `calibrate`; it begins `select`, unless
the request names the blocks and nothing is left to choose, and then `solve`.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from typing import Self

from replaceme_core.engine.activations.capture import Activations
from replaceme_core.engine.model.block_runner import BlockRunner
from replaceme_core.engine.model.changes import Change, Cut, FittedCut
from replaceme_core.engine.text.drawing import TokenSet
from replaceme_core.families.layout import MapStructure
from replaceme_core.request.method import TRAITS, Method
from replaceme_core.request.removal import check_rank, check_structure
from replaceme_core.request.resolve import ResolvedSpec
from replaceme_core.runner.messages import Progress
from replaceme_core.wording import json_safe


@dataclass(frozen=True, kw_only=True)
class Task:
    """A proved model in the dtype to compute in, its calibration tokens, and what is asked of them.

    `activations` is what one dense pass leaves behind; it is computed when it is asked for, or read from the cache.
    `remove` is the number of blocks to remove; `spec.drop` may name them. `begin` begins a stage, as
    `StageClock.begin`; it does nothing where the method is a step of something else.
    """

    block_runner: BlockRunner
    tokens: TokenSet
    activations: Activations
    spec: ResolvedSpec
    remove: int
    progress: Progress
    begin: Callable[..., None] = lambda stage, **_: None

    @property
    def diagonal(self) -> bool:
        """Whether maps are diagonal. Raises `InvalidInput` for a full map where the model takes diagonal ones only."""
        resolved = self.block_runner.resolved
        check_structure(self.spec, resolved.structure, model_type=resolved.layout.model_type)
        return (self.spec.method.structure or resolved.structure) is MapStructure.DIAGONAL

    def require_rank(self) -> None:
        """Raises `CalibrationTooSmall` if the fit tokens cannot determine a map."""
        if not self.diagonal:
            check_rank(tokens=self.tokens.fit.numel(), width=self.block_runner.resolved.config.hidden_size)


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A row of the table that explains which blocks were chosen: a cut, and what was measured of it.

    What a method does not measure is `None`.
    `distance` is angular, in [0, 1], before any fit; `influence` is 1 - cosine, in [0, 2], across the block; `residual`
    is relative to the stream at the end of the cut, on held-out tokens after the fit; `tokens` is the number of
    calibration tokens that both rest on, smaller where the cut was left out early. `ridge` is `None` where there is no
    map. `held_out_loss` in nats is the mean of `source_losses`, those on each source of the held-out text, by name;
    `plain_loss` is the same without maps. Where blocks are removed one after another, `step` is the number of the step,
    and rows of one `group` are cuts that were tried together; both count from 1.
    """

    cut: Cut
    distance: float | None = None
    residual: float | None = None
    ridge: float | None = None
    held_out_loss: float | None = None
    chosen: bool = False
    influence: float | None = None
    step: int | None = None
    group: int | None = None
    plain_loss: float | None = None
    tokens: int | None = None
    source_losses: tuple[tuple[str, float], ...] = ()

    def as_dict(self) -> dict[str, object]:
        """For JSON, which has no NaN and no infinity: a value that is not finite is `None`, not known."""
        values = {**asdict(self.cut), **asdict(self), "source_losses": dict(self.source_losses)}
        del values["cut"]
        return {name: json_safe(value, name=lambda _: None) for name, value in values.items()}


@dataclass(frozen=True, kw_only=True)
class Pruning:
    """The blocks to remove, the maps to fold before them, and changes to other weights; `candidates` explain why.

    Folds are made before changes are added. The output of the final norm is multiplied by `final_scale`. `method` names
    the method that was chosen where the request left it open. `left_out` are steps that were not begun for lack of
    time, in words.
    """

    removed: Sequence[int]
    folds: Sequence[FittedCut] = ()
    changes: Sequence[Change] = ()
    final_scale: float = 1.0
    candidates: Sequence[Candidate] = ()
    method: str | None = None
    left_out: Sequence[str] = ()

    @classmethod
    def of_cuts(cls, folds: Sequence[FittedCut], candidates: Sequence[Candidate]) -> Self:
        """The removal of exactly the cuts of `folds`."""
        removed = sorted(block for one in folds for block in one.cut.blocks)
        return cls(removed=removed, folds=folds, candidates=candidates)


def find_method(name: Method) -> Callable[[Task], Pruning]:
    """The function with the method's own name, in a module of that name or the one that its row in `TRAITS` names."""
    module = import_module(f"replaceme_core.engine.methods.{TRAITS[name].module or name}")
    method: Callable[[Task], Pruning] = getattr(module, name)
    return method
