"""What methods share that fit a map for each cut: find the cuts, fit them in order, accept their maps or not."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from replaceme_core.engine.activations.cut_sums import CutStatistics
from replaceme_core.engine.methods.groups import CalibratedGroups, calibrate_groups
from replaceme_core.engine.methods.protocol import Calibrated, Pruning, Selected, Task
from replaceme_core.engine.methods.windows import CalibratedWindows, calibrate_windows
from replaceme_core.engine.model.changes import Cut, FittedCut, Variant
from replaceme_core.engine.numerics.solve import check_rank
from replaceme_core.engine.selection.candidate import Candidate
from replaceme_core.engine.selection.cut_fit import CutFit
from replaceme_core.engine.selection.replay import held_out_judge, variant_losses
from replaceme_core.engine.selection.tournament import accepted_scale

Fit = Callable[[CutStatistics], CutFit]


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
    """The removal of exactly the cuts of `folds`."""
    removed = sorted(block for one in folds for block in one.cut.blocks)
    return Pruning(removed=removed, folds=folds, candidates=candidates)


def require_rank(task: Task) -> None:
    """Raises `CalibrationTooSmall` if the fit tokens cannot determine a map."""
    width = task.block_runner.resolved.model.config.hidden_size
    check_rank(tokens=task.tokens.fit.numel(), width=width, diagonal=task.diagonal)


def calibrate_cuts(task: Task, fit: Fit) -> Calibrated | Selected:
    """Whatever cuts the task asks for, to be fitted by `fit`: the named ones, several, or one window."""
    require_rank(task)
    if task.spec.drop is not None:
        return _select_named(task, fit)
    if task.spec.method.groups > 1:
        return _CalibratedGroups(groups=calibrate_groups(task), fit=fit)
    return _CalibratedWindows(windows=calibrate_windows(task), fit=fit)


def _select_named(task: Task, fit: Fit) -> "SelectedCuts":
    """The cuts that the request names. The sums of the first one are taken at once; later ones need the maps before."""
    assert task.spec.drop is not None, "the request names no blocks"
    cuts = runs(task.spec.drop)
    return SelectedCuts(task=task, cuts=cuts, first=task.activations.statistics(cuts[0]), fit=fit)


@dataclass(frozen=True, kw_only=True)
class _CalibratedGroups(Calibrated):
    groups: CalibratedGroups
    fit: Fit

    def select(self) -> "SelectedCuts":
        found = self.groups.choose()
        return SelectedCuts(
            task=self.groups.task, cuts=found.cuts, first=found.first, fit=self.fit, candidates=found.candidates
        )


@dataclass(frozen=True, kw_only=True)
class _CalibratedWindows(Calibrated):
    windows: CalibratedWindows
    fit: Fit

    def select(self) -> "_SelectedWindow":
        found = self.windows.choose()
        return _SelectedWindow(task=self.windows.task, winner=found.winner, fit=self.fit, candidates=found.candidates)


@dataclass(frozen=True, kw_only=True)
class SelectedCuts(Selected):
    """Cuts to be fitted in order; `first` are the sums of the first one, `candidates` the table so far."""

    task: Task
    cuts: Sequence[Cut]
    first: CutStatistics
    fit: Fit
    candidates: Sequence[Candidate] = ()

    def solve(self) -> Pruning:
        fitted = fit_in_order(self.task, self.cuts, self.fit, first=self.first)
        result = accepted(self.task, fitted)
        return replace(result, candidates=[*self.candidates, *result.candidates])


@dataclass(frozen=True, kw_only=True)
class _SelectedWindow(Selected):
    task: Task
    winner: CutStatistics
    fit: Fit
    candidates: Sequence[Candidate]

    def solve(self) -> Pruning:
        result = accepted(self.task, [self.fit(self.winner)])
        (chosen,) = result.candidates
        return replace(result, candidates=[chosen if row.cut == chosen.cut else row for row in self.candidates])


def fit_in_order(task: Task, cuts: Sequence[Cut], fit: Fit, *, first: CutStatistics) -> list[CutFit]:
    """Fit every cut on the prefix pruned so far, toward the dense model's stream at its end.

    Fitted on the dense model, later maps would be fitted to inputs that they never see. `first` are the sums of the
    first cut.
    """
    done: list[CutFit] = []
    for index, cut in enumerate(cuts):
        before = [one.from_all_tokens for one in done]
        statistics = first if index == 0 else task.activations.statistics(cut, done=before)
        statistics.diagonal = task.diagonal
        done.append(fit(statistics))
    return done


def rows(fitted: Sequence[CutFit], *, scale: float | None = None, loss: float | None = None) -> list[Candidate]:
    """The rows of cuts that were named, or chosen before they were fitted."""
    return [
        Candidate(
            start=one.cut.start,
            end=one.cut.end,
            distance=one.statistics.angle.value,
            residual=one.residual,
            ridge=one.ridge,
            held_out_loss=loss,
            chosen=True,
            scale=scale,
            tokens=one.statistics.tokens,
        )
        for one in fitted
    ]


def accepted(task: Task, fitted: Sequence[CutFit]) -> Pruning:
    """The maps at the largest scale at which all together surely beat plain removal of the same blocks; else none.

    At a ridge that was requested the maps are taken as they are.
    """
    if task.spec.method.ridge is not None:
        return pruning([one.from_all_tokens for one in fitted], rows(fitted))

    batches = task.activations.held_out_batches

    def loss_at(scale: float) -> Callable[[int], float]:
        variant = Variant.of([one.from_fit_tokens.scaled(scale) for one in fitted])
        return lambda batch: variant_losses(task.activations, [variant], batches=[batches[batch]])[0][0]

    judge = held_out_judge(task.activations)
    scale, kept, none = accepted_scale(loss_at, judge=judge)
    table = rows([one.scaled(scale) for one in fitted], scale=scale, loss=judge.mean(kept))
    found = pruning(
        [one.from_all_tokens.scaled(scale) for one in fitted],
        [replace(row, plain_loss=judge.paired_mean(none, beside=kept)) for row in table],
    )
    return replace(found, held_out_losses=kept)
