"""Choose one window of neighbouring blocks, or several cuts: screened by residual, then chosen by the held-out loss.

Every candidate gets its map in closed form from the sums of one pass. Maps are fitted on the fit tokens alone while the
held-out tokens judge them; once the cuts are chosen, the held-out tokens join the fit.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from heapq import nsmallest
from typing import Self

from replaceme_core.engine.activations.cut_sums import CutStatistics, Screen
from replaceme_core.engine.methods.judge import accepted_scale, tournament
from replaceme_core.engine.methods.replay import held_out_judge, next_losses, report_dense_loss, variant_losses
from replaceme_core.engine.methods.task import Candidate, Task, reported_ridge
from replaceme_core.engine.model.changes import Cut, FittedCut, Variant, windows
from replaceme_core.engine.numerics.solve import choose_ridge, solve_delta
from replaceme_core.request.defaults import FEW_TOKENS_RIDGES, RIDGES, SCREENING_RIDGE, SPARE_WINDOWS, WELL_DETERMINED
from replaceme_core.runner.messages import Stage


@dataclass(frozen=True, kw_only=True)
class RidgeFit:
    """A map from the fit tokens alone, with its `ridge` and the relative `residual` that it leaves on held-out tokens.

    Held-out tokens judge this map: one that has been fitted on them too would look better than it is.
    """

    fitted: FittedCut
    ridge: float
    residual: float


def fit_on_fit_tokens(statistics: CutStatistics, *, ridge: float | None) -> RidgeFit:
    """The map at `ridge`, or at the one of `RIDGES` that leaves the least residual on held-out tokens.

    Raises `NumericalFailure` where no ridge gives a usable map.
    """
    ridges = RIDGES if ridge is None else (ridge,)
    best, residual = choose_ridge(statistics.fit, statistics.held_out, ridges=ridges, diagonal=statistics.diagonal)
    delta = solve_delta(statistics.fit, ridge=best, diagonal=statistics.diagonal)
    return RidgeFit(fitted=FittedCut(cut=statistics.cut, delta=delta), ridge=best, residual=residual)


@dataclass(frozen=True, kw_only=True)
class CutFit:
    """A cut with its map from all calibration tokens, and with the one from the fit tokens alone, which is judged."""

    statistics: CutStatistics
    from_all_tokens: FittedCut
    from_fit_tokens: FittedCut
    ridge: float | None

    @property
    def cut(self) -> Cut:
        return self.statistics.cut

    @property
    def residual(self) -> float:
        """What the map from the fit tokens leaves on the held-out tokens, relative to the stream."""
        return self.statistics.held_out.residual(self.from_fit_tokens.delta)

    def scaled(self, scale: float) -> Self:
        """With a part of both maps' change: 1 as it is, 0 plain removal."""
        return replace(
            self,
            from_all_tokens=self.from_all_tokens.scaled(scale),
            from_fit_tokens=self.from_fit_tokens.scaled(scale),
        )


def fit_cut(statistics: CutStatistics, *, ridge: float | None) -> CutFit:
    """In closed form, at `ridge` or at the one that held-out tokens choose.

    Sums add up, so once the ridge is chosen the held-out tokens join the fit.
    """
    judged = fit_on_fit_tokens(statistics, ridge=ridge)
    everything = statistics.fit + statistics.held_out
    delta = solve_delta(everything, ridge=judged.ridge, diagonal=statistics.diagonal)
    return CutFit(
        statistics=statistics,
        from_all_tokens=FittedCut(cut=statistics.cut, delta=delta),
        from_fit_tokens=judged.fitted,
        ridge=reported_ridge(judged.ridge),
    )


@dataclass(kw_only=True)
class Screening:
    """A `Screen` that keeps the `most` cuts of least residual. `table` has the rows of all.

    Each is fitted at `ridge`, or at the best of `FEW_TOKENS_RIDGES`: a map from few tokens may need a large one
    (docs/explanation/how-the-default-works.md#window).
    """

    ridge: float | None
    most: int
    diagonal: bool
    table: dict[Cut, Candidate] = field(default_factory=dict)

    def add(self, statistics: CutStatistics) -> None:
        wanted = replace(statistics, diagonal=self.diagonal)
        self.table[statistics.cut] = screened_row(wanted, ridge=self.ridge, ridges=FEW_TOKENS_RIDGES)

    def remaining(self) -> list[Cut]:
        best = sorted(self.table.values(), key=residual_of)[: self.most]
        return sorted(row.cut for row in best)


def screened_row(
    statistics: CutStatistics, *, ridge: float | None, ridges: tuple[float, ...] = (SCREENING_RIDGE, math.inf)
) -> Candidate:
    """A row with the residual of a map at `ridge`, or at the one of `ridges` that leaves least."""
    tried = ridges if ridge is None else (ridge,)
    best, residual = choose_ridge(statistics.fit, statistics.held_out, ridges=tried, diagonal=statistics.diagonal)
    return Candidate(
        start=statistics.cut.start,
        end=statistics.cut.end,
        distance=statistics.angle.value,
        residual=residual,
        ridge=reported_ridge(best),
        tokens=statistics.tokens,
    )


def residual_of(row: Candidate) -> float:
    """The residual of a row that was screened."""
    assert row.residual is not None, "a screened row has a residual"
    return row.residual


def sum_windows(task: Task, cuts: Sequence[Cut], *, screen: Screen | None = None) -> dict[Cut, CutStatistics]:
    """In one pass the sums of `cuts`, or of those that `screen` keeps."""
    statistics = task.activations.windows(cuts, screen=screen)
    for one in statistics:
        one.diagonal = task.diagonal
    task.progress.metric("tokens", task.calibration_tokens, "tokens")
    task.progress.metric("sink_tokens", max(one.sinks for one in statistics), "tokens")
    return {one.cut: one for one in statistics}


@dataclass(frozen=True, kw_only=True)
class WindowChoice:
    """The window that costs least after its fit: its sums, its losses by held-out batch, and the whole table."""

    winner: CutStatistics
    losses: list[float]
    candidates: list[Candidate]


def choose_window(task: Task, *, positions: int | None = None) -> WindowChoice:
    """The best window of `task.remove` blocks; begins `select` after the pass.

    Windows that the held-out tokens show to be far behind are left out before the fit tokens are run. The others are
    screened by residual, then judged by the losses of the pruned models (`tournament`) at the first `positions` of each
    held-out sequence, or at all; the losses that are returned are at all. Where the held-out tokens do not tell the
    last ones apart, the smaller residual decides: it rests on the same tokens, but on every value of the stream instead
    of one prediction a token. The chosen window's map is then compared with plain removal (`accepted_scale`), unless
    its ridge was requested.
    """
    activations, ridge, replays = task.activations, task.spec.method.ridge, task.spec.method.replays
    screening = Screening(ridge=ridge, most=replays + SPARE_WINDOWS, diagonal=task.diagonal)
    every = windows(len(task.block_runner.blocks), task.remove)
    by_cut = sum_windows(task, every, screen=screening if _can_screen(task) else None)

    task.begin(Stage.SELECT)
    report_dense_loss(task)
    judge = held_out_judge(activations, positions=positions)
    table = {cut: screened_row(one, ridge=ridge) for cut, one in by_cut.items()}
    residuals = {cut: residual_of(row) for cut, row in table.items()}
    finalists = sorted(by_cut, key=lambda cut: residuals[cut])[:replays]
    maps = _maps(by_cut, finalists, table=table, residuals=residuals, ridge=ridge)
    known: dict[tuple[Cut, float], list[float]] = {}

    def loss(cut: Cut, batch: int, scale: float = 1.0) -> float:
        of_cut = known.setdefault((cut, scale), [])
        fitted = maps[cut].scaled(scale)
        while len(of_cut) <= batch:
            of_cut += next_losses(activations, fitted, first=len(of_cut), positions=positions)
        return of_cut[batch]

    winner, losses = tournament(finalists, judge=judge, loss=loss, rank=residuals, advance=task.progress.advance)
    for cut, of_cut in losses.items():
        table[cut] = replace(
            table[cut],
            held_out_loss=judge.paired_mean(of_cut, beside=losses[winner]),
            estimated=positions is not None or len(of_cut) < len(losses[winner]),
            source_losses=judge.by_source(of_cut, beside=losses[winner]),
            chosen=cut == winner,
        )
    kept, fitted = losses[winner], maps[winner]
    if ridge is None:
        scale, kept, none = accepted_scale(
            lambda scale: lambda batch: loss(winner, batch, scale), judge=judge, known=kept
        )
        fitted = fitted.scaled(scale)
        table[winner] = replace(
            table[winner],
            scale=scale,
            plain_loss=judge.paired_mean(none, beside=kept),
            held_out_loss=judge.mean(kept),
            source_losses=judge.by_source(kept, beside=kept),
            residual=by_cut[winner].held_out.residual(fitted.delta),
        )
    if positions is not None:
        kept = []
        while len(kept) < judge.batches:
            kept += next_losses(activations, fitted, first=len(kept))
    table = screening.table | table
    return WindowChoice(winner=by_cut[winner], losses=kept, candidates=[table[cut] for cut in sorted(table)])


def _can_screen(task: Task) -> bool:
    """Whether one half of the held-out tokens determines maps well enough to rank them on the other half."""
    held_out = task.tokens.held_out
    wanted = WELL_DETERMINED * task.block_runner.resolved.model.config.hidden_size
    return len(held_out) > 1 and held_out.numel() // 2 >= wanted


def _maps(
    by_cut: Mapping[Cut, CutStatistics],
    cuts: Sequence[Cut],
    *,
    table: dict[Cut, Candidate],
    residuals: dict[Cut, float],
    ridge: float | None,
) -> dict[Cut, FittedCut]:
    """The maps of `cuts` from the fit tokens; their ridges and residuals replace those of the screening."""
    maps = {cut: fit_on_fit_tokens(by_cut[cut], ridge=ridge) for cut in cuts}
    for cut, one in maps.items():
        table[cut] = replace(table[cut], ridge=reported_ridge(one.ridge), residual=one.residual)
        residuals[cut] = one.residual
    return {cut: one.fitted for cut, one in maps.items()}


@dataclass(frozen=True, kw_only=True)
class GroupChoice:
    """The cuts that are removed together, in order; the sums of the first one; the table."""

    cuts: tuple[Cut, ...]
    first: CutStatistics
    candidates: list[Candidate]


def choose_groups(task: Task) -> GroupChoice:
    """`task.remove` blocks in as many cuts as were requested; begins `select` after the pass.

    Sets are judged with the maps that each cut has on the dense model's streams, all in place; the cuts of the chosen
    set are fitted again afterwards, in order, on the prefix that the others have pruned.
    """
    method, blocks = task.spec.method, len(task.block_runner.blocks)
    shares = lengths(remove=task.remove, groups=method.groups)
    by_cut = sum_windows(task, [cut for share in shares for cut in windows(blocks, share)])

    task.begin(Stage.SELECT)
    report_dense_loss(task)
    judge = held_out_judge(task.activations)
    table = {cut: screened_row(one, ridge=method.ridge) for cut, one in by_cut.items()}
    residuals = {cut: residual_of(row) for cut, row in table.items()}
    sets = best_sets(residuals, groups=method.groups, remove=task.remove, most=method.replays)
    parts = list({cut for cuts in sets for cut in cuts})
    maps = _maps(by_cut, parts, table=table, residuals=residuals, ridge=method.ridge)

    def loss(cuts: tuple[Cut, ...], batch: int) -> float:
        variant = Variant.of([maps[cut] for cut in cuts])
        number = task.activations.held_out_batches[batch]
        return variant_losses(task.activations, variant, batches=[number])[0]

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
