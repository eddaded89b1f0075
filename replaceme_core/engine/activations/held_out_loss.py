"""The next-token loss of a model on held-out tokens, from the stream after its last block."""

from collections.abc import Sequence

import torch

from replaceme_core.engine.model.block_runner import BlockRunner

LOGITS_AT_ONCE, FEWER_LOGITS_AT_ONCE = 6 * 2**20, 2**21
"""Values of one part of the logits, for any vocabulary: 24 MiB in float32, which the allocator reuses
(`allocator.PART_BYTES`); 8 MiB for a model that is loaded lazily."""


def mean_loss(losses: Sequence[float], batches: Sequence[torch.Tensor]) -> float:
    """Mean loss in nats per prediction, from `losses` summed over each of the first batches.

    `batches` are token ids, (sequences, positions) each.
    """
    return sum(losses) / predictions_of(batches[: len(losses)])


def predictions_of(batches: Sequence[torch.Tensor]) -> int:
    """How many tokens are predicted in `batches`, (sequences, positions) each: all but the first of each sequence."""
    return sum(tokens.shape[0] * (tokens.shape[1] - 1) for tokens in batches)


def summed_losses(
    block_runner: BlockRunner, streams: Sequence[torch.Tensor], tokens: Sequence[torch.Tensor]
) -> list[float]:
    """`summed_loss` of each batch."""
    return [summed_loss(block_runner, stream, ids) for stream, ids in zip(streams, tokens, strict=True)]


def summed_loss(block_runner: BlockRunner, stream: torch.Tensor, tokens: torch.Tensor) -> float:
    """Loss in nats summed over all predictions; `stream` (batch, positions, d), `tokens` (batch, positions)."""
    vocabulary = block_runner.resolved.model.config.vocab_size
    positions = max(1, (FEWER_LOGITS_AT_ONCE if block_runner.is_lazy else LOGITS_AT_ONCE) // vocabulary)
    sequences = max(1, positions // tokens.shape[1])
    total = 0.0
    for some, ids in zip(stream[:, :-1].split(sequences), tokens[:, 1:].split(sequences), strict=True):
        # Final norm and head work on each position by itself, so a sequence can be split.
        for part, following in zip(some.split(positions, dim=1), ids.split(positions, dim=1), strict=True):
            logits = block_runner.leave(part, following).flatten(0, 1)
            total += float(torch.nn.functional.cross_entropy(logits.float(), following.flatten(), reduction="sum"))
    return total
