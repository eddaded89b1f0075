"""Sets of blocks that may go, found by their held-out loss with a map in place of each run of neighbours.

Every method that chooses by maps chooses here. The streams of one dense pass are stored, so a set costs small sums,
solves, and a replay of half of the panel. Maps are in closed form, fitted on a part of the text: they rank sets, and
none of them is delivered.
"""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from heapq import nsmallest
from typing import TypeVar

from replaceme_core.engine.activations.capture import Activations, CutStatistics, Losses
from replaceme_core.engine.methods.panel import Panel, variant_losses
from replaceme_core.engine.methods.task import Candidate, Task
from replaceme_core.engine.model.changes import Cut, FittedCut, Variant, runs, windows
from replaceme_core.engine.numerics.solve import choose_ridge, solve_delta
from replaceme_core.engine.numerics.stream import MeanAngle
from replaceme_core.engine.numerics.sums import PRODUCT_DTYPE
from replaceme_core.errors import InvalidInput
from replaceme_core.request.defaults import MOST_RUNS, RACE_PART, RIDGES
from replaceme_core.runner.messages import Stage

WELL_DETERMINED = 3
"""Tokens for each unknown of a column of a map, at least, where maps rank sets of blocks."""

Blocks = tuple[int, ...]
"""Blocks that are removed together, in order."""
Removable = TypeVar("Removable", int, Cut, Blocks)


def blocks_of(cuts: Iterable[Cut]) -> Blocks:
    """The blocks of `cuts`, which are in order: the inverse of `runs`."""
    return tuple(block for cut in cuts for block in cut.blocks)


def store_streams(task: Task) -> Activations:
    """Store the streams of one dense pass, to compare sets of blocks on; begins `select`."""
    activations = task.activations
    activations.capture()
    task.begin(Stage.SELECT)
    panel = Panel.of(activations)
    task.progress.metric("dense_held_out_loss", panel.mean(activations.dense_losses()), panel.unit)
    task.progress.metric("tokens", activations.count(), "tokens")
    task.progress.metric("choice_tokens", activations.count(activations.stored), "tokens")
    return activations


def first_lap(task: Task) -> list[int]:
    """The fit batches on which candidates are compared: an eighth of those stored, or more to determine a map."""
    stored = [number for number in task.activations.fit_batches if number in task.activations.stored]
    tokens = task.activations.batches[0].tokens.numel()
    least = math.ceil(WELL_DETERMINED * task.block_runner.resolved.config.hidden_size / tokens)
    return stored[: max(least, round(RACE_PART * len(stored)))]


@dataclass(frozen=True, kw_only=True)
class RidgeFit:
    """A map from the fit tokens alone, with its `ridge` and the relative `residual` that it leaves on held-out tokens.

    Held-out tokens judge this map: one that has been fitted on them too would look better than it is.
    """

    statistics: CutStatistics
    from_fit_tokens: FittedCut
    ridge: float
    residual: float

    @classmethod
    def of(cls, statistics: CutStatistics, *, ridge: float | None) -> "RidgeFit":
        """The map at `ridge`, or at the one of `RIDGES` that leaves the least residual on held-out tokens.

        Raises `NumericalFailure` where no ridge gives a usable map.
        """
        ridges = RIDGES if ridge is None else (ridge,)
        best, residual = choose_ridge(statistics.fit, statistics.held_out, ridges=ridges, diagonal=statistics.diagonal)
        delta = solve_delta(statistics.fit, ridge=best, diagonal=statistics.diagonal)
        fitted = FittedCut(cut=statistics.cut, delta=delta)
        return cls(statistics=statistics, from_fit_tokens=fitted, ridge=best, residual=residual)

    def row(self) -> Candidate:
        """What is known before the blocks after the cut are run. An infinite ridge makes no map."""
        return Candidate(
            cut=self.statistics.cut,
            distance=self.statistics.angle.value,
            residual=self.residual,
            ridge=None if math.isinf(self.ridge) else self.ridge,
            tokens=self.statistics.tokens,
        )


@dataclass(kw_only=True)
class MappedSets:
    """The residuals and losses of sets of blocks with maps; begins `select` once streams are stored."""

    task: Task
    panel: Panel = field(init=False)
    numbers: Sequence[int] = field(init=False)
    """The batches that maps are fitted and judged on."""
    sinks: int = 0
    """The most tokens that were sinks at an end of a cut."""
    rows: dict[Cut, Candidate] = field(default_factory=dict)
    tried: dict[Blocks, Losses] = field(default_factory=dict)
    _maps: dict[Cut, FittedCut] = field(default_factory=dict)
    """Of the sets that were tried; those of all cuts would be large."""

    def __post_init__(self) -> None:
        activations = store_streams(self.task)
        held_out = [number for number in activations.held_out_batches if number in activations.stored]
        self.panel = Panel.of(activations, numbers=held_out).half()
        self.numbers = [*first_lap(self.task), *self.panel.batches]

    def residual(self, cut: Cut) -> float:
        """What a map leaves at the end of `cut` on held-out tokens, relative to the stream."""
        if cut not in self.rows:
            self._map(cut)
        residual = self.rows[cut].residual
        assert residual is not None
        return residual

    def _map(self, cut: Cut) -> FittedCut:
        """In float32: replays are not more exact."""
        task = self.task
        statistics = task.activations.statistics(cut, numbers=self.numbers, diagonal=task.diagonal)
        fit = RidgeFit.of(statistics, ridge=task.spec.method.ridge)
        self.rows[cut], self.sinks = fit.row(), max(self.sinks, statistics.sinks)
        return FittedCut(cut=cut, delta=fit.from_fit_tokens.delta.to(PRODUCT_DTYPE))

    def mean(self, removed: Collection[int]) -> float:
        """The mean held-out loss with maps."""
        blocks = tuple(sorted(removed))
        if blocks not in self.tried:
            for cut in runs(blocks):
                if cut not in self._maps:
                    self._maps[cut] = self._map(cut)
            variant = Variant.of([self._maps[cut] for cut in runs(blocks)])
            self.tried[blocks] = variant_losses(self.task.activations, variant, numbers=self.panel.batches)
        return self.panel.mean(self.tried[blocks])

    @property
    def best_first(self) -> list[Blocks]:
        """The sets that were tried, in order."""
        return sorted(self.tried, key=self.mean)

    @property
    def best(self) -> Blocks:
        """The set of least loss. Raises `InvalidInput` where none may go."""
        return some_of(self.best_first)[0]

    def rows_of(self, blocks: Blocks) -> list[Candidate]:
        """A row for each cut of a set that was tried."""
        return [self.panel.row(self.rows[cut], self.tried[blocks]) for cut in runs(blocks)]

    def table(self, chosen: Blocks, rows: Sequence[Candidate] = ()) -> list[Candidate]:
        """All rows: of cuts in order, then of sets. `rows` of the `chosen` set take the place of its own."""
        found, sets = dict(self.rows), list[Candidate]()
        for blocks in self.best_first:
            own = self.rows_of(blocks)
            taken = [replace(row, chosen=True) for row in rows or own] if blocks == chosen else own
            if len(taken) == 1:
                found[taken[0].cut] = taken[0]
            else:
                number = len({row.group for row in sets}) + 1
                sets += [replace(row, group=number) for row in taken]
        return [*(found[cut] for cut in sorted(found)), *sets]


def search(task: Task) -> MappedSets:
    """The named blocks; or sets of one to `MOST_RUNS` runs of even length, and those one move of an end away from the
    best one."""
    sets, blocks = MappedSets(task=task), len(task.block_runner.blocks)
    if task.spec.drop is not None:
        sets.mean(task.spec.drop)
        return sets
    counts = range(1, min(MOST_RUNS, task.remove) + 1)
    for groups in counts:
        try_best(sets, groups=groups, start=(groups - 1) / (len(counts) + 1), end=groups / (len(counts) + 1))
    moves = neighbours(sets.best, allowed=range(1, blocks))
    possible = [moved for moved in moves if task.activations.may_go(moved)]
    possible.sort(key=lambda moved: sum(sets.residual(cut) for cut in runs(moved)))
    for moved in possible[: task.spec.method.replays]:
        sets.mean(moved)
    task.progress.advance(1.0)
    task.progress.metric("sink_tokens", sets.sinks, "tokens")
    return sets


def rank(task: Task, *, groups: int) -> MappedSets:
    """Sets of `groups` runs of even length."""
    sets = MappedSets(task=task)
    try_best(sets, groups=groups, start=0.0, end=1.0)
    task.progress.metric("sink_tokens", sets.sinks, "tokens")
    return sets


def try_best(sets: MappedSets, *, groups: int, start: float, end: float) -> None:
    """Try the `replays` sets of `groups` runs of least residual, whose lengths differ by one at most.

    This is the part `start` to `end` of the stage.
    """
    task = sets.task
    shares = sorted({task.remove // groups, math.ceil(task.remove / groups)})
    blocks, progress = len(task.block_runner.blocks), task.progress.part(start, end)
    cuts = [cut for share in shares for cut in windows(blocks, share) if task.activations.may_go(cut.blocks)]
    residuals = {}
    for number, cut in enumerate(cuts, start=1):
        residuals[cut] = sets.residual(cut)
        progress.advance(number / len(cuts) / 2)
    found = best_sets(residuals, groups=groups, remove=task.remove, most=task.spec.method.replays)
    chosen = [one for one in found if task.activations.may_go(one)]
    for number, one in enumerate(chosen, start=1):
        sets.mean(one)
        progress.advance((1 + number / len(chosen)) / 2)


def neighbours(removed: Collection[int], *, allowed: Collection[int]) -> list[tuple[int, ...]]:
    """The sets of blocks one move of an end away, in order; they have no more runs than `removed`.

    >>> neighbours([1, 2, 5], allowed=range(1, 6))
    [(1, 2, 3), (1, 4, 5), (2, 3, 5), (2, 4, 5)]
    """
    found = set[tuple[int, ...]]()
    cuts = runs(sorted(removed))
    for released in sorted({block for cut in cuts for block in (cut.start, cut.end)}):
        left = sorted({*removed} - {released})
        for run in runs(left):
            for taken in (run.start - 1, run.end + 1):
                moved = tuple(sorted([*left, taken]))
                if taken in allowed and taken not in removed and len(runs(moved)) <= len(cuts):
                    found.add(moved)
    return sorted(found)


def choose_one_by_one(task: Task) -> tuple[Blocks, list[Candidate]]:
    """Greedy removal: in each step the block without which the loss is least, with a map in place of each run.

    Blocks are tried in the order of what they cost when they were tried last, until none can be better than the best
    one (lazy greedy: Minoux, Accelerated greedy algorithms, 1978): costs change little as others are removed.
    """
    sets = MappedSets(task=task)
    before = sets.panel.mean(task.activations.dense_losses())
    removed, table = Blocks(), list[Candidate]()
    costs = dict.fromkeys(range(1, len(task.block_runner.blocks)), -math.inf)
    for step in range(1, task.remove + 1):
        best, tried = math.inf, list[int]()
        for block in sorted(costs, key=lambda block: costs[block]):
            if before + costs[block] > best:
                break
            if not task.activations.may_go([*removed, block]):
                continue
            tried.append(block)
            costs[block] = sets.mean([*removed, block]) - before
            best = min(best, before + costs[block])
        taken = min(some_of(tried), key=lambda block: costs[block])
        for block in tried:
            row = Candidate(cut=Cut.of(block), chosen=block == taken, step=step)
            table.append(sets.panel.row(row, sets.tried[tuple(sorted([*removed, block]))]))
        removed, before = tuple(sorted([*removed, taken])), best
        del costs[taken]
        task.progress.advance(step / task.remove)
    return removed, table


def allowed_windows(task: Task) -> Sequence[Cut]:
    """The windows that the task may remove. Raises `InvalidInput` if there are none."""
    cuts = windows(len(task.block_runner.blocks), task.remove)
    return some_of([cut for cut in cuts if task.activations.may_go(cut.blocks)])


def least_distance(
    angles: Mapping[Cut, MeanAngle], *, named: list[Cut] | None = None
) -> tuple[list[Cut], list[Candidate]]:
    """The `named` cuts, or the one of least distance across it; and a row for each of `angles`."""
    chosen = named or [min(angles, key=lambda cut: angles[cut].value)]
    return chosen, [Candidate(cut=cut, distance=angle.value, chosen=cut in chosen) for cut, angle in angles.items()]


def some_of(candidates: Sequence[Removable]) -> Sequence[Removable]:
    """The `candidates` that may go. Raises `InvalidInput` if there are none."""
    if not candidates:
        raise InvalidInput(
            "more blocks are to be removed than this model can lose: some must stay, for the caches of others, for "
            "what is added to the first ones, or for the pattern of their kinds; remove fewer",
            field="ratio",
        )
    return candidates


def best_sets(residuals: Mapping[Cut, float], *, groups: int, remove: int, most: int) -> list[Blocks]:
    """At most `most` sets of `remove` blocks in `groups` cuts, those of the least summed residual first.

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

    return [blocks_of(chosen) for _, chosen in best(groups, remove, 1)]
