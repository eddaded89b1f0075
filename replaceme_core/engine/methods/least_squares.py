"""One map for each cut, in closed form (ReplaceMe, arXiv 2505.02819, section 3.2; ridge toward the identity).

Methods that fit a map for each cut in another way share what is here: find the cuts, fit them in order, accept their
maps or not.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from replaceme_core.engine.activations.cut_sums import CutStatistics
from replaceme_core.engine.methods.as_published import as_published
from replaceme_core.engine.methods.panel import Panel, variant_losses
from replaceme_core.engine.methods.task import Candidate, Pruning, Task
from replaceme_core.engine.methods.windows import CutFit, Ranked, fit_cut, rank, with_or_without
from replaceme_core.engine.model.changes import Cut, Variant, runs
from replaceme_core.runner.messages import Stage

Fit = Callable[[CutStatistics], CutFit]


def least_squares(task: Task) -> Pruning:
    """Remove the named blocks, or the window that costs least after its fit, each cut with its map.

    At its defaults the result is never worse on held-out tokens than plain removal of the same blocks: maps are
    compared with that, and left out where they do not help.
    """
    method = task.spec.method
    if method.as_published:
        return as_published(task)
    return fit_cuts(task, partial(fit_cut, ridge=method.ridge))


def fit_cuts(task: Task, fit: Fit) -> Pruning:
    """Remove the cuts that the task asks for, fitted by `fit`: the named ones, or the best set of as many as asked."""
    task.require_rank()
    if task.spec.drop is None:
        return fit_best(task, rank(task, groups=task.spec.method.groups), fit)
    cuts = runs(task.spec.drop)
    first = task.activations.statistics(cuts[0])  # later cuts need the maps before them
    task.begin(Stage.SOLVE)
    return accepted(task, fit_in_order(task, cuts, fit, first=first))


def fit_best(task: Task, ranked: Ranked, fit: Fit) -> Pruning:
    """Remove the best of the sets that were `ranked`, fitted by `fit`."""
    cuts = ranked.best
    task.begin(Stage.SOLVE)
    result = accepted(task, fit_in_order(task, cuts, fit, first=ranked.sums[cuts[0]]))
    return replace(result, candidates=ranked.table(cuts, result.candidates))


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


def accepted(task: Task, fitted: Sequence[CutFit]) -> Pruning:
    """The maps, where all together are better than plain removal of the same blocks; else none.

    At a ridge that was requested the maps are taken as they are.
    """
    with_maps = variant_losses(task.activations, Variant.of([one.from_fit_tokens for one in fitted]))
    kept, plain = with_or_without(task, [one.cut for one in fitted], with_maps)
    panel = Panel.of(task.activations)
    if task.spec.method.ridge is not None:
        kept = with_maps
    taken = [one.without_map() for one in fitted] if kept is plain else fitted
    table = [
        replace(
            _row(one),
            held_out_loss=panel.mean(kept),
            source_losses=panel.by_source(kept),
            plain_loss=panel.mean(plain),
        )
        for one in taken
    ]
    return Pruning.of_cuts([one.from_all_tokens for one in taken], table, held_out_losses=kept)


def _row(one: CutFit) -> Candidate:
    """The row of a cut that was named, or chosen before it was fitted."""
    return Candidate(
        start=one.cut.start,
        end=one.cut.end,
        distance=one.statistics.angle.value,
        residual=one.residual,
        ridge=one.ridge,
        chosen=True,
        tokens=one.statistics.tokens,
    )
