"""The best of several methods for this model, by held-out loss, within a time budget.

All contenders read the streams of one dense pass, where these can be kept. They run in the order of what they cost, and
each is judged by the loss of a fit that has seen no held-out token. One that is not expected to end within the budget
is not begun; the first always runs.
"""

import time
from dataclasses import dataclass, replace

from replaceme_core.methods.least_squares import least_squares
from replaceme_core.methods.protocol import Pruning, PruningMethod, Task
from replaceme_core.methods.refit.method import from_all_tokens, judged_refit
from replaceme_core.methods.refit.part_of_text import keeps_all
from replaceme_core.results.stage_clock import StageClock
from replaceme_core.runner.messages import Progress, Stage
from replaceme_core.spec import CompressionSpec, Method, Selection


@dataclass(frozen=True, kw_only=True)
class Contender:
    """A method with its settings. `cost`: what it is expected to take, in times of what the first one took."""

    method: Method
    run: PruningMethod
    cost: float
    selection: Selection = Selection.WINDOW


CONTENDERS = (
    Contender(method=Method.LEAST_SQUARES, run=least_squares, cost=1.0),
    Contender(method=Method.REFIT, run=judged_refit, cost=2.0),
    Contender(method=Method.REFIT, run=judged_refit, cost=6.0, selection=Selection.ONE_BY_ONE),
)


def auto(task: Task) -> Pruning:
    """What the best contender says; its name is in `Pruning.method`, the losses of all are metrics."""
    if keeps_all(task):  # else each contender makes a pass of its own
        task.activations.capture()
    task.clock.begin(Stage.SELECT)
    began, budget = time.monotonic(), task.spec.method.time_budget_seconds
    best: Pruning | None = None
    first = 0.0
    for number, contender in enumerate(_contenders(task)):
        spent = time.monotonic() - began
        if best is not None and budget is not None and spent + contender.cost * first > budget:
            continue
        found = contender.run(_subtask(task, contender, share=(number / len(CONTENDERS), 1 / len(CONTENDERS))))
        first = first or time.monotonic() - began
        name = f"{contender.method}, {contender.selection}" if contender.method is Method.REFIT else contender.method
        found = replace(found, method=str(contender.method), held_out_loss=_loss(found))
        task.clock.progress.metric("held_out_loss", _loss(found), "nats", candidate=name)
        best = found if best is None else min(best, found, key=_loss)
    task.clock.begin(Stage.SOLVE)
    assert best is not None, "the first contender always runs"
    return from_all_tokens(task, best) if best.method == Method.REFIT else best


def _loss(pruning: Pruning) -> float:
    if pruning.held_out_loss is not None:
        return pruning.held_out_loss
    found = [row.held_out_loss for row in pruning.candidates if row.chosen and row.held_out_loss is not None]
    assert found, "a contender must say what its result is worth"
    return found[-1]


def _contenders(task: Task) -> list[Contender]:
    """Where the blocks are named, ways to choose them make no difference."""
    named = task.spec.drop is not None
    return [one for one in CONTENDERS if not named or one.selection is Selection.WINDOW]


def _subtask(task: Task, contender: Contender, *, share: tuple[float, float]) -> Task:
    method = task.spec.method.model_copy(update={"name": contender.method, "selection": contender.selection})
    clock = StageClock(progress=_Share(task.clock.progress, *share), device=task.clock.device)
    return replace(task, spec=task.spec.model_copy(update={"method": method}), clock=clock)


class _Share(Progress):
    """Reports the stages of one contender as a part of the present stage."""

    def __init__(self, progress: Progress, start: float, width: float) -> None:
        self._progress = progress
        self._start = start
        self._width = width
        self._stages = [Stage.CALIBRATE, Stage.SELECT, Stage.SOLVE]
        self._stage = Stage.CALIBRATE

    def resolved(self, spec: CompressionSpec) -> None:
        """Its settings are those of the contender, not of the job."""

    def stage(self, stage: Stage, *, resumed_from: Stage | None = None) -> None:
        self._stage = stage
        self.advance(0.0)

    def advance(self, fraction: float) -> None:
        done = (self._stages.index(self._stage) + fraction) / len(self._stages)
        self._progress.advance(self._start + self._width * done)

    def metric(
        self, name: str, value: float, unit: str, *, block: int | None = None, candidate: str | None = None
    ) -> None:
        """Seconds and memory of its stages are within those of the job's."""
