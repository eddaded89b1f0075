"""How many blocks of a model a specification removes, and whether that is possible."""

import math
from collections.abc import Iterable

from replaceme_core.admission.family_options import check_structure
from replaceme_core.admission.model_config import ModelOutline
from replaceme_core.errors import InvalidInput
from replaceme_core.spec import CompressionSpec


def check_removal(spec: CompressionSpec, outline: ModelOutline) -> int:
    """How many blocks `spec` removes from this model. Raises `InvalidInput` for impossible blocks or groups."""
    check_structure(spec, outline.layout)
    if spec.drop is None:
        assert spec.ratio is not None
        remove, groups = blocks_to_remove(spec.ratio, outline.blocks), spec.method.groups
        most = min(remove, outline.blocks - remove)  # each group removes a block and follows a kept one
        if groups > most:
            raise InvalidInput(
                f"{remove} of {outline.blocks} blocks can be removed in at most {most} groups, each after a block "
                f"that is kept; got {groups}",
                field="method.groups",
                value=groups,
            )
        return remove
    beyond = [block for block in spec.drop if block >= outline.blocks]
    if beyond:
        raise InvalidInput(
            f"the model has blocks 0 to {outline.blocks - 1}; there is no block {beyond[0]}",
            field="drop",
            value=list(spec.drop),
        )
    return len(spec.drop)


def blocks_to_remove(ratio: float, blocks: int) -> int:
    """How many of `blocks` a ratio removes: rounded half up, at least 1, at most all but one.

    >>> blocks_to_remove(0.25, 30)
    8
    """
    return min(max(math.floor(ratio * blocks + 0.5), 1), blocks - 1)


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
