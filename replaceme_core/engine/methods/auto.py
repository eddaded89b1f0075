"""The best of several ways for this model, by held-out score, within a time budget.

All read the streams of one dense pass, where these can be kept. One run of blocks is chosen with maps, and a few. The
one is refitted. The few are refitted if they are far better with maps, which flatter them, and chosen if they are
better by more than 4 standard errors after the refit (docs/explanation/how-the-default-works.md). The result is the fit
that the held-out tokens judged, without a second fit on all tokens. If the refit is no better than maps, the best
window with its map takes part. With a time budget this window comes first: a step that is not expected to end in time
is not begun, which the result says; the window always is.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from replaceme_core.engine.methods import least_squares
from replaceme_core.engine.methods.protocol import Calibrated, Pruning, Selected, Task
from replaceme_core.engine.methods.refit import method as refit
from replaceme_core.engine.methods.refit.part_of_text import keeps_all, positions_for_choice
from replaceme_core.engine.model.allocator import release_memory
from replaceme_core.engine.selection.candidate import Candidate
from replaceme_core.engine.selection.judge import BEYOND_DOUBT, Judge
from replaceme_core.engine.selection.replay import held_out_judge
from replaceme_core.request.method import Method, Selection
from replaceme_core.request.removal import block_ranges
from replaceme_core.runner.eta import PartOfStage
from replaceme_core.runner.messages import Progress

RUNS_COST, REFIT_COST = 2.0, 2.0
"""The time that these steps are expected to take, in multiples of that of the window."""
WINDOW_PART = 0.25
"""Of the progress of the choice."""
FAR_BETTER = 0.1
"""Difference of scores with maps up to which one run is as good as several after a refit: each run has a map, and a
refit has none (docs/explanation/how-the-default-works.md#runs)."""


def calibrate(task: Task) -> Calibrated:
    """The result of the best way; its name is in `Pruning.method`, the losses of all are metrics."""
    if keeps_all(task):  # else each step makes a pass of its own
        task.activations.capture()
    return _Calibrated(task=task)


@dataclass(frozen=True, kw_only=True)
class _Calibrated(Calibrated):
    task: Task

    def select(self) -> "_Selected":
        """Choose the sets of blocks to refit, with maps alone."""
        task, budget = self.task, _Budget(self.task.spec.method.time_budget_seconds)
        judge, maps, contenders = held_out_judge(task.activations, recall=True), None, list[_Blocks]()
        is_named = task.spec.drop is not None
        if is_named or budget.seconds is not None:
            maps = _with_least_squares(task, progress=PartOfStage(task.progress, start=0.0, end=WINDOW_PART))
            score = _report(task, judge, "least_squares", maps)
            contenders = [_Blocks(removed=list(maps.removed), candidates=maps.candidates, score=score)]
            budget.first_step_ended()
        if not is_named and budget.allows(RUNS_COST, "the choice of runs of blocks"):
            part = PartOfStage(task.progress, start=0.0 if maps is None else WINDOW_PART, end=1.0)
            contenders = self._runs(judge, progress=part, windows=() if maps is None else maps.candidates)
        release_memory()
        return _Selected(task=task, judge=judge, budget=budget, maps=maps, contenders=contenders)

    def _runs(self, judge: Judge, *, progress: Progress, windows: Sequence[Candidate]) -> "list[_Blocks]":
        """One run of blocks; then several, where these are far better with maps."""
        found = list[_Blocks]()
        for choice in reversed(refit.choose_runs(_as(self.task, Method.REFIT, progress=progress))):
            score = judge.score(choice.losses)
            _report_metrics(self.task, block_ranges(choice.removed), loss=judge.mean(choice.losses), score=score)
            if not found or score < found[0].score - FAR_BETTER:
                table = _one_row_each(windows, choice.candidates)
                found.append(_Blocks(removed=choice.removed, candidates=table, score=score))
        return found


@dataclass(frozen=True, kw_only=True)
class _Selected(Selected):
    """The `contenders` are refitted; the first is taken unless another is better by 4 standard errors.

    `maps` is the result of the window with a map; `None`: found where it is needed.
    """

    task: Task
    judge: Judge
    budget: "_Budget"
    maps: Pruning | None
    contenders: "Sequence[_Blocks]"

    def solve(self) -> Pruning:
        """The best of the maps and the refits, judged on held-out tokens."""
        task, judge, maps, left_out = self.task, self.judge, self.maps, self.budget.left_out
        best = self._refitted()
        if best is not None:
            blocks, fitted = best
            score = judge.score(fitted.pruning.held_out_losses)
            if maps is None and score >= blocks.score:
                maps = _with_least_squares(task, progress=PartOfStage(task.progress, start=1.0, end=1.0))
            if maps is None or score < judge.score(maps.held_out_losses):
                return replace(fitted.scaled(), method=str(Method.REFIT), left_out=left_out)
        assert maps is not None, "without a budget some blocks are refitted"
        return replace(maps, method=str(Method.LEAST_SQUARES), left_out=left_out)

    def _refitted(self) -> "tuple[_Blocks, refit.RefitJudged] | None":
        """The best of the contenders that the budget allows to refit."""
        best, count = None, len(self.contenders)
        for number, blocks in enumerate(self.contenders):
            ranges = block_ranges(blocks.removed)
            if not self.budget.allows(REFIT_COST, f"the refit without blocks {ranges}"):
                continue
            part = PartOfStage(self.task.progress, start=number / count, end=(number + 1) / count)
            own = _as(self.task, Method.REFIT, progress=part)
            fitted = refit.RefitSelected(task=own, removed=blocks.removed, candidates=list(blocks.candidates)).judge()
            _report(self.task, self.judge, f"refit of {ranges}", fitted.pruning)
            losses = fitted.pruning.held_out_losses
            if best is None or self.judge.is_worse(
                best[1].pruning.held_out_losses, than=losses, certainty=BEYOND_DOUBT
            ):
                best = blocks, fitted
        return best


@dataclass(frozen=True, kw_only=True)
class _Blocks:
    """Blocks to remove, the table that explains them, and their score with maps alone."""

    removed: list[int]
    candidates: Sequence[Candidate]
    score: float


def _one_row_each(windows: Sequence[Candidate], runs: Sequence[Candidate]) -> list[Candidate]:
    """The rows of both; a window that is among `runs` has one row, with what was measured of it before."""
    measured = {row.cut: row for row in windows}
    tried = {row.cut for row in runs}
    rows = [
        replace(row, distance=before.distance, residual=before.residual, ridge=before.ridge, tokens=before.tokens)
        if (before := measured.get(row.cut)) is not None
        else row
        for row in runs
    ]
    return [*(replace(row, chosen=False) for row in windows if row.cut not in tried), *rows]


@dataclass
class _Budget:
    """Seconds that may be spent, from now on; `None`: no limit. `left_out` are the steps that were not allowed."""

    seconds: float | None
    left_out: list[str] = field(default_factory=list)
    began: float = field(default_factory=lambda: time.monotonic())
    first: float = 0.0

    def first_step_ended(self) -> None:
        """Costs are multiples of the time until now."""
        self.first = time.monotonic() - self.began

    def allows(self, cost: float, step: str) -> bool:
        """Whether `step` is expected to end in time."""
        if self.seconds is None or time.monotonic() - self.began + cost * self.first <= self.seconds:
            return True
        self.left_out.append(step)
        return False


def _with_least_squares(task: Task, *, progress: Progress) -> Pruning:
    """The named blocks or the best window, with maps."""
    own = _as(task, Method.LEAST_SQUARES, progress=progress)
    found = least_squares.calibrate(own, positions=positions_for_choice(task))
    selected = found.select() if isinstance(found, Calibrated) else found
    return selected.solve()


def _as(task: Task, method: Method, *, progress: Progress) -> Task:
    """The task with the settings of one step."""
    own = task.spec.method.model_copy(update={"name": method, "selection": Selection.WINDOW})
    return replace(task, spec=task.spec.model_copy(update={"method": own}), progress=progress)


def _report(task: Task, judge: Judge, name: str, found: Pruning) -> float:
    """Report what a step came to; returns its score."""
    score = judge.score(found.held_out_losses)
    _report_metrics(task, name, loss=judge.mean(found.held_out_losses), score=score)
    return score


def _report_metrics(task: Task, name: str, *, loss: float, score: float) -> None:
    task.progress.metric("held_out_loss", loss, "nats", candidate=name)
    task.progress.metric("held_out_score", score, "log ratio", candidate=name)
