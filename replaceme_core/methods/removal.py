"""What methods share that put nothing in the place of the blocks they remove."""

from collections.abc import Sequence

from replaceme_core.activations.held_out_loss import mean_loss
from replaceme_core.methods.protocol import Pruning, Task
from replaceme_core.models.cut import Variant
from replaceme_core.runner.messages import Stage
from replaceme_core.selection.choose import Candidate
from replaceme_core.selection.variants import variant_losses


def plain_removal(task: Task, removed: Sequence[int], candidates: Sequence[Candidate]) -> Pruning:
    """What removes `removed` and changes no weight; its held-out loss is reported."""
    (losses,) = variant_losses(task.activations, [Variant(removed=frozenset(removed))])
    task.clock.progress.metric("result_held_out_loss", mean_loss(losses, task.activations.held_out_tokens), "nats")
    task.clock.progress.advance(1.0)
    task.clock.begin(Stage.SOLVE)
    return Pruning(removed=sorted(removed), candidates=candidates)
