"""The best of several methods for this model, by held-out loss, within a time budget.

All contenders read the streams of one dense pass, where these can be kept. They run in the order of their cost, and
each is judged by the loss of a fit that has seen no held-out token. One that is not expected to end within the budget
is not started; the first always runs.
"""

import time
from dataclasses import dataclass, replace

from replaceme_core.method_traits import Method
from replaceme_core.methods import least_squares
from replaceme_core.methods.protocol import Calibrated, Pruning, PruningMethod, Selected, Task
from replaceme_core.methods.refit import method as refit
from replaceme_core.methods.refit.part_of_text import keeps_all
from replaceme_core.models.allocator import release_memory
from replaceme_core.runner.messages import Progress, Stage
from replaceme_core.spec import CompressionSpec, Selection


@dataclass(frozen=True, kw_only=True)
class Contender:
    """A method with its settings. `cost`: the time that it is expected to take, in multiples of the first one's."""

    method: Method
    calibrate: PruningMethod
    cost: float
    selection: Selection = Selection.WINDOW


CONTENDERS = (
    Contender(method=Method.LEAST_SQUARES, calibrate=least_squares.calibrate, cost=1.0),
    Contender(method=Method.REFIT, calibrate=refit.calibrate, cost=2.0),
    Contender(method=Method.REFIT, calibrate=refit.calibrate, cost=6.0, selection=Selection.ONE_BY_ONE),
)


def calibrate(task: Task) -> Calibrated:
    """The result of the best contender; its name is in `Pruning.method`, the losses of all are metrics."""
    if keeps_all(task):  # else each contender makes a pass of its own
        task.activations.capture()
    return _Calibrated(task=task)


@dataclass(frozen=True, kw_only=True)
class _Calibrated(Calibrated):
    task: Task

    def select(self) -> "_Selected":
        """Run every contender as far as it can be judged."""
        began, budget = time.monotonic(), self.task.spec.method.time_budget_seconds
        best: Pruning | None = None
        first = 0.0
        for number, contender in enumerate(_contenders(self.task)):
            spent = time.monotonic() - began
            if best is not None and budget is not None and spent + contender.cost * first > budget:
                continue
            found = _judged(self.task, contender, number=number)
            first = first or time.monotonic() - began
            name = str(contender.method)
            if contender.method is Method.REFIT:
                name += f", {contender.selection}"
            loss = _loss(found)
            self.task.progress.metric("held_out_loss", loss, "nats", candidate=name)
            found = replace(found, method=str(contender.method), held_out_loss=loss)
            best = found if best is None else min(best, found, key=_loss)
        assert best is not None, "the first contender always runs"
        return _Selected(task=self.task, best=best)


@dataclass(frozen=True, kw_only=True)
class _Selected(Selected):
    task: Task
    best: Pruning

    def solve(self) -> Pruning:
        return refit.with_all_tokens(self.task, self.best) if self.best.method == Method.REFIT else self.best


def _loss(pruning: Pruning) -> float:
    if pruning.held_out_loss is not None:
        return pruning.held_out_loss
    found = [row.held_out_loss for row in pruning.candidates if row.chosen and row.held_out_loss is not None]
    assert found, "a contender reports the loss of its result"
    return found[-1]


def _contenders(task: Task) -> list[Contender]:
    """Where the blocks are named, ways to choose them make no difference."""
    named = task.spec.drop is not None
    return [one for one in CONTENDERS if not named or one.selection is Selection.WINDOW]


def _judged(task: Task, contender: Contender, *, number: int) -> Pruning:
    """The contender's result, fitted on the fit tokens alone where that is what its loss is measured on."""
    method = task.spec.method.model_copy(update={"name": contender.method, "selection": contender.selection})
    progress = _ShareOfStage(task.progress, start=number / len(CONTENDERS), width=1 / len(CONTENDERS))
    own = replace(task, spec=task.spec.model_copy(update={"method": method}), progress=progress)
    found = contender.calibrate(own)
    progress.next_step()
    selected = found.select() if isinstance(found, Calibrated) else found
    progress.next_step()
    return selected.judge() if isinstance(selected, refit.RefitSelected) else selected.solve()


class _ShareOfStage(Progress):
    """Reports the three steps of one contender as a part of the present stage."""

    def __init__(self, progress: Progress, *, start: float, width: float) -> None:
        self._progress = progress
        self._start = start
        self._width = width
        self._steps_done = 0

    def next_step(self) -> None:
        """One more step is done; its memory is free."""
        release_memory()
        self._steps_done += 1
        self.advance(0.0)

    def resolved(self, spec: CompressionSpec) -> None:
        """Its settings are those of the contender, not of the job."""

    def stage(self, stage: Stage, *, resumed_from: Stage | None = None) -> None:
        """A contender has no stages of its own."""

    def advance(self, fraction: float) -> None:
        self._progress.advance(self._start + self._width * (self._steps_done + fraction) / 3)

    def metric(
        self, name: str, value: float, unit: str, *, block: int | None = None, candidate: str | None = None
    ) -> None:
        """Not reported: the metrics of several contenders would have the same names."""
