"""Choose one window of neighbouring blocks: its calibration pass, and the choice by held-out loss."""

from collections.abc import Sequence
from dataclasses import dataclass

from replaceme_core.engine.activations.cut_sums import CutStatistics, Screen
from replaceme_core.engine.activations.tensor_store import HeldOutStreams
from replaceme_core.engine.methods.protocol import Task
from replaceme_core.engine.model.changes import Cut, windows
from replaceme_core.engine.selection.candidate import Candidate, chosen_row
from replaceme_core.engine.selection.choose import choose_by_loss
from replaceme_core.engine.selection.replay import held_out_judge
from replaceme_core.engine.selection.screening import Screening

SPARE = 2
"""Windows that get the fit tokens beyond those that are replayed: the screening's ranks are not the final ones."""
WELL_DETERMINED = 3
"""Tokens of half of the held-out text for each unknown of a column of the map: with fewer, maps rank windows badly."""


@dataclass(frozen=True, kw_only=True)
class WindowSums:
    """The sums of windows from one pass, and the dense streams where replays start."""

    statistics: list[CutStatistics]
    streams: HeldOutStreams

    def of(self, cut: Cut) -> CutStatistics:
        return next(one for one in self.statistics if one.cut == cut)


def sum_windows(task: Task, cuts: Sequence[Cut] | None = None, *, screen: Screen | None = None) -> WindowSums:
    """In one pass the sums of `cuts`, or of every window of `task.remove` blocks, or of those that `screen` keeps."""
    found = cuts or windows(len(task.block_runner.blocks), task.remove)
    statistics, streams = task.activations.windows(found, screen=screen)
    for one in statistics:
        one.diagonal = task.diagonal
    task.progress.metric("tokens", task.calibration_tokens, "tokens")
    task.progress.metric("sink_tokens", max(one.sinks for one in statistics), "tokens")
    return WindowSums(statistics=statistics, streams=streams)


def report_dense_loss(task: Task) -> None:
    """The held-out loss of the dense model, to compare that of the candidates with."""
    judge = held_out_judge(task.activations)
    task.progress.metric("dense_held_out_loss", judge.mean(judge.dense), "nats")


@dataclass(frozen=True, kw_only=True)
class WindowChoice:
    """The window that costs least after its fit: its sums, its losses by held-out batch, and the whole table."""

    winner: CutStatistics
    losses: list[float]
    candidates: list[Candidate]


@dataclass(frozen=True, kw_only=True)
class CalibratedWindows:
    """The sums of the windows that the screening has kept, and the rows of those that it has left out."""

    task: Task
    sums: WindowSums
    screening: Screening

    def choose(self, *, positions: int | None = None) -> WindowChoice:
        """The best window, by the loss at the first `positions` of each held-out sequence, or at all."""
        task, method = self.task, self.task.spec.method
        report_dense_loss(task)
        candidates, losses = choose_by_loss(
            task.block_runner,
            self.sums.statistics,
            self.sums.streams,
            judge=held_out_judge(task.activations, positions=positions),
            ridge=method.ridge,
            replays=method.replays,
            positions=positions,
            advance=task.progress.advance,
        )
        table = self.screening.table | {row.cut: row for row in candidates}
        winner = self.sums.of(chosen_row(candidates).cut)
        return WindowChoice(winner=winner, losses=losses, candidates=[table[cut] for cut in sorted(table)])


def calibrate_windows(task: Task) -> CalibratedWindows:
    """Windows that the held-out tokens show to be far behind are left out before the fit tokens are run."""
    method = task.spec.method
    screening = Screening(ridge=method.ridge, most=method.replays + SPARE, diagonal=task.diagonal)
    sums = sum_windows(task, screen=screening if _can_screen(task) else None)
    return CalibratedWindows(task=task, sums=sums, screening=screening)


def _can_screen(task: Task) -> bool:
    """Whether one half of the held-out tokens determines maps well enough to rank them on the other half."""
    held_out = task.tokens.held_out
    wanted = WELL_DETERMINED * task.block_runner.resolved.model.config.hidden_size
    return len(held_out) > 1 and held_out.numel() // 2 >= wanted
