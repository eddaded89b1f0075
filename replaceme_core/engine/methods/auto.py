"""The best of several ways for this model, by held-out score, within a time budget.

All read the streams of one dense pass, where these can be kept. One run of blocks is chosen with maps, and a few. The
one is refitted, and so are the few where they are far better with maps, which flatter them: they are taken if they are
better by more than 4 standard errors after a refit, too (docs/explanation/how-the-default-works.md). What comes
out is what the held-out tokens judged (docs/explanation/how-the-default-works.md). Where the refit is no better
than maps, the best window with its map takes part. With a time budget this window comes first: a step that is not
expected to end in time is not begun, which the result says; the window always is.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from replaceme_core.engine.methods.judge import Judge
from replaceme_core.engine.methods.least_squares import least_squares
from replaceme_core.engine.methods.refit import JudgedRefit, judge_refit
from replaceme_core.engine.methods.refit_choice import choose_runs, keeps_all, positions_for_choice
from replaceme_core.engine.methods.replay import held_out_judge
from replaceme_core.engine.methods.task import Candidate, PartOfStage, Pruning, Task
from replaceme_core.engine.model.allocator import release_memory
from replaceme_core.request.defaults import FAR_BETTER, REFIT_COST, RUNS_COST, VERDICT_ERRORS
from replaceme_core.request.method import Method, Selection
from replaceme_core.request.removal import block_ranges
from replaceme_core.runner.messages import Progress, Stage

WINDOW_PART = 0.25
"""Of the progress of the choice."""


def auto(task: Task) -> Pruning:
    """The result of the best way; its name is in `Pruning.method`, the losses of all are metrics."""
    if keeps_all(task):  # else each step makes a pass of its own
        task.activations.capture()
    task.begin(Stage.SELECT)
    budget = _Budget(task.spec.method.time_budget_seconds)
    judge = held_out_judge(task.activations, recall=True)
    contenders, maps = find_contenders(task, judge, budget)
    release_memory()
    task.begin(Stage.SOLVE)
    best = _best_refit(task, judge, budget, contenders)
    if best is not None:
        blocks, fitted = best
        score = judge.score(fitted.pruning.held_out_losses)
        if maps is None and score >= blocks.score:
            maps = _with_least_squares(task, progress=PartOfStage(task.progress, start=1.0, end=1.0))
        if maps is None or score < judge.score(maps.held_out_losses):
            return replace(fitted.scaled(), method=str(Method.REFIT), left_out=budget.left_out)
    assert maps is not None, "without a budget some blocks are refitted"
    return replace(maps, method=str(Method.LEAST_SQUARES), left_out=budget.left_out)


@dataclass(frozen=True, kw_only=True)
class Contender:
    """Blocks to remove, the table that explains them, and their score with maps alone."""

    removed: list[int]
    candidates: Sequence[Candidate]
    score: float


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


def find_contenders(task: Task, judge: Judge, budget: _Budget) -> tuple[list[Contender], Pruning | None]:
    """The sets of blocks to refit, chosen with maps alone; and the best window with its map, where that came first."""
    maps, contenders = None, list[Contender]()
    is_named = task.spec.drop is not None
    if is_named or budget.seconds is not None:
        maps = _with_least_squares(task, progress=PartOfStage(task.progress, start=0.0, end=WINDOW_PART))
        score = _report(task, judge, "least_squares", maps.held_out_losses)
        contenders = [Contender(removed=list(maps.removed), candidates=maps.candidates, score=score)]
        budget.first_step_ended()
    if not is_named and budget.allows(RUNS_COST, "the choice of runs of blocks"):
        part = PartOfStage(task.progress, start=0.0 if maps is None else WINDOW_PART, end=1.0)
        contenders = _runs(task, judge, progress=part, windows=() if maps is None else maps.candidates)
    return contenders, maps


def _runs(task: Task, judge: Judge, *, progress: Progress, windows: Sequence[Candidate]) -> list[Contender]:
    """One run of blocks; then several, where these are far better with maps."""
    found = list[Contender]()
    for choice in reversed(choose_runs(_as(task, Method.REFIT, progress=progress))):
        score = _report(task, judge, block_ranges(choice.removed), choice.losses)
        if not found or score < found[0].score - FAR_BETTER:
            table = _one_row_each(windows, choice.candidates)
            found.append(Contender(removed=choice.removed, candidates=table, score=score))
    return found


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


def _best_refit(
    task: Task, judge: Judge, budget: _Budget, contenders: Sequence[Contender]
) -> tuple[Contender, JudgedRefit] | None:
    """The refit of the first of the contenders that the budget allows, or of a later one that is surely better."""
    best, count = None, len(contenders)
    for number, blocks in enumerate(contenders):
        ranges = block_ranges(blocks.removed)
        if not budget.allows(REFIT_COST, f"the refit without blocks {ranges}"):
            continue
        part = PartOfStage(task.progress, start=number / count, end=(number + 1) / count)
        fitted = judge_refit(_as(task, Method.REFIT, progress=part), blocks.removed, blocks.candidates)
        losses = fitted.pruning.held_out_losses
        _report(task, judge, f"refit of {ranges}", losses)
        if best is None or judge.is_worse(best[1].pruning.held_out_losses, than=losses, certainty=VERDICT_ERRORS):
            best = blocks, fitted
    return best


def _with_least_squares(task: Task, *, progress: Progress) -> Pruning:
    """The named blocks or the best window, with maps."""
    return least_squares(_as(task, Method.LEAST_SQUARES, progress=progress), positions=positions_for_choice(task))


def _as(task: Task, method: Method, *, progress: Progress) -> Task:
    """The task with the settings of one step, which has no stages of its own."""
    own = task.spec.method.model_copy(update={"name": method, "selection": Selection.WINDOW})
    spec = task.spec.model_copy(update={"method": own})
    return replace(task, spec=spec, progress=progress, begin=lambda stage: None)


def _report(task: Task, judge: Judge, name: str, losses: Sequence[float]) -> float:
    """Report what a step came to; returns its score."""
    score = judge.score(losses)
    task.progress.metric("held_out_loss", judge.mean(losses), "nats", candidate=name)
    task.progress.metric("held_out_score", score, "log ratio", candidate=name)
    return score
