"""The default: blocks are chosen by what the model is worth that is delivered, within a time budget.

Sets of blocks, one run of neighbours or two, are ranked with a map in place of each run, from the streams of one dense
pass. The best of them race as refits on a part of the text; of those that are not worse than the best by more than one
standard error the simplest is refitted on all of it, and is the result, as it was judged, unless maps alone are as good
(docs/explanation/method.md#the-race). With a time budget a refit that is not expected to end in time is not
begun, which is reported; what the maps come to is always there.
"""

import time
from dataclasses import replace
from functools import partial

from replaceme_core.engine.activations.capture import Losses
from replaceme_core.engine.methods.candidates import Blocks, MappedSets, first_lap, search
from replaceme_core.engine.methods.least_squares import fit_cut, fit_named
from replaceme_core.engine.methods.panel import Panel
from replaceme_core.engine.methods.refit import JudgedRefit, refit_without
from replaceme_core.engine.methods.task import Candidate, Pruning, Task
from replaceme_core.engine.model.allocator import release_memory
from replaceme_core.engine.model.changes import runs
from replaceme_core.request.defaults import RACE_PART, RACING
from replaceme_core.request.method import Method
from replaceme_core.request.removal import block_ranges
from replaceme_core.runner.messages import Stage

RACE_TIME = 0.5
"""Of the progress of the stage."""


def auto(task: Task) -> Pruning:
    """The best way for this model; its name is in `Pruning.method`, the held-out losses of all are metrics."""
    task.require_rank()
    budget = _Budget(seconds=task.spec.method.time_budget_seconds)
    ranked = search(task)
    release_memory()
    task.begin(Stage.SOLVE)
    blocks, result = _race(task, ranked, budget), None
    if blocks is not None and budget.allows(1, f"the refit without blocks {block_ranges(blocks)}"):
        step = replace(task, progress=task.progress.part(RACE_TIME, 1.0))
        fitted = refit_without(step, blocks, fit=task.activations.fit_batches)
        fitted = replace(fitted, task=task)  # which reports its metrics
        if ranked.panel.is_worse(ranked.tried[ranked.best], fitted.losses):  # else maps, which are simpler, are as good
            result = replace(fitted.finished(_table(ranked, fitted)), method=str(Method.REFIT))
    if result is None:
        result = replace(_with_maps(task, ranked), method=str(Method.LEAST_SQUARES))
    return replace(result, left_out=budget.left_out)


def _with_maps(task: Task, ranked: MappedSets) -> Pruning:
    """The best set with its maps, fitted on all the text."""
    quiet = replace(task, progress=task.progress.part(1.0, 1.0), begin=lambda stage, **_: None)
    found = fit_named(quiet, ranked.best, partial(fit_cut, ridge=task.spec.method.ridge))
    return replace(found, candidates=ranked.table(ranked.best, found.candidates))


def _contenders(ranked: MappedSets) -> list[Blocks]:
    """Of each number of runs those that are best with maps, which flatter several runs: each has a map of its own."""
    found = list[Blocks]()
    for blocks in ranked.best_first:
        if sum(len(runs(other)) == len(runs(blocks)) for other in found) < RACING:
            found.append(blocks)
    return found


def _race(task: Task, ranked: MappedSets, budget: "_Budget") -> Blocks | None:
    """The set that wins as a refit on a part of the text; `None` where there is no time for any.

    That is the one with the fewest runs of those that are not worse than the best by more than one standard error.
    """
    contenders, losses = _contenders(ranked), dict[Blocks, Losses]()
    if len(contenders) == 1:
        return contenders[0]
    panel = ranked.panel
    for number, blocks in enumerate(contenders):
        name = f"the refit without blocks {block_ranges(blocks)} on a part of the text"
        if budget.allows(RACE_PART, name):
            start, end = (RACE_TIME * place / len(contenders) for place in (number, number + 1))
            step = replace(task, progress=task.progress.part(start, end))
            losses[blocks] = refit_without(step, blocks, fit=first_lap(task), judged=panel.batches).losses
            task.progress.metric("held_out_loss", panel.mean(losses[blocks]), panel.unit, candidate=name)
    simplest_first = sorted(losses, key=lambda blocks: (len(runs(blocks)), panel.mean(losses[blocks])))
    return simplest_first[panel.simplest([losses[blocks] for blocks in simplest_first])] if losses else None


def _table(ranked: MappedSets, fitted: JudgedRefit) -> list[Candidate]:
    """With the losses after the refit in the rows of the set that was refitted."""
    panel, blocks = Panel.of(fitted.task.activations), tuple(fitted.pruning.removed)
    return ranked.table(blocks, [panel.row(row, fitted.losses) for row in ranked.rows_of(blocks)])


class _Budget:
    """Seconds that may be spent, from now on; `None`: no limit. `left_out` are the steps that were not allowed.

    A refit on all the text is expected to take as long as the one before it, for its part of the text; the first one as
    long as all until then.
    """

    def __init__(self, *, seconds: float | None) -> None:
        self._seconds, self.left_out = seconds, list[str]()
        self._began = self._last = time.monotonic()
        self._part = 1.0

    def allows(self, part: float, step: str) -> bool:
        """Whether a refit on this part of the text is expected to end in time; then it begins now."""
        now = time.monotonic()
        if self._seconds is None or now - self._began + part * (now - self._last) / self._part <= self._seconds:
            self._last, self._part = now, part
            return True
        self.left_out.append(step)
        return False
