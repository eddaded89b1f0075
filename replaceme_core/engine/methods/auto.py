"""The default: blocks are chosen by what the model is worth that is delivered, within a time budget.

Sets of blocks, one run of neighbours or two, are ranked with a map in place of each run, from the streams of one dense
pass. The best of them race as refits on a part of the text; of those that are not worse than the best by more than one
standard error the simplest is refitted on all of it, and is the result, as it was judged, unless maps alone are as good
(docs/explanation/how-the-default-works.md#race). With a time budget a refit that is not expected to end in time is not
begun, which is reported; what the maps come to is always there.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from replaceme_core.engine.methods.candidates import search, stored
from replaceme_core.engine.methods.least_squares import least_squares
from replaceme_core.engine.methods.panel import Panel
from replaceme_core.engine.methods.refit import JudgedRefit, refit_without
from replaceme_core.engine.methods.task import Candidate, PartOfStage, Pruning, Task
from replaceme_core.engine.methods.windows import Cuts, Ranked, Tried
from replaceme_core.engine.model.allocator import release_memory
from replaceme_core.engine.model.changes import runs
from replaceme_core.request.defaults import RACE_PART, RACING, REFIT_COST
from replaceme_core.request.method import Method
from replaceme_core.request.removal import block_ranges
from replaceme_core.runner.messages import Stage

RACE_TIME = 0.5
"""Of the progress of the stage."""


def auto(task: Task) -> Pruning:
    """The best way for this model; its name is in `Pruning.method`, the held-out losses of all are metrics."""
    task.require_rank()
    budget = _Budget(seconds=task.spec.method.time_budget_seconds)
    with stored(task) as choosing:
        ranked = _named(choosing) if task.spec.drop is not None else search(choosing)
    budget.first_step_ended()
    release_memory()
    task.begin(Stage.SOLVE)
    cuts, result = _race(task, ranked, budget), None
    if cuts is not None and budget.allows(1, f"the refit without blocks {block_ranges(_blocks(cuts))}"):
        step = replace(task, progress=PartOfStage(task.progress, start=RACE_TIME, end=1.0))
        fitted = refit_without(step, _blocks(cuts), fit=task.activations.fit_batches)
        fitted = replace(fitted, task=task)  # which reports its metrics
        if not _maps_do(ranked, fitted, task):
            result = replace(fitted.finished(_table(ranked, cuts, fitted)), method=str(Method.REFIT))
    if result is None:
        result = replace(_with_maps(task, ranked), method=str(Method.LEAST_SQUARES))
    return replace(result, left_out=budget.left_out)


def _blocks(cuts: Cuts) -> list[int]:
    return [block for cut in cuts for block in cut.blocks]


def _named(task: Task) -> Ranked:
    """The named blocks, with maps."""
    found = least_squares(replace(task, begin=lambda stage, **_: None))
    cuts = tuple(runs(found.removed))
    return Ranked(tried={cuts: Tried(losses=found.held_out_losses, rows=found.candidates)})


def _maps_do(ranked: Ranked, fitted: JudgedRefit, task: Task) -> bool:
    """Whether the best set with its maps, the simpler result, is not worse than the refit."""
    every = task.activations.held_out_batches
    numbers = every if ranked.judging is None else ranked.judging
    same = [fitted.losses[number - every.start] for number in numbers]
    return not Panel.of(task.activations, numbers=numbers).is_worse(ranked.tried[ranked.best].losses, same)


def _with_maps(task: Task, ranked: Ranked) -> Pruning:
    """The best set with its maps, fitted on all the text."""
    spec = task.spec.model_copy(update={"drop": tuple(_blocks(ranked.best))})
    quiet = PartOfStage(task.progress, start=1.0, end=1.0)
    found = least_squares(replace(task, spec=spec, progress=quiet, begin=lambda stage, **_: None))
    return replace(found, candidates=ranked.table(ranked.best, found.candidates))


def _contenders(ranked: Ranked) -> list[Cuts]:
    """Of each number of runs those that are best with maps, which flatter several runs: each has a map of its own."""
    found = list[Cuts]()
    for cuts in ranked.tried:
        if sum(len(other) == len(cuts) for other in found) < RACING:
            found.append(cuts)
    return found


def _race(task: Task, ranked: Ranked, budget: "_Budget") -> Cuts | None:
    """The set that wins as a refit on a part of the text; `None` where there is no time for any.

    That is the one with the fewest runs of those that are not worse than the best by more than one standard error.
    """
    contenders, losses = _contenders(ranked), dict[Cuts, Sequence[float]]()
    if len(contenders) == 1:
        return contenders[0]
    panel, batches = Panel.of(task.activations), task.activations.fit_batches
    part = batches[: max(1, round(RACE_PART * len(batches)))]
    for number, cuts in enumerate(contenders):
        name = f"the refit without blocks {block_ranges(_blocks(cuts))} on a part of the text"
        if budget.allows(RACE_PART, name):
            start, end = (RACE_TIME * place / len(contenders) for place in (number, number + 1))
            step = replace(task, progress=PartOfStage(task.progress, start=start, end=end))
            losses[cuts] = refit_without(step, _blocks(cuts), fit=part).losses  # its weights are in memory no longer
            task.progress.metric("held_out_loss", panel.mean(losses[cuts]), "nats", candidate=name)
    simplest_first = sorted(losses, key=lambda cuts: (len(cuts), panel.mean(losses[cuts])))
    return simplest_first[panel.simplest([losses[cuts] for cuts in simplest_first])] if losses else None


def _table(ranked: Ranked, cuts: Cuts, fitted: JudgedRefit) -> list[Candidate]:
    """With the losses after the refit in the rows of the set that was refitted."""
    panel = Panel.of(fitted.task.activations)
    mean, by_source = panel.mean(fitted.losses), panel.by_source(fitted.losses)
    rows = [replace(row, held_out_loss=mean, source_losses=by_source) for row in ranked.tried[cuts].rows]
    return ranked.table(cuts, rows)


@dataclass(kw_only=True)
class _Budget:
    """Seconds that may be spent, from now on; `None`: no limit. `left_out` are the steps that were not allowed."""

    seconds: float | None
    left_out: list[str] = field(default_factory=list)
    began: float = field(default_factory=lambda: time.monotonic())
    first: float = 0.0

    def first_step_ended(self) -> None:
        """Costs are multiples of the time until now."""
        self.first = time.monotonic() - self.began

    def allows(self, part: float, step: str) -> bool:
        """Whether a refit on this part of the text is expected to end in time."""
        spent = time.monotonic() - self.began
        if self.seconds is None or spent + part * REFIT_COST * self.first <= self.seconds:
            return True
        self.left_out.append(step)
        return False
