"""What methods share that remove blocks and compensate for nothing."""

from collections.abc import Sequence

from replaceme_core.engine.methods.protocol import Decided, Pruning, Task
from replaceme_core.engine.model.block_runner import mean_loss
from replaceme_core.engine.model.changes import Variant
from replaceme_core.engine.selection.candidate import Candidate
from replaceme_core.engine.selection.replay import variant_losses


def plain_removal(task: Task, removed: Sequence[int], candidates: Sequence[Candidate]) -> Decided:
    """Remove the blocks and change no weight; the held-out loss of that is reported."""
    (losses,) = variant_losses(task.activations, [Variant(removed=frozenset(removed))])
    loss = mean_loss(losses, task.activations.held_out_tokens)
    task.progress.metric("result_held_out_loss", loss, "nats")
    task.progress.advance(1.0)
    return Decided(pruning=Pruning(removed=sorted(removed), candidates=candidates))
