"""Fold maps into the weights of a model, and remove blocks so that it is what its class expects."""

from collections.abc import Sequence

import torch
from torch import nn

from replaceme_core.engine.model.cut import FittedCut
from replaceme_core.engine.model.lazy_model import load_block
from replaceme_core.engine.numerics.fold import fold_norm, fold_projection
from replaceme_core.engine.numerics.moments import SOLVE_DTYPE
from replaceme_core.errors import InvalidInput
from replaceme_core.families.layout import FoldKind, follow_blocks
from replaceme_core.families.resolve import ResolvedModel


def kept_blocks(blocks: int, removed: Sequence[int]) -> list[int]:
    """The indices of the blocks that stay, in order. Raises `InvalidInput` where one of `removed` cannot go."""
    gone = set(removed)
    wrong = [block for block in sorted(gone) if not 1 <= block < blocks]
    if wrong:
        raise InvalidInput(
            f"block {wrong[0]} cannot be removed: blocks 1 to {blocks - 1} can", field="drop", value=sorted(gone)
        )
    return [block for block in range(blocks) if block not in gone]


@torch.no_grad()
def fold(resolved: ResolvedModel, fitted: FittedCut) -> None:
    """Fold the map into all weights of the anchor block that write the output of its MLP, in place."""
    for target in resolved.fold_targets(load_block(resolved.blocks[fitted.cut.anchor])):
        match target.kind:
            case FoldKind.LINEAR:
                weight, bias = fold_projection(target.weight, target.bias, delta=fitted.delta)
            case FoldKind.CONV1D:
                weight, bias = fold_projection(target.weight.T, target.bias, delta=fitted.delta)
                weight = weight.T
            case FoldKind.EXPERTS:  # one at a time: all in float64 at once would be four times their size
                for expert in target.weight:
                    expert.copy_(fold_projection(expert, None, delta=fitted.delta)[0])
                continue
            case FoldKind.NORM | FoldKind.NORM_PLUS_ONE:
                offset = 1.0 if target.kind is FoldKind.NORM_PLUS_ONE else 0.0
                weight, bias = fold_norm(target.weight, delta=fitted.delta, offset=offset), None
        target.weight.copy_(weight)
        if target.bias is not None and bias is not None:
            target.bias.copy_(bias)


@torch.no_grad()
def scale_final_norm(resolved: ResolvedModel, scale: float) -> None:
    """Multiply the output of the final norm by `scale`: its weight (and bias) in place, in float64, cast once."""
    if scale == 1:
        return
    offset = 1.0 if resolved.layout.final_norm.kind is FoldKind.NORM_PLUS_ONE else 0.0
    for name, parameter in resolved.final_norm.named_parameters():
        shift = offset if name == "weight" else 0.0
        parameter.copy_((parameter.to(SOLVE_DTYPE) + shift) * scale - shift)


def remove_blocks(resolved: ResolvedModel, removed: Sequence[int]) -> None:
    """Remove blocks in place: the others get new slots in the KV cache, and the config describes those that stay."""
    old = resolved.blocks
    kept = kept_blocks(len(old), removed)
    resolved.replace_blocks(nn.ModuleList([old[index] for index in kept]))
    for slot, block in enumerate(resolved.blocks):
        for module in block.modules():
            if isinstance(vars(module).get("layer_idx"), int):
                vars(module)["layer_idx"] = slot
    follow_blocks(resolved.model.config, layout=resolved.layout, kept=kept)
