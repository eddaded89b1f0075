"""Blocks merged into the one before them: parameter differences added up (LaCo, arXiv 2402.11187, equation 2)."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import nn

from replaceme_core.families.kinds import kind
from replaceme_core.models.block_runner import BlockwiseModel
from replaceme_core.models.cut import Cut, HeldOutStreams
from replaceme_core.models.weight_changes import WeightChange, try_changes
from replaceme_core.numerics.moments import SOLVE_DTYPE
from replaceme_core.selection.replay import Variant, summed_loss


def mergeable(blocks: nn.ModuleList, cut: Cut) -> bool:
    """Whether the keeper and all blocks of `cut` are of one kind."""
    return all(kind(blocks[block]) == kind(blocks[cut.keeper]) for block in cut.blocks)


def merge_changes(blockwise: BlockwiseModel, cut: Cut) -> list[WeightChange]:
    """The sum of `theta_j - theta_keeper` over the blocks j of `cut`, for every floating parameter of the keeper."""
    changes = {
        name: parameter.detach().to(SOLVE_DTYPE) * -len(cut.blocks)
        for name, parameter in blockwise.loaded(cut.keeper).named_parameters()
        if parameter.is_floating_point()
    }
    for block in cut.blocks:
        parameters = dict(blockwise.loaded(block).named_parameters())
        for name, change in changes.items():
            change += parameters[name].detach()
    return [WeightChange(block=cut.keeper, parameter=name, change=change) for name, change in changes.items()]


@contextmanager
def merged(blockwise: BlockwiseModel, cuts: Sequence[Cut]) -> Iterator[None]:
    """The keepers of `cuts` as they will be, while the context is open; then bit for bit what they were."""
    changes = [change for cut in cuts for change in merge_changes(blockwise, cut)]
    with try_changes(blockwise.blocks) as put:
        for one in changes:
            put(one)
        yield


def merged_loss(blockwise: BlockwiseModel, streams: HeldOutStreams, cut: Cut, *, batch: int) -> float:
    """Summed next-token loss in nats on one held-out batch, the keeper of `cut` merged (see `merged`)."""
    without = Variant(removed=frozenset(cut.blocks))
    stream = without.run(blockwise, streams.before[cut.keeper][batch], since=cut.keeper)
    return summed_loss(blockwise, stream, streams.tokens[batch])
