"""Plain removal of the window of least angular distance (UIDL, arXiv 2403.17887)."""

from dataclasses import dataclass

from replaceme_core.engine.activations.capture import capture_distances
from replaceme_core.engine.methods.cuts import runs
from replaceme_core.engine.methods.protocol import Calibrated, Decided, Task
from replaceme_core.engine.methods.removal import plain_removal
from replaceme_core.engine.model.changes import Cut, windows
from replaceme_core.engine.numerics.stream import MeanAngle
from replaceme_core.engine.selection.candidate import Candidate


def calibrate(task: Task) -> Calibrated:
    """The named blocks, or the window whose ends are nearest. No sums: there is no map that would need them."""
    named, blocks = task.spec.drop, len(task.block_runner.blocks)
    cuts = task.activations.allowed(windows(blocks, task.remove)) if named is None else runs(named)
    angles, _ = capture_distances(task.activations, cuts)
    task.progress.metric("tokens", task.calibration_tokens, "tokens")
    return _Calibrated(task=task, angles=angles)


@dataclass(frozen=True, kw_only=True)
class _Calibrated(Calibrated):
    task: Task
    angles: dict[Cut, MeanAngle]

    def select(self) -> Decided:
        distances = {cut: angle.value for cut, angle in self.angles.items()}
        nearest = min(distances, key=lambda cut: distances[cut])
        chosen = list(distances) if self.task.spec.drop is not None else [nearest]
        candidates = [
            Candidate(start=cut.start, end=cut.end, distance=distance, chosen=cut in chosen)
            for cut, distance in distances.items()
        ]
        removed = [block for cut in chosen for block in cut.blocks]
        return plain_removal(self.task, removed, candidates)
