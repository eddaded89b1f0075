"""Find the deepest cut whose result passes the gate: by bisection, each trial carried out and measured to the end.

One dense pass over the calibration tokens serves all trials, where its streams can be kept, and the source model is
measured once (docs/decisions/0047-the-deepest-cut.md).
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from replaceme_core.engine.evaluation.compare import Comparison, Original
from replaceme_core.engine.evaluation.gate import judge, measured_values
from replaceme_core.engine.evaluation.measure import PRUNED, SOURCE, Subject, open_subject
from replaceme_core.engine.methods.protocol import Pruning, Task
from replaceme_core.engine.model.allocator import release_memory
from replaceme_core.engine.results.metrics import report_trial
from replaceme_core.engine.steps.decide import decide
from replaceme_core.engine.steps.run import Run
from replaceme_core.engine.steps.write_pruned import write_pruned
from replaceme_core.errors import InvalidInput, NumericalFailure
from replaceme_core.request.gate import Trial, deepest, most_trials
from replaceme_core.runner.messages import Progress
from replaceme_core.runner.part_of_stage import PartOfStage

DECIDING_PART = 0.6
"""Of the progress of a trial; the rest is for carrying it out and measuring."""


@dataclass(frozen=True, kw_only=True)
class DeepestCut:
    """The decision that was found, what its result was measured to be worth, and all trials in their order."""

    pruning: Pruning
    comparison: Comparison
    trials: Sequence[Trial]


def find_deepest_cut(run: Run, task: Task, depths: Sequence[int]) -> DeepestCut:
    """The deepest of `depths`, which ascend, that passes the gate, as `gate.trials.deepest` says.

    Where none passes, the deepest one that is not worse than wanted, or the shallowest that was measured: its report
    says by how much the gate is missed. Raises the error of the last trial where nothing could be measured.
    """
    with run.dense_results().for_several(beside=Path(run.request.output_directory)) as results:
        original = run.original(replace(_source(run), results=results), task.tokens)
        search = _Search(run=run, task=task, original=original, most=most_trials(len(depths)))
        deepest(depths, search.is_too_deep)
        return search.result()


def capture_once(task: Task) -> None:
    """The dense pass that serves all trials, where its streams are stored at all."""
    if task.activations.stores_streams:
        task.activations.capture()


def _source(run: Run) -> Subject:
    """The model that activations are captured from, where it is in the dtype to measure in; else another one."""
    if run.spec.compute.quantization is None and run.model is not None:
        return Subject(name=SOURCE, model=run.model, directory=run.source)
    with run.clock.loading():
        return open_subject(SOURCE, run.source, dtype=run.dtype, compute=run.spec.compute)


class _Metrics(PartOfStage):
    """A part of a trial, whose metrics are reported once it is the chosen one."""

    def __init__(self, progress: Progress, *, start: float, end: float, kept: list[Callable[[], None]]) -> None:
        super().__init__(progress, start=start, end=end)
        self._kept = kept

    def metric(
        self, name: str, value: float, unit: str, *, block: int | None = None, candidate: str | None = None
    ) -> None:
        self._kept.append(lambda: self._progress.metric(name, value, unit, block=block, candidate=candidate))


@dataclass(frozen=True, kw_only=True)
class _Decided:
    """A decision, and the reports of its metrics."""

    pruning: Pruning
    metrics: Sequence[Callable[[], None]]


@dataclass(kw_only=True)
class _Search:
    """The trials so far. Of one of them, which may be the result, all is kept."""

    run: Run
    task: Task
    original: Original
    most: int
    trials: list[Trial] = field(default_factory=list)
    _kept: tuple[_Decided, Comparison] | None = None
    _has_passed: bool = False
    _error: Exception | None = None

    def is_too_deep(self, depth: int) -> bool:
        """Try the removal of `depth` blocks."""
        began, number, size = time.perf_counter(), len(self.trials), 1 / self.most
        gate, progress = self.task.spec.gate, self.task.progress
        assert gate is not None, "the specification was checked"
        try:
            decided, found = self._carry_out(depth, start=number * size, end=(number + 1) * size)
        except (NumericalFailure, InvalidInput) as error:
            self._error = error
            trial = Trial(blocks=depth, passed=False, measured={}, seconds=0.0, problem=error.message)
        else:
            result = judge(gate, found)
            trial = Trial(
                blocks=depth,
                removed_blocks=tuple(decided.pruning.removed),
                passed=result.passed,
                criteria=result.criteria,
                measured={name: value for name, value in measured_values(found).items() if math.isfinite(value)},
                seconds=0.0,
            )
            if not trial.is_too_deep or not self._has_passed:
                self._kept = (decided, found)
            self._has_passed = self._has_passed or not trial.is_too_deep
        release_memory()
        trial = trial.model_copy(update={"seconds": time.perf_counter() - began})
        self.trials.append(trial)
        report_trial(progress, trial)
        progress.advance((number + 1) * size)
        return trial.is_too_deep

    def result(self) -> DeepestCut:
        """What was kept; its metrics are reported."""
        if self._kept is None:
            assert self._error is not None, "a trial is kept, or has failed"
            raise self._error
        decided, comparison = self._kept
        for report in decided.metrics:
            report()
        return DeepestCut(pruning=decided.pruning, comparison=comparison, trials=self.trials)

    def _carry_out(self, depth: int, *, start: float, end: float) -> tuple[_Decided, Comparison]:
        middle = start + (end - start) * DECIDING_PART
        decided = self._decide(depth, start=start, end=middle)
        release_memory()
        rest = PartOfStage(self.task.progress, start=middle, end=end)
        return decided, self._measure(decided.pruning, advance=rest.advance)

    def _decide(self, depth: int, *, start: float, end: float) -> _Decided:
        """What the method decides for one depth."""
        metrics: list[Callable[[], None]] = []
        part = _Metrics(self.task.progress, start=start, end=end, kept=metrics)
        self.task.activations.advance = part.advance
        task = replace(self.task, remove=depth, progress=part)
        return _Decided(pruning=decide(self.run.request, task, clock=None), metrics=metrics)

    def _measure(self, pruning: Pruning, *, advance: Callable[[float], None]) -> Comparison:
        """The result beside the source model, as it would be published."""
        run, target = self.run, Path(self.run.request.output_directory)
        with TemporaryDirectory(prefix=f".{target.name}.trial-", dir=target.parent) as place:
            directory = Path(place)
            model = run.another_as_stored()
            write_pruned(model, directory, pruning=pruning, source=run.source, is_lazy=run.is_lazy)
            del model
            release_memory()
            with run.clock.loading():
                after = open_subject(PRUNED, directory, dtype=run.dtype, compute=run.spec.compute)
            return self.original.compare(after, advance=advance)
