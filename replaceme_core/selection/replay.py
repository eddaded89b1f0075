"""What a cut costs in loss: replay only the blocks after it on held-out tokens."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch

from replaceme_core.models.block_runner import BlockwiseModel
from replaceme_core.models.cut import FittedCut, HeldOutStreams, compensate

LOGITS_AT_ONCE, FEWER_LOGITS_AT_ONCE = 6 * 2**20, 2**21
"""Values of one piece of logits, however large the vocabulary: 24 MiB in float32, less than what is asked from the
system each time (`allocator.LARGEST_REUSED`); 8 where not even the blocks fit."""


def replay(blockwise: BlockwiseModel, streams: HeldOutStreams, fitted: FittedCut, *, batch: int) -> float:
    """Summed next-token loss in nats on one held-out batch with `fitted` in place."""
    kept, write = blockwise.run_tapped(fitted.cut.keeper, streams.before[fitted.cut.keeper][batch])
    stream = compensate(kept, write, delta=fitted.delta)
    for block in range(fitted.cut.end + 1, len(blockwise.blocks)):
        stream = blockwise.run(block, stream)
    return summed_loss(blockwise, stream, streams.tokens[batch])


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A model without the blocks `removed`, and with the maps of `folds` in place."""

    removed: frozenset[int]
    folds: tuple[FittedCut, ...] = ()

    @classmethod
    def of(cls, folds: Sequence[FittedCut]) -> "Variant":
        return cls(removed=frozenset(block for one in folds for block in one.cut.blocks), folds=tuple(folds))

    @property
    def first(self) -> int:
        """The first block at which it differs from the dense model."""
        return min([*self.removed, *(one.cut.keeper for one in self.folds)])

    def run(self, blockwise: BlockwiseModel, stream: torch.Tensor, *, since: int) -> torch.Tensor:
        """The stream after the last block, from the one before block `since`."""
        deltas = {one.cut.keeper: one.delta for one in self.folds}
        for block in range(since, len(blockwise.blocks)):
            if block in self.removed:
                continue
            if block in deltas:
                kept, write = blockwise.run_tapped(block, stream)
                stream = compensate(kept, write, delta=deltas[block])
            else:
                stream = blockwise.run(block, stream)
        return stream


def losses_without_each(
    blockwise: BlockwiseModel, tokens: torch.Tensor, *, removed: Collection[int], tried: Collection[int]
) -> dict[int, float]:
    """For each of the blocks `tried`: summed loss in nats on `tokens` without it and without those `removed`.

    One walk through the model; at each block that is tried, only the blocks after it are run for its sake.
    """
    stream = blockwise.enter(tokens)
    losses: dict[int, float] = {}
    for block in range(max(tried) + 1):
        if block in removed:
            continue
        if block in tried:
            without = Variant(removed=frozenset(removed)).run(blockwise, stream, since=block + 1)
            losses[block] = summed_loss(blockwise, without, tokens)
        if block < max(tried):
            stream = blockwise.run(block, stream)
    return losses


def dense_loss(blockwise: BlockwiseModel, streams: HeldOutStreams) -> float:
    """Mean loss in nats of the dense model on all held-out tokens; the capture pass has kept its last stream."""
    pairs = zip(streams.last, streams.tokens, strict=True)
    return mean_loss([summed_loss(blockwise, stream, tokens) for stream, tokens in pairs], streams)


def mean_loss(losses: Sequence[float], streams: HeldOutStreams) -> float:
    """In nats, of summed losses by batch: on the first batches, as many as there are losses."""
    return sum(losses) / predictions_of(streams.tokens[: len(losses)])


def predictions_of(batches: Sequence[torch.Tensor]) -> int:
    """How many tokens are predicted in `batches`, each (sequences, positions): all but each sequence's first."""
    return sum(tokens.shape[0] * (tokens.shape[1] - 1) for tokens in batches)


def summed_loss(blockwise: BlockwiseModel, stream: torch.Tensor, tokens: torch.Tensor) -> float:
    """Sum over all predictions of the loss in nats; `stream` (batch, positions, d), `tokens` (batch, positions)."""
    vocabulary = blockwise.resolved.model.config.vocab_size
    positions = max(1, (FEWER_LOGITS_AT_ONCE if blockwise.scarce else LOGITS_AT_ONCE) // vocabulary)
    sequences = max(1, positions // tokens.shape[1])
    total = 0.0
    for some, ids in zip(stream[:, :-1].split(sequences), tokens[:, 1:].split(sequences), strict=True):
        # What comes after the last block looks at one position at a time, so a sequence may come in parts.
        for part, following in zip(some.split(positions, dim=1), ids.split(positions, dim=1), strict=True):
            logits = blockwise.leave(part, following).flatten(0, 1)
            total += float(torch.nn.functional.cross_entropy(logits.float(), following.flatten(), reduction="sum"))
    return total
