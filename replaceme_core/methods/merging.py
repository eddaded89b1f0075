"""Blocks merged into the one before them: parameter differences added up (LaCo, arXiv 2402.11187, equation 2)."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import nn

from replaceme_core.activations.held_out_loss import summed_loss
from replaceme_core.activations.held_out_streams import HeldOutStreams
from replaceme_core.families.kinds import kind
from replaceme_core.models.block_runner import BlockRunner
from replaceme_core.models.cut import Cut, Variant
from replaceme_core.models.weight_changes import WeightChange, try_changes
from replaceme_core.numerics.moments import SOLVE_DTYPE


def mergeable(blocks: nn.ModuleList, cut: Cut) -> bool:
    """Whether the keeper and all blocks of `cut` are of one kind."""
    return all(kind(blocks[block]) == kind(blocks[cut.anchor]) for block in cut.blocks)


def merge_changes(block_runner: BlockRunner, cut: Cut) -> list[WeightChange]:
    """The sum of `theta_j - theta_keeper` over the blocks j of `cut`, for every floating parameter of the keeper."""
    changes = {
        name: parameter.detach().to(SOLVE_DTYPE) * -len(cut.blocks)
        for name, parameter in block_runner.load_block(cut.anchor).named_parameters()
        if parameter.is_floating_point()
    }
    for block in cut.blocks:
        parameters = dict(block_runner.load_block(block).named_parameters())
        for name, change in changes.items():
            change += parameters[name].detach()
    return [WeightChange(block=cut.anchor, parameter=name, change=change) for name, change in changes.items()]


@contextmanager
def merged(block_runner: BlockRunner, cuts: Sequence[Cut]) -> Iterator[None]:
    """The keepers of `cuts` as they will be, while the context is open; then bit for bit what they were."""
    changes = [change for cut in cuts for change in merge_changes(block_runner, cut)]
    with try_changes(block_runner.blocks) as put:
        for one in changes:
            put(one)
        yield


def merged_loss(block_runner: BlockRunner, streams: HeldOutStreams, cut: Cut, *, batch: int) -> float:
    """Summed next-token loss in nats on one held-out batch, the keeper of `cut` merged (see `merged`)."""
    without = Variant(removed=frozenset(cut.blocks))
    stream = without.run(block_runner, streams.before[cut.anchor][batch], since=cut.anchor)
    return summed_loss(block_runner, stream, streams.tokens[batch])
