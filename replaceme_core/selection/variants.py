"""What a pruned model would lose, before any weight is changed: its blocks run on the streams of the dense one."""

from collections.abc import Sequence

from replaceme_core.activations.capture import Activations
from replaceme_core.activations.held_out_loss import summed_loss
from replaceme_core.models.cut import Variant


def variant_losses(
    activations: Activations, variants: Sequence[Variant], *, batches: Sequence[int] | None = None
) -> list[list[float]]:
    """Summed next-token loss in nats of each variant on each of the held-out `batches`, all by default.

    What comes before the first difference is run once for all variants, if it cannot be read.
    """
    block_runner, first = activations.block_runner, min(variant.first for variant in variants)
    losses: list[list[float]] = [[] for _ in variants]
    for batch in activations.held_out_batches if batches is None else batches:
        tokens = activations.tokens(batch)
        stream = activations.read_or_run(first, batch)
        for of_variant, variant in zip(losses, variants, strict=True):
            of_variant.append(summed_loss(block_runner, variant.run(block_runner, stream, since=first), tokens))
    return losses
