"""How many blocks of a model a specification removes, and whether that is possible."""

import math
from collections.abc import Iterable, Sequence

from replaceme_core.errors import InvalidInput
from replaceme_core.hub.model_config import ModelOutline
from replaceme_core.request.family_options import check_structure
from replaceme_core.request.spec import CompressionSpec
from replaceme_core.wording import counted


def check_removal(spec: CompressionSpec, outline: ModelOutline) -> int:
    """How many blocks `spec` removes from this model, at most. Raises `InvalidInput` for blocks or groups it lacks."""
    return depths_of(spec, outline)[-1]


def depths_of(spec: CompressionSpec, outline: ModelOutline) -> list[int]:
    """The numbers of blocks that `spec` may remove from this model, in order. Raises as `check_removal` does.

    Several where the deepest cut that passes the gate is asked for, else one.
    """
    check_structure(spec, outline.layout)
    if spec.drop is not None:
        _check_named(spec.drop, outline.blocks)
        return [len(spec.drop)]
    assert spec.greatest_ratio is not None
    remove, groups = blocks_to_remove(spec.greatest_ratio, outline.blocks), spec.method.groups
    depths = range(1, remove + 1) if spec.searches else [remove]
    # each group removes a block and follows a kept one
    possible = [depth for depth in depths if groups <= min(depth, outline.blocks - depth)]
    if not possible:
        most = max(min(depth, outline.blocks - depth) for depth in depths)
        raise InvalidInput(
            f"{remove} of {outline.blocks} blocks can be removed in at most {counted(most, 'groups')}, each after a "
            f"block that is kept; got {groups}",
            field="method.groups",
            value=groups,
        )
    return possible


def _check_named(drop: Sequence[int], blocks: int) -> None:
    beyond = [block for block in drop if block >= blocks]
    if beyond:
        raise InvalidInput(
            f"the model has blocks 0 to {blocks - 1}; there is no block {beyond[0]}", field="drop", value=list(drop)
        )


def blocks_to_remove(ratio: float, blocks: int) -> int:
    """How many of `blocks` a ratio removes: rounded half up, at least 1, at most all but one.

    >>> blocks_to_remove(0.25, 30)
    8
    """
    return min(max(math.floor(ratio * blocks + 0.5), 1), blocks - 1)


def ratio_of(removed: int, blocks: int) -> float:
    """A short ratio by which exactly `removed` of `blocks` blocks go.

    >>> ratio_of(4, 30), blocks_to_remove(ratio_of(4, 30), 30)
    (0.1333, 4)
    """
    return round(removed / blocks, 4)


def block_ranges(blocks: Iterable[int]) -> str:
    """The blocks as a short list of ranges.

    >>> block_ranges([3, 12, 13, 14, 20])
    '3, 12-14, 20'
    """
    runs: list[list[int]] = []
    for block in sorted(blocks):
        if runs and block == runs[-1][1] + 1:
            runs[-1][1] = block
        else:
            runs.append([block, block])
    return ", ".join(f"{first}" if first == last else f"{first}-{last}" for first, last in runs)
