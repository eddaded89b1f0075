"""What a pruned model would lose, before any weight is changed: its blocks run on the streams of the dense one."""

from collections.abc import Sequence

from replaceme_core.modeling.captured import Captured
from replaceme_core.modeling.replay import Variant, predictions_of, summed_loss


def variant_losses(
    captured: Captured, variants: Sequence[Variant], *, batches: Sequence[int] | None = None
) -> list[list[float]]:
    """Summed next-token loss in nats of each variant on each of the held-out `batches`, all by default.

    What comes before the first difference is read where streams are kept, else run once for all variants.
    """
    blockwise, first = captured.blockwise, min(variant.first for variant in variants)
    losses: list[list[float]] = [[] for _ in variants]
    for batch in captured.held_out_batches if batches is None else batches:
        tokens = captured.tokens(batch)
        if captured.complete:
            stream = captured.before(first, batch)
        else:
            stream = blockwise.enter(tokens)
            for block in range(first):
                stream = blockwise.run(block, stream)
            captured.dense_block_runs += first
        for of_variant, variant in zip(losses, variants, strict=True):
            of_variant.append(summed_loss(blockwise, variant.run(blockwise, stream, since=first), tokens))
    return losses


def held_out_mean(losses: Sequence[float], captured: Captured) -> float:
    """In nats, of summed losses by held-out batch: on the first ones, as many as there are losses."""
    batches = captured.held_out_batches[: len(losses)]
    return sum(losses) / predictions_of([captured.batches[batch].tokens for batch in batches])
