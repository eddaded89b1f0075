"""One map for each cut, in closed form (ReplaceMe, arXiv 2505.02819, section 3.2; ridge toward the identity).

Methods that fit a map for each cut in another way share what is here: find the cuts, fit them in order, accept their
maps or not.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch

from replaceme_core.engine.activations.capture import Activations, CutStatistics, capture_distances
from replaceme_core.engine.methods.candidates import RidgeFit, allowed_windows, blocks_of, least_distance, rank
from replaceme_core.engine.methods.panel import Panel, variant_losses, with_or_without
from replaceme_core.engine.methods.task import Candidate, Pruning, Task
from replaceme_core.engine.model.changes import Cut, FittedCut, Variant, runs
from replaceme_core.engine.numerics.solve import solve_delta
from replaceme_core.engine.numerics.stream import Stream
from replaceme_core.engine.numerics.sums import SOLVE_DTYPE, Moments
from replaceme_core.errors import NumericalFailure
from replaceme_core.runner.messages import Stage


@dataclass(frozen=True, kw_only=True)
class CutFit(RidgeFit):
    """With the map from all calibration tokens, which is the result."""

    from_all_tokens: FittedCut


def fit_cut(statistics: CutStatistics, *, ridge: float | None) -> CutFit:
    """In closed form, at `ridge` or at the one that held-out tokens choose; an infinite one is plain removal.

    Sums add up, so once the ridge is chosen the held-out tokens join the fit.
    """
    judged = RidgeFit.of(statistics, ridge=ridge)
    everything = statistics.fit + statistics.held_out
    delta = solve_delta(everything, ridge=judged.ridge, diagonal=statistics.diagonal)
    return CutFit(**vars(judged), from_all_tokens=FittedCut(cut=statistics.cut, delta=delta))


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
    if task.spec.drop is not None:
        return fit_named(task, task.spec.drop, fit)
    ranked = rank(task, groups=task.spec.method.groups)
    found = fit_named(task, ranked.best, fit)
    return replace(found, candidates=ranked.table(ranked.best, found.candidates))


def fit_named(task: Task, removed: Sequence[int], fit: Fit) -> Pruning:
    """Remove these blocks. Every cut is fitted on the prefix pruned so far, toward the dense model's stream at its end.

    Fitted on the dense model, later maps would be fitted to inputs that they never see.
    """
    fitted = list[CutFit]()
    for cut in runs(removed):
        done = [one.from_all_tokens for one in fitted]
        statistics = task.activations.statistics(cut, done=done, diagonal=task.diagonal)
        if not fitted:
            task.begin(Stage.SOLVE)
        fitted.append(fit(statistics))
    return accepted(task, fitted)


def accepted(task: Task, fitted: Sequence[CutFit]) -> Pruning:
    """The maps, where all together are better than plain removal of the same blocks; else none.

    At a ridge that was requested the maps are taken as they are.
    """
    with_maps = variant_losses(task.activations, Variant.of([one.from_fit_tokens for one in fitted]))
    kept, plain = with_or_without(task, blocks_of(one.statistics.cut for one in fitted), with_maps)
    panel = Panel.of(task.activations)
    if task.spec.method.ridge is not None:
        kept = with_maps
    taken = [fit_cut(one.statistics, ridge=math.inf) for one in fitted] if kept is plain else fitted
    rows = [replace(one.row(), chosen=True, plain_loss=panel.mean(plain)) for one in taken]
    return Pruning.of_cuts([one.from_all_tokens for one in taken], [panel.row(row, kept) for row in rows])


def as_published(task: Task) -> Pruning:
    """As the reference implementation does it (mts-ai/ReplaceMe, commit of May 2025), for comparison: remove the named
    blocks, or the window that the last token of each sequence chooses; `ridge` is 0 by default.

    Kept from it: one token of each sequence chooses the cut, all tokens count alike in the sums however long, the ridge
    is added to the raw sums and pulls the map toward zero, nothing is held out, and every cut is fitted on the dense
    model. Not kept are slips that are not the method: the final norm in the last hidden state, padding in the sums, an
    explicit inverse of a singular matrix.
    """
    task.require_rank()
    ridge = task.spec.method.ridge
    if task.spec.drop is not None:
        cuts = runs(task.spec.drop)
        candidates = [Candidate(cut=cut, ridge=ridge, chosen=True) for cut in cuts]
    else:
        angles = capture_distances(task.activations, allowed_windows(task), last_tokens=True)
        task.begin(Stage.SELECT)
        cuts, candidates = least_distance(angles)
    task.begin(Stage.SOLVE)
    maps = [published_map(task.activations, cut, ridge=0.0 if ridge is None else ridge) for cut in cuts]
    return Pruning.of_cuts(maps, candidates)


def published_map(activations: Activations, cut: Cut, *, ridge: float) -> FittedCut:
    """T = (M'M + `ridge` I)^-1 M'(L_end - Y) over all tokens. Raises `NumericalFailure` where that has no solution."""
    width, device = activations.block_runner.resolved.config.hidden_size, activations.device
    moments = Moments.zeros(width, device=device)
    for number in range(len(activations.batches)):
        write, kept, end = activations.at_cut(number, cut, done=())
        ones = torch.ones(len(write), device=device)
        moments.add(write, kept=Stream(kept), end=Stream(end), weights=ones)
        activations.advance((number + 1) / len(activations.batches))
    identity = torch.eye(width, dtype=SOLVE_DTYPE, device=device)
    factor, info = torch.linalg.cholesky_ex(moments.gram + ridge * identity)
    # Y = L_anchor - M, so M'(L_end - Y) = M'E + M'M
    whole = torch.cholesky_solve(moments.cross + moments.gram, factor)
    if int(info) != 0 or not torch.isfinite(whole).all():
        raise NumericalFailure(
            f"{moments.tokens} calibration tokens do not determine a map of width {width} as published; give a ridge"
        )
    return FittedCut(cut=cut, delta=whole - identity)
