"""The next-token loss of a model on held-out tokens, from the stream after its last block."""

from collections.abc import Sequence

import torch

from replaceme_core.activations.held_out_streams import HeldOutStreams
from replaceme_core.models.block_runner import BlockRunner

LOGITS_AT_ONCE, FEWER_LOGITS_AT_ONCE = 6 * 2**20, 2**21
"""Values of one piece of logits, however large the vocabulary: 24 MiB in float32, less than what is asked from the
system each time (`allocator.LARGEST_REUSED`); 8 where not even the blocks fit."""


def dense_loss(block_runner: BlockRunner, streams: HeldOutStreams) -> float:
    """Mean loss in nats of the dense model on all held-out tokens; the capture pass has kept its last stream."""
    pairs = zip(streams.last, streams.tokens, strict=True)
    return mean_loss([summed_loss(block_runner, stream, tokens) for stream, tokens in pairs], streams.tokens)


def mean_loss(losses: Sequence[float], batches: Sequence[torch.Tensor]) -> float:
    """Nats for each prediction, from `losses` summed over each of the first batches, as many as there are losses.

    `batches` are token ids, (sequences, positions) each.
    """
    return sum(losses) / predictions_of(batches[: len(losses)])


def predictions_of(batches: Sequence[torch.Tensor]) -> int:
    """How many tokens are predicted in `batches`, each (sequences, positions): all but each sequence's first."""
    return sum(tokens.shape[0] * (tokens.shape[1] - 1) for tokens in batches)


def summed_loss(block_runner: BlockRunner, stream: torch.Tensor, tokens: torch.Tensor) -> float:
    """Sum over all predictions of the loss in nats; `stream` (batch, positions, d), `tokens` (batch, positions)."""
    vocabulary = block_runner.resolved.model.config.vocab_size
    positions = max(1, (FEWER_LOGITS_AT_ONCE if block_runner.is_lazy else LOGITS_AT_ONCE) // vocabulary)
    sequences = max(1, positions // tokens.shape[1])
    total = 0.0
    for some, ids in zip(stream[:, :-1].split(sequences), tokens[:, 1:].split(sequences), strict=True):
        # What comes after the last block looks at one position at a time, so a sequence may come in parts.
        for part, following in zip(some.split(positions, dim=1), ids.split(positions, dim=1), strict=True):
            logits = block_runner.leave(part, following).flatten(0, 1)
            total += float(torch.nn.functional.cross_entropy(logits.float(), following.flatten(), reduction="sum"))
    return total
