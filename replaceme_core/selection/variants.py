"""What a pruned model would lose, before any weight is changed: its blocks run on the streams of the dense one."""

from collections.abc import Sequence

from replaceme_core.activations.capture import Captured
from replaceme_core.activations.dense_prefix import dense_before
from replaceme_core.selection.replay import Variant, predictions_of, summed_loss


def variant_losses(
    captured: Captured, variants: Sequence[Variant], *, batches: Sequence[int] | None = None
) -> list[list[float]]:
    """Summed next-token loss in nats of each variant on each of the held-out `batches`, all by default.

    What comes before the first difference is run once for all variants, if it cannot be read.
    """
    blockwise, first = captured.blockwise, min(variant.first for variant in variants)
    losses: list[list[float]] = [[] for _ in variants]
    for batch in captured.held_out_batches if batches is None else batches:
        tokens = captured.tokens(batch)
        stream = dense_before(captured, first, batch)
        for of_variant, variant in zip(losses, variants, strict=True):
            of_variant.append(summed_loss(blockwise, variant.run(blockwise, stream, since=first), tokens))
    return losses


def held_out_mean(losses: Sequence[float], captured: Captured) -> float:
    """In nats, of summed losses by held-out batch: on the first ones, as many as there are losses."""
    batches = captured.held_out_batches[: len(losses)]
    return sum(losses) / predictions_of([captured.batches[batch].tokens for batch in batches])
