"""What a cut costs in loss: replay only the blocks after it on held-out tokens."""

import torch

from replaceme_core.modeling.blockwise import BlockwiseModel
from replaceme_core.modeling.capture import FittedCut, HeldOutStreams, compensate

LOGITS_AT_ONCE = 2**23
"""Values of one piece of logits: 32 MiB in float32, however large the vocabulary."""


def replay(blockwise: BlockwiseModel, streams: HeldOutStreams, fitted: FittedCut, *, batch: int) -> float:
    """Summed next-token loss in nats on one held-out batch with `fitted` in place."""
    kept, write = blockwise.run_tapped(fitted.cut.keeper, streams.before[fitted.cut.keeper][batch])
    stream = compensate(kept, write, delta=fitted.delta)
    for block in range(fitted.cut.end + 1, len(blockwise.blocks)):
        stream = blockwise.run(block, stream)
    return summed_loss(blockwise, stream, streams.tokens[batch])


def dense_loss(blockwise: BlockwiseModel, streams: HeldOutStreams) -> float:
    """Mean loss in nats of the dense model on all held-out tokens; the capture pass has kept its last stream."""
    pairs = zip(streams.last, streams.tokens, strict=True)
    total = sum(summed_loss(blockwise, stream, tokens) for stream, tokens in pairs)
    return total / predictions(streams, batches=len(streams.tokens))


def predictions(streams: HeldOutStreams, *, batches: int) -> int:
    """How many tokens the first `batches` batches predict."""
    return sum(tokens.shape[0] * (tokens.shape[1] - 1) for tokens in streams.tokens[:batches])


def summed_loss(blockwise: BlockwiseModel, stream: torch.Tensor, tokens: torch.Tensor) -> float:
    """Sum over all predictions of the loss in nats; `stream` (batch, positions, d), `tokens` (batch, positions)."""
    vocabulary = blockwise.resolved.model.config.vocab_size
    positions = max(1, LOGITS_AT_ONCE // vocabulary)
    sequences = max(1, positions // tokens.shape[1])
    total = 0.0
    for some, ids in zip(stream[:, :-1].split(sequences), tokens[:, 1:].split(sequences), strict=True):
        # What comes after the last block looks at one position at a time, so a sequence may come in parts.
        for part, following in zip(some.split(positions, dim=1), ids.split(positions, dim=1), strict=True):
            logits = blockwise.leave(part, following).flatten(0, 1)
            total += float(torch.nn.functional.cross_entropy(logits.float(), following.flatten(), reduction="sum"))
    return total
