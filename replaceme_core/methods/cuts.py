"""What methods share that remove runs of neighbouring blocks."""

from collections.abc import Callable, Sequence

import torch

from replaceme_core.methods.protocol import Pruning, Task
from replaceme_core.modeling.capture import (
    Cut,
    CutStatistics,
    FittedCut,
    HeldOutStreams,
    windows,
)
from replaceme_core.modeling.choose import Candidate
from replaceme_core.numerics.solve import check_rank
from replaceme_core.progress import Stage


def runs(drop: Sequence[int]) -> list[Cut]:
    """Neighbouring blocks together, in order.

    >>> [str(cut) for cut in runs([3, 12, 13])]
    ['3-3', '12-13']
    """
    cuts: list[Cut] = []
    for block in sorted(drop):
        if cuts and cuts[-1].end == block - 1:
            cuts[-1] = Cut(start=cuts[-1].start, end=block)
        else:
            cuts.append(Cut(start=block, end=block))
    return cuts


def pruning(folds: Sequence[FittedCut], candidates: Sequence[Candidate]) -> Pruning:
    """What removes exactly the cuts of `folds`."""
    removed = sorted(block for one in folds for block in one.cut.blocks)
    return Pruning(removed=removed, folds=folds, candidates=candidates)


def require_rank(task: Task) -> None:
    """Raises `CalibrationTooSmall` if the fit tokens cannot determine a map."""
    resolved = task.blockwise.resolved
    check_rank(tokens=task.tokens.fit.numel(), width=resolved.model.config.hidden_size, structure=resolved.structure)


def capture_all_windows(task: Task) -> tuple[list[CutStatistics], HeldOutStreams]:
    """The statistics of every window of `task.remove` blocks from one pass; begins the stage `select`."""
    statistics, streams = task.captured.windows(windows(len(task.blockwise.blocks), task.remove))
    progress = task.clock.progress
    progress.metric("tokens", task.tokens.fit.numel() + task.tokens.held_out.numel(), "tokens")
    progress.metric("sink_tokens", max(one.sinks for one in statistics), "tokens")
    task.clock.begin(Stage.SELECT)
    progress.metric("dense_held_out_loss", task.captured.dense_loss(streams), "nats")
    return statistics, streams


Fit = Callable[[CutStatistics], tuple[float | None, float, torch.Tensor]]
"""The ridge, the residual on held-out tokens and the change of the map."""


def fit_in_order(task: Task, cuts: Sequence[Cut], fit: Fit) -> Pruning:
    """Every cut is fitted on the prefix pruned so far, toward the dense model's stream at its end.

    Fitted on the unpruned model, later maps would get inputs that they never meet.
    """
    done: list[FittedCut] = []
    candidates: list[Candidate] = []
    for index, cut in enumerate(cuts):
        statistics = task.captured.statistics(cut, done=done)
        if index == 0:
            task.clock.begin(Stage.SOLVE)  # the passes of further cuts need the maps before them
        ridge, residual, delta = fit(statistics)
        done.append(FittedCut(cut=cut, delta=delta))
        candidates.append(
            Candidate(
                start=cut.start,
                end=cut.end,
                distance=statistics.angle.value,
                residual=residual,
                ridge=ridge,
                chosen=True,
            )
        )
    return pruning(done, candidates)
