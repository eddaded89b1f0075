"""One map for each cut, in closed form (ReplaceMe, arXiv 2505.02819, section 3.2; ridge toward the identity).

Methods that fit a map for each cut in another way share what is here: find the cuts, fit them in order, accept their
maps or not.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from replaceme_core.engine.activations.cut_sums import CutStatistics
from replaceme_core.engine.methods.as_published import as_published
from replaceme_core.engine.methods.judge import accepted_scale
from replaceme_core.engine.methods.replay import held_out_judge, variant_losses
from replaceme_core.engine.methods.task import Candidate, Pruning, Task, chosen_row
from replaceme_core.engine.methods.windows import CutFit, choose_groups, choose_window, fit_cut
from replaceme_core.engine.model.changes import Cut, Variant, runs
from replaceme_core.runner.messages import Stage

Fit = Callable[[CutStatistics], CutFit]


def least_squares(task: Task, *, positions: int | None = None) -> Pruning:
    """Remove the named blocks, or the window that costs least after its fit, each cut with its map.

    At its defaults the result is never worse on held-out tokens than plain removal of the same blocks: maps are
    compared with that, and left out where they do not help. Windows are compared by the loss at the first `positions`
    of each held-out sequence, or at all.
    """
    method = task.spec.method
    if method.as_published:
        return as_published(task)
    if task.spec.drop is not None or method.groups > 1:
        return fit_cuts(task, partial(fit_cut, ridge=method.ridge))
    task.require_rank()
    found = choose_window(task, positions=positions)
    task.begin(Stage.SOLVE)  # the map from all tokens, at the ridge and the scale that were found for the window
    chosen = chosen_row(found.candidates)
    fitted = fit_cut(found.winner, ridge=math.inf if chosen.ridge is None else chosen.ridge).from_all_tokens
    folds = [fitted.scaled(1.0 if chosen.scale is None else chosen.scale)]
    return Pruning.of_cuts(folds, found.candidates, held_out_losses=found.losses)


def fit_cuts(task: Task, fit: Fit) -> Pruning:
    """Remove the cuts that the task asks for, fitted by `fit`: the named ones, several, or one window."""
    task.require_rank()
    if task.spec.drop is not None:
        cuts = runs(task.spec.drop)
        first = task.activations.statistics(cuts[0])  # later cuts need the maps before them
        task.begin(Stage.SOLVE)
        return accepted(task, fit_in_order(task, cuts, fit, first=first))
    if task.spec.method.groups > 1:
        groups = choose_groups(task)
        task.begin(Stage.SOLVE)
        result = accepted(task, fit_in_order(task, groups.cuts, fit, first=groups.first))
        return replace(result, candidates=[*groups.candidates, *result.candidates])
    window = choose_window(task)
    task.begin(Stage.SOLVE)
    result = accepted(task, [fit(window.winner)])
    chosen = chosen_row(result.candidates)
    return replace(result, candidates=[chosen if row.cut == chosen.cut else row for row in window.candidates])


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
    """The maps at the largest scale at which all together surely beat plain removal of the same blocks; else none.

    At a ridge that was requested the maps are taken as they are.
    """
    if task.spec.method.ridge is not None:
        return Pruning.of_cuts([one.from_all_tokens for one in fitted], [_row(one) for one in fitted])

    batches = task.activations.held_out_batches

    def loss_at(scale: float) -> Callable[[int], float]:
        variant = Variant.of([one.from_fit_tokens.scaled(scale) for one in fitted])
        return lambda batch: variant_losses(task.activations, variant, batches=[batches[batch]])[0]

    judge = held_out_judge(task.activations)
    scale, kept, none = accepted_scale(loss_at, judge=judge)
    plain = judge.paired_mean(none, beside=kept)
    scaled = [one.scaled(scale) for one in fitted]
    table = [replace(_row(one), scale=scale, held_out_loss=judge.mean(kept), plain_loss=plain) for one in scaled]
    return Pruning.of_cuts([one.from_all_tokens for one in scaled], table, held_out_losses=kept)


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
