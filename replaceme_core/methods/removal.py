"""What methods share that put nothing in the place of the blocks they remove."""

from collections.abc import Sequence

import torch

from replaceme_core.methods.protocol import Pruning, Task
from replaceme_core.modeling.capture import schedule
from replaceme_core.modeling.choose import Candidate
from replaceme_core.modeling.replay import Variant, predictions_of, variant_losses
from replaceme_core.progress import Stage


def held_out_batches(task: Task) -> list[torch.Tensor]:
    """The held-out sequences as every pass takes them."""
    parts = schedule(task.tokens.fit[:0], task.tokens.held_out, task.batch_size)
    return [batch for batch, is_held_out in parts if is_held_out]


def plain_removal(task: Task, removed: Sequence[int], candidates: Sequence[Candidate]) -> Pruning:
    """What removes `removed` and changes no weight; its held-out loss is reported."""
    batches = held_out_batches(task)
    (losses,) = variant_losses(task.blockwise, batches, [Variant(removed=frozenset(removed))])
    loss = sum(losses) / predictions_of(batches)
    task.clock.progress.metric("result_held_out_loss", loss, "nats")
    task.clock.progress.advance(1.0)
    task.clock.begin(Stage.SOLVE)
    return Pruning(removed=sorted(removed), candidates=candidates)
