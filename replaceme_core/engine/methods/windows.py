"""Rank windows of neighbouring blocks, and sets of several: by residual, then by the held-out loss with maps.

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
from replaceme_core.engine.methods.panel import Panel, report_dense_loss, variant_losses
from replaceme_core.engine.methods.task import Candidate, Task, reported_ridge
from replaceme_core.engine.model.changes import Cut, FittedCut, Variant, windows
from replaceme_core.engine.numerics.solve import choose_ridge, solve_delta
from replaceme_core.request.defaults import (
    FEW_TOKENS_RIDGES,
    RIDGES,
    SCREENING_RIDGE,
    SPARE_WINDOWS,
    WELL_DETERMINED,
)
from replaceme_core.runner.messages import Stage


@dataclass(frozen=True, kw_only=True)
class RidgeFit:
    """A map from the fit tokens alone, with its `ridge` and the relative `residual` that it leaves on held-out tokens.

    Held-out tokens judge this map: one that has been fitted on them too would look better than it is.
    """

    fitted: FittedCut
    ridge: float
    residual: float

    def row(self, before: Candidate, panel: Panel, losses: Sequence[float]) -> Candidate:
        """The row `before`, with what was measured of this map."""
        return replace(
            before,
            ridge=reported_ridge(self.ridge),
            residual=self.residual,
            held_out_loss=panel.mean(losses),
            source_losses=panel.by_source(losses),
        )


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

    def without_map(self) -> Self:
        """Plain removal of the same cut."""
        plain = self.from_fit_tokens.without_map()
        return replace(self, from_all_tokens=plain, from_fit_tokens=plain, ridge=None)


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


Cuts = tuple[Cut, ...]
"""Cuts that are removed together, in order."""


@dataclass(frozen=True, kw_only=True)
class Tried:
    """A set of cuts with its maps: losses by held-out batch, and a row of the table for each cut."""

    losses: Sequence[float]
    rows: Sequence[Candidate]


@dataclass(frozen=True, kw_only=True)
class Ranked:
    """Sets of cuts that were tried, the best ones first; the rows of all cuts that were screened, and their sums."""

    tried: Mapping[Cuts, Tried]
    screened: Mapping[Cut, Candidate] = field(default_factory=dict)
    sums: Mapping[Cut, CutStatistics] = field(default_factory=dict)
    judging: Sequence[int] | None = None
    """The held-out batches that the losses are of; `None`: all."""

    @property
    def best(self) -> Cuts:
        return next(iter(self.tried))

    @classmethod
    def of(
        cls,
        tried: Mapping[Cuts, Tried],
        panel: Panel,
        *,
        screened: Mapping[Cut, Candidate],
        sums: Mapping[Cut, CutStatistics] | None = None,
        judging: Sequence[int] | None = None,
    ) -> Self:
        """With the sets in order."""
        best_first = sorted(tried, key=lambda cuts: panel.mean(tried[cuts].losses))
        ordered = {cuts: tried[cuts] for cuts in best_first}
        return cls(tried=ordered, screened=screened, sums=sums or {}, judging=judging)

    def table(self, chosen: Cuts, rows: Sequence[Candidate] = ()) -> list[Candidate]:
        """All rows: of windows in order, then of sets. `rows` of the `chosen` set take the place of its own."""
        found = dict(self.screened)
        sets = list[Candidate]()
        for cuts, one in self.tried.items():
            taken = [replace(row, chosen=True) for row in rows or one.rows] if cuts == chosen else list(one.rows)
            if len(cuts) == 1:
                found[cuts[0]] = taken[0]
            else:
                number = len({row.group for row in sets}) + 1
                sets += [replace(row, group=number) for row in taken]
        return [*(found[cut] for cut in sorted(found)), *sets]


def rank(task: Task, *, groups: int) -> Ranked:
    """Sets of `groups` cuts that remove `task.remove` blocks, ranked by held-out loss with a map in place of each cut.

    The `replays` sets of least residual are judged by the panel, each with the maps from the fit tokens. Where a set is
    one window, windows that the held-out tokens show to be far behind are left out before the fit tokens are run.
    Begins `select` after the pass.
    """
    method, screen = task.spec.method, None
    if groups == 1 and _can_screen(task):
        screen = Screening(ridge=method.ridge, most=method.replays + SPARE_WINDOWS, diagonal=task.diagonal)
    shares = lengths(remove=task.remove, groups=groups, slack=min(1, groups - 1))
    blocks = len(task.block_runner.blocks)
    sums = sum_windows(task, [cut for share in shares for cut in windows(blocks, share)], screen=screen)

    task.begin(Stage.SELECT)
    report_dense_loss(task)
    screened = {} if screen is None else dict(screen.table)
    screened |= {cut: screened_row(one, ridge=method.ridge) for cut, one in sums.items()}
    residuals = {cut: residual_of(screened[cut]) for cut in sums}
    sets = best_sets(residuals, groups=groups, remove=task.remove, most=method.replays)
    maps = {cut: fit_on_fit_tokens(sums[cut], ridge=method.ridge) for cuts in sets for cut in cuts}
    panel, tried = Panel.of(task.activations), dict[Cuts, Tried]()
    for number, cuts in enumerate(sets, start=1):
        losses = variant_losses(task.activations, Variant.of([maps[cut].fitted for cut in cuts]))
        rows = [maps[cut].row(screened[cut], panel, losses) for cut in cuts]
        tried[cuts] = Tried(losses=losses, rows=rows)
        task.progress.advance(number / len(sets))
    return Ranked.of(tried, panel, screened=screened, sums=sums)


def with_or_without(task: Task, cuts: Sequence[Cut], losses: Sequence[float]) -> tuple[Sequence[float], list[float]]:
    """The losses of the result, and those of plain removal of `cuts`; `losses` are those with what was fitted.

    The result is plain removal where the fit is not better than that: it is the simpler one.
    """
    removed = frozenset(block for cut in cuts for block in cut.blocks)
    plain = variant_losses(task.activations, Variant(removed=removed))
    return (losses if Panel.of(task.activations).is_worse(plain, losses) else plain), plain


def _can_screen(task: Task) -> bool:
    """Whether one half of the held-out tokens determines maps well enough to rank them on the other half."""
    held_out = task.tokens.held_out
    wanted = WELL_DETERMINED * task.block_runner.resolved.model.config.hidden_size
    return len(held_out) > 1 and held_out.numel() // 2 >= wanted


def lengths(*, remove: int, groups: int, slack: int) -> list[int]:
    """The lengths that a cut may have where `groups` of them remove `remove` blocks: within `slack` of an even share.

    >>> lengths(remove=8, groups=3, slack=1), lengths(remove=9, groups=2, slack=0)
    ([2, 3], [4, 5])
    """
    share = remove / groups
    return [length for length in range(1, remove - groups + 2) if abs(length - share) <= max(slack, 0.5)]


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
