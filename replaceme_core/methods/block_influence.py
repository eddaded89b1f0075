"""The blocks of least influence go, wherever they stand, and nothing takes their place (ShortGPT, arXiv 2403.03853)."""

from replaceme_core.activations.distances import capture_distances
from replaceme_core.methods.protocol import Pruning, Task
from replaceme_core.methods.removal import plain_removal
from replaceme_core.models.cut import Cut
from replaceme_core.runner.messages import Stage
from replaceme_core.selection.choose import Candidate


def block_influence(task: Task) -> Pruning:
    """The named blocks, or those across which the stream turns least: BI = 1 - mean cos(X_i, X_i+1)."""
    blocks = range(1, len(task.block_runner.blocks)) if task.spec.drop is None else task.spec.drop
    angles, _ = capture_distances(task.activations, [Cut(start=block, end=block) for block in blocks])
    task.clock.progress.metric("tokens", task.tokens.fit.numel() + task.tokens.held_out.numel(), "tokens")
    task.clock.begin(Stage.SELECT)
    influence = {cut.start: angle.influence for cut, angle in angles.items()}
    removed = sorted(sorted(influence, key=lambda block: influence[block])[: task.remove])
    candidates = [
        Candidate(
            start=cut.start,
            end=cut.end,
            distance=angle.value,
            influence=angle.influence,
            chosen=cut.start in removed,
        )
        for cut, angle in angles.items()
    ]
    return plain_removal(task, removed, candidates)
