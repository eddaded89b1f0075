"""The dense stream at the place where a pruned model begins to differ from it."""

import torch

from replaceme_core.activations.capture import Activations


def dense_before(activations: Activations, block: int, batch: int) -> torch.Tensor:
    """The dense stream that `block` reads (sequences, positions, d), with as few runs of dense blocks as are left.

    None where streams are kept; on held-out tokens, after a pass over windows, none but those since the last keeper.
    """
    if activations.complete:
        return activations.before(block, batch)
    since, stream = _nearest(activations, block, batch)
    for number in range(since, block):
        stream = activations.block_runner.run(number, stream)
    activations.dense_block_runs += block - since
    return stream


def _nearest(activations: Activations, block: int, batch: int) -> tuple[int, torch.Tensor]:
    """A block not after `block`, and the stream before it."""
    if activations.passed is not None and activations.batches[batch].held_out:
        known = [anchor for anchor in activations.passed.before if anchor <= block]
        if known:
            index = activations.held_out_batches.index(batch)
            return max(known), activations.passed.before[max(known)][index]
    return 0, activations.block_runner.enter(activations.tokens(batch))
