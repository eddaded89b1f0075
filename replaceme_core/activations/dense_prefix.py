"""The dense stream at the place where a pruned model begins to differ from it."""

import torch

from replaceme_core.activations.capture import Captured


def dense_before(captured: Captured, block: int, batch: int) -> torch.Tensor:
    """The dense stream that `block` reads (sequences, positions, d), with as few runs of dense blocks as are left.

    None where streams are kept; on held-out tokens, after a pass over windows, none but those since the last keeper.
    """
    if captured.complete:
        return captured.before(block, batch)
    since, stream = _nearest(captured, block, batch)
    for number in range(since, block):
        stream = captured.blockwise.run(number, stream)
    captured.dense_block_runs += block - since
    return stream


def _nearest(captured: Captured, block: int, batch: int) -> tuple[int, torch.Tensor]:
    """A block not after `block`, and the stream before it."""
    if captured.passed is not None and captured.batches[batch].held_out:
        known = [keeper for keeper in captured.passed.before if keeper <= block]
        if known:
            index = captured.held_out_batches.index(batch)
            return max(known), captured.passed.before[max(known)][index]
    return 0, captured.blockwise.enter(captured.tokens(batch))
