"""What a cut costs in loss: replay only the blocks after it on held-out tokens."""

from collections.abc import Collection

import torch

from replaceme_core.activations.held_out_loss import summed_loss
from replaceme_core.activations.held_out_streams import HeldOutStreams
from replaceme_core.models.block_runner import BlockRunner
from replaceme_core.models.cut import FittedCut, Variant


def replay(block_runner: BlockRunner, streams: HeldOutStreams, fitted: FittedCut, *, batch: int) -> float:
    """Summed next-token loss in nats on one held-out batch with `fitted` in place."""
    variant = Variant.of([fitted])
    stream = variant.run(block_runner, streams.before[variant.first][batch], since=variant.first)
    return summed_loss(block_runner, stream, streams.tokens[batch])


def losses_without_each(
    block_runner: BlockRunner, tokens: torch.Tensor, *, removed: Collection[int], tried: Collection[int]
) -> dict[int, float]:
    """For each of the blocks `tried`: summed loss in nats on `tokens` without it and without those `removed`.

    One walk through the model; at each block that is tried, only the blocks after it are run for its sake.
    """
    stream = block_runner.enter(tokens)
    losses: dict[int, float] = {}
    for block in range(max(tried) + 1):
        if block in removed:
            continue
        if block in tried:
            without = Variant(removed=frozenset(removed)).run(block_runner, stream, since=block + 1)
            losses[block] = summed_loss(block_runner, without, tokens)
        if block < max(tried):
            stream = block_runner.run(block, stream)
    return losses
