"""Choose several cuts for one ratio: from the sums of one pass, screened by residual, judged by held-out loss."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from replaceme_core.activations.cut_sums import CutStatistics
from replaceme_core.activations.held_out_loss import mean_loss, summed_loss
from replaceme_core.activations.held_out_streams import HeldOutStreams
from replaceme_core.methods.cuts import capture_all_windows
from replaceme_core.methods.group_search import best_sets, lengths
from replaceme_core.methods.protocol import Task
from replaceme_core.models.cut import Cut, FittedCut, Variant, windows
from replaceme_core.numerics.solve import RIDGES, choose_ridge, solve_delta
from replaceme_core.selection.choose import Candidate, finite, screened_row
from replaceme_core.selection.tournament import paired_mean, tournament


@dataclass(frozen=True, kw_only=True)
class Groups:
    """The cuts that go together, in order; the statistics of the first one; and why."""

    cuts: tuple[Cut, ...]
    first: CutStatistics
    candidates: list[Candidate]


def choose_groups(task: Task) -> Groups:
    """`task.remove` blocks in as many cuts as are wanted.

    Judged are the maps that each cut has on the dense model's streams, all in place; the chosen ones are fitted anew,
    in order, on the prefix that the others have pruned. Begins the stage `select`.
    """
    method, blocks = task.spec.method, len(task.block_runner.blocks)
    shares = lengths(remove=task.remove, groups=method.groups)
    statistics, streams = capture_all_windows(task, [cut for share in shares for cut in windows(blocks, share)])
    by_cut = {one.cut: one for one in statistics}
    table = {cut: screened_row(one, ridge=method.ridge) for cut, one in by_cut.items()}
    residuals = {cut: row.residual for cut, row in table.items() if row.residual is not None}
    sets = best_sets(residuals, groups=method.groups, remove=task.remove, most=method.replays)
    maps: dict[Cut, FittedCut] = {}
    for cut in {cut for cuts in sets for cut in cuts}:
        one = by_cut[cut]
        ridges = RIDGES if method.ridge is None else (method.ridge,)
        ridge, residuals[cut] = choose_ridge(one.fit, one.held_out, ridges=ridges, structure=one.structure)
        maps[cut] = FittedCut(cut=cut, delta=solve_delta(one.fit, ridge=ridge, structure=one.structure))
        table[cut] = replace(table[cut], ridge=finite(ridge), residual=residuals[cut])
    winner, losses = tournament(
        sets,
        batches=len(streams.tokens),
        loss=_loss_of(task, streams, maps),
        rank={cuts: sum(residuals[cut] for cut in cuts) for cuts in sets},
        advance=task.clock.progress.advance,
    )
    mean = partial(mean_loss, batches=streams.tokens)
    tried = [
        replace(table[cut], group=number, held_out_loss=paired_mean(losses[cuts], beside=losses[winner], mean=mean))
        for number, cuts in enumerate(sets, start=1)
        for cut in cuts
    ]
    return Groups(cuts=winner, first=by_cut[winner[0]], candidates=[*table.values(), *tried])


def _loss_of(
    task: Task, streams: HeldOutStreams, maps: dict[Cut, FittedCut]
) -> Callable[[tuple[Cut, ...], int], float]:
    def loss(cuts: tuple[Cut, ...], batch: int) -> float:
        variant = Variant.of([maps[cut] for cut in cuts])
        stream = variant.run(task.block_runner, streams.before[variant.first][batch], since=variant.first)
        return summed_loss(task.block_runner, stream, streams.tokens[batch])

    return loss
