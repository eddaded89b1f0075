"""Blocks merged into the one before them: parameter differences added up (LaCo, arXiv 2402.11187, equation 2)."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from replaceme_core.families.kinds import kind
from replaceme_core.modeling.blockwise import BlockwiseModel
from replaceme_core.modeling.capture import Cut, HeldOutStreams
from replaceme_core.modeling.changes import WeightChange
from replaceme_core.modeling.replay import Variant, summed_loss
from replaceme_core.numerics.moments import SOLVE_DTYPE


def mergeable(blocks: nn.ModuleList, cut: Cut) -> bool:
    """Whether the keeper and all blocks of `cut` are of one kind."""
    return all(kind(blocks[block]) == kind(blocks[cut.keeper]) for block in cut.blocks)


def merge_changes(blocks: nn.ModuleList, cut: Cut) -> list[WeightChange]:
    """The sum of `theta_j - theta_keeper` over the blocks j of `cut`, for every floating parameter of the keeper."""
    following = [dict(blocks[block].named_parameters()) for block in cut.blocks]
    return [
        WeightChange(block=cut.keeper, parameter=name, change=_difference(own, [one[name] for one in following]))
        for name, own in blocks[cut.keeper].named_parameters()
        if own.is_floating_point()
    ]


def _difference(own: torch.Tensor, others: Sequence[torch.Tensor]) -> torch.Tensor:
    total = own.detach().to(SOLVE_DTYPE) * -len(others)
    for other in others:
        total += other.detach()
    return total


@contextmanager
def merged(blocks: nn.ModuleList, cuts: Sequence[Cut]) -> Iterator[None]:
    """The keepers of `cuts` as they will be, while the context is open; then bit for bit what they were."""
    changes = [change for cut in cuts for change in merge_changes(blocks, cut)]
    originals = []
    try:
        for one in changes:
            parameter = blocks[one.block].get_parameter(one.parameter)
            originals.append((parameter, parameter.data))
            parameter.data = (parameter.data + one.change).to(parameter.dtype)
        yield
    finally:
        for parameter, data in originals:
            parameter.data = data


def merged_loss(blockwise: BlockwiseModel, streams: HeldOutStreams, cut: Cut, *, batch: int) -> float:
    """Summed next-token loss in nats on one held-out batch, the keeper of `cut` merged (see `merged`)."""
    without = Variant(removed=frozenset(cut.blocks))
    stream = without.run(blockwise, streams.before[cut.keeper][batch], since=cut.keeper)
    return summed_loss(blockwise, stream, streams.tokens[batch])
