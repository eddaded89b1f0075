"""Removal of the blocks of least influence, wherever they are (ShortGPT, arXiv 2403.03853)."""

from dataclasses import dataclass

from replaceme_core.engine.activations.capture import capture_distances
from replaceme_core.engine.methods.protocol import Calibrated, Decided, Task
from replaceme_core.engine.methods.removal import plain_removal
from replaceme_core.engine.model.changes import Cut
from replaceme_core.engine.numerics.stream import MeanAngle
from replaceme_core.engine.selection.candidate import Candidate


def calibrate(task: Task) -> Calibrated:
    """The named blocks, or those across which the stream changes its direction least: BI = 1 - mean cos(X_i, X_i+1)."""
    blocks = range(1, len(task.block_runner.blocks)) if task.spec.drop is None else task.spec.drop
    angles, _ = capture_distances(task.activations, [Cut(start=block, end=block) for block in blocks])
    task.progress.metric("tokens", task.calibration_tokens, "tokens")
    return _Calibrated(task=task, angles=angles)


@dataclass(frozen=True, kw_only=True)
class _Calibrated(Calibrated):
    task: Task
    angles: dict[Cut, MeanAngle]

    def select(self) -> Decided:
        influence = {cut.start: angle.influence for cut, angle in self.angles.items()}
        removed = sorted(sorted(influence, key=lambda block: influence[block])[: self.task.remove])
        candidates = [
            Candidate(
                start=cut.start,
                end=cut.end,
                distance=angle.value,
                influence=angle.influence,
                chosen=cut.start in removed,
            )
            for cut, angle in self.angles.items()
        ]
        return plain_removal(self.task, removed, candidates)
