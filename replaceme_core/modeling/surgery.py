"""Take blocks out of a model and leave it as its class expects to be."""

from collections.abc import Sequence

import torch
from torch import nn

from replaceme_core.errors import InvalidInput
from replaceme_core.families.resolve import ResolvedModel
from replaceme_core.modeling.capture import FittedCut
from replaceme_core.numerics.fold import fold_projection


def kept_blocks(blocks: int, removed: Sequence[int]) -> list[int]:
    """Indices that stay, in order. Raises `InvalidInput` if block 0 or a block that does not exist is removed."""
    gone = set(removed)
    wrong = [block for block in sorted(gone) if not 1 <= block < blocks]
    if wrong:
        raise InvalidInput(
            f"block {wrong[0]} cannot be removed: blocks 1 to {blocks - 1} can", field="drop", value=sorted(gone)
        )
    return [block for block in range(blocks) if block not in gone]


@torch.no_grad()
def fold(resolved: ResolvedModel, fitted: FittedCut) -> None:
    """Put the map into the keeper's output projection, in place."""
    projection = resolved.projection(resolved.blocks[fitted.cut.keeper])
    weight, bias = fold_projection(projection.weight, projection.bias, delta=fitted.delta)
    projection.weight.copy_(weight)
    if bias is not None:
        projection.bias.copy_(bias)


def remove_blocks(resolved: ResolvedModel, removed: Sequence[int]) -> None:
    """Keep the other blocks, renumber their cache slots, and trim the config's per-layer lists, in place."""
    old = resolved.blocks
    kept = kept_blocks(len(old), removed)
    resolved.replace_blocks(nn.ModuleList([old[index] for index in kept]))
    for slot, block in enumerate(resolved.blocks):
        for module in block.modules():
            if isinstance(vars(module).get("layer_idx"), int):
                vars(module)["layer_idx"] = slot
    config = resolved.model.config
    for name in resolved.layout.per_layer_lists:
        values = getattr(config, name, None)
        if isinstance(values, list | tuple):
            setattr(config, name, [values[index] for index in kept])
    config.num_hidden_layers = len(kept)
