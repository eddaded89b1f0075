"""Several cuts for one ratio: from the sums of one pass, screened by residual, chosen by held-out loss."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from heapq import nsmallest

from replaceme_core.engine.activations.cut_sums import CutStatistics
from replaceme_core.engine.methods.protocol import Task
from replaceme_core.engine.methods.windows import WindowSums, report_dense_loss, sum_windows
from replaceme_core.engine.model.changes import Cut, Variant, windows
from replaceme_core.engine.selection.candidate import Candidate, reported_ridge
from replaceme_core.engine.selection.cut_fit import fit_on_fit_tokens
from replaceme_core.engine.selection.replay import held_out_judge, replay_variant
from replaceme_core.engine.selection.screening import residual_of, screened_row
from replaceme_core.engine.selection.tournament import tournament


@dataclass(frozen=True, kw_only=True)
class GroupChoice:
    """The cuts that are removed together, in order; the sums of the first one; the table."""

    cuts: tuple[Cut, ...]
    first: CutStatistics
    candidates: list[Candidate]


@dataclass(frozen=True, kw_only=True)
class CalibratedGroups:
    """The sums of all windows that may be a part of a set."""

    task: Task
    sums: WindowSums

    def choose(self) -> GroupChoice:
        """`task.remove` blocks in as many cuts as were requested.

        Sets are judged with the maps that each cut has on the dense model's streams, all in place; the cuts of the
        chosen set are fitted again afterwards, in order, on the prefix that the others have pruned.
        """
        task, method = self.task, self.task.spec.method
        streams = self.sums.streams
        report_dense_loss(task)
        judge = held_out_judge(task.activations)
        by_cut = {one.cut: one for one in self.sums.statistics}
        table = {cut: screened_row(one, ridge=method.ridge) for cut, one in by_cut.items()}
        residuals = {cut: residual_of(row) for cut, row in table.items()}
        sets = best_sets(residuals, groups=method.groups, remove=task.remove, most=method.replays)
        maps = {
            cut: fit_on_fit_tokens(by_cut[cut], ridge=method.ridge) for cut in {cut for cuts in sets for cut in cuts}
        }
        for cut, one in maps.items():
            residuals[cut] = one.residual
            table[cut] = replace(table[cut], ridge=reported_ridge(one.ridge), residual=one.residual)

        def loss(cuts: tuple[Cut, ...], batch: int) -> float:
            variant = Variant.of([maps[cut].fitted for cut in cuts])
            return replay_variant(task.block_runner, streams, variant, batch=batch)

        winner, losses = tournament(
            sets,
            judge=judge,
            loss=loss,
            rank={cuts: sum(residuals[cut] for cut in cuts) for cuts in sets},
            advance=task.progress.advance,
        )
        tried = [
            replace(
                table[cut],
                group=number,
                held_out_loss=judge.paired_mean(losses[cuts], beside=losses[winner]),
                estimated=len(losses[cuts]) < len(losses[winner]),
                source_losses=judge.by_source(losses[cuts], beside=losses[winner]),
            )
            for number, cuts in enumerate(sets, start=1)
            for cut in cuts
        ]
        return GroupChoice(cuts=winner, first=by_cut[winner[0]], candidates=[*table.values(), *tried])


def calibrate_groups(task: Task) -> CalibratedGroups:
    """One pass over the sums of all windows of the lengths that a cut may have."""
    blocks = len(task.block_runner.blocks)
    shares = lengths(remove=task.remove, groups=task.spec.method.groups)
    return CalibratedGroups(
        task=task, sums=sum_windows(task, [cut for share in shares for cut in windows(blocks, share)])
    )


def lengths(*, remove: int, groups: int) -> list[int]:
    """The lengths that a cut may have where `groups` of them remove `remove` blocks: within one block of an even share.

    >>> lengths(remove=8, groups=3)
    [2, 3]
    """
    share = remove / groups
    return [length for length in range(1, remove - groups + 2) if abs(length - share) <= 1]


def best_sets(residuals: Mapping[Cut, float], *, groups: int, remove: int, most: int) -> list[tuple[Cut, ...]]:
    """At most `most` sets of `groups` cuts that remove `remove` blocks, those of the least summed residual first.

    Between two cuts at least one block stays: the anchor block of the second one.
    """
    cuts = sorted(residuals)

    @cache
    def best(count: int, blocks: int, since: int) -> list[tuple[float, tuple[Cut, ...]]]:
        """The best sets of `count` cuts with `blocks` blocks in all, none of which starts before `since`."""
        if count == 0:
            return [(0.0, ())] if blocks == 0 else []
        found = [
            (residuals[cut] + rest, (cut, *others))
            for cut in cuts
            if cut.start >= since and len(cut.blocks) <= blocks - (count - 1)
            for rest, others in best(count - 1, blocks - len(cut.blocks), cut.end + 2)
        ]
        return nsmallest(most, found)

    return [chosen for _, chosen in best(groups, remove, 1)]
