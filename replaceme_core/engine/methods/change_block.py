"""Make the changes of a `Pruning` to one block of the model as it is stored."""

from replaceme_core.engine.methods.protocol import Pruning
from replaceme_core.engine.model.changes import apply_changes, fold
from replaceme_core.families.resolve import ResolvedModel


def change_block(resolved: ResolvedModel, block: int, *, pruning: Pruning) -> None:
    """Fold the maps of `block` and add its changes, in place."""
    for one in pruning.folds:
        if one.cut.anchor == block and bool(one.delta.any()):
            fold(resolved, one)
    apply_changes(resolved, [one for one in pruning.changes if one.block == block])
