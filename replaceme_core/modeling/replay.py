"""What a cut costs in loss: replay only the blocks after it on held-out tokens."""

import torch

from replaceme_core.modeling.blockwise import BlockwiseModel
from replaceme_core.modeling.capture import FittedCut, HeldOutStreams, compensate

LOGITS_AT_ONCE = 2**25
"""Values of one piece of logits: 128 MiB in float32, however large the vocabulary."""


def held_out_loss(blockwise: BlockwiseModel, streams: HeldOutStreams, fitted: FittedCut) -> float:
    """Mean next-token loss in nats on the held-out tokens with `fitted` in place."""
    total = 0.0
    for index, tokens in enumerate(streams.tokens):
        stream = streams.before[fitted.cut.keeper][index]
        kept, write = blockwise.run_tapped(fitted.cut.keeper, stream)
        stream = compensate(kept, write, delta=fitted.delta)
        for block in range(fitted.cut.end + 1, len(blockwise.blocks)):
            stream = blockwise.run(block, stream)
        total += summed_loss(blockwise, stream, tokens)
    return total / _predictions(streams)


def dense_loss(blockwise: BlockwiseModel, streams: HeldOutStreams) -> float:
    """The same for the dense model, whose last stream the capture pass has kept."""
    pairs = zip(streams.last, streams.tokens, strict=True)
    return sum(summed_loss(blockwise, stream, tokens) for stream, tokens in pairs) / _predictions(streams)


def summed_loss(blockwise: BlockwiseModel, stream: torch.Tensor, tokens: torch.Tensor) -> float:
    """Sum over all predictions of the loss in nats; `stream` (batch, positions, d), `tokens` (batch, positions)."""
    vocabulary = blockwise.resolved.model.config.vocab_size
    rows = max(1, LOGITS_AT_ONCE // (tokens.shape[1] * vocabulary))
    total = 0.0
    for some, ids in zip(stream.split(rows), tokens.split(rows), strict=True):
        logits = blockwise.leave(some, ids)[:, :-1].flatten(0, 1)
        total += float(torch.nn.functional.cross_entropy(logits.float(), ids[:, 1:].flatten(), reduction="sum"))
    return total


def _predictions(streams: HeldOutStreams) -> int:
    return sum(tokens.shape[0] * (tokens.shape[1] - 1) for tokens in streams.tokens)
