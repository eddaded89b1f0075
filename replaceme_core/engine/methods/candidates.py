"""Sets of blocks that may go, found by their held-out loss with a map in place of each run of neighbours.

The streams of one dense pass are stored, so a set costs small sums, solves and a replay of half of the panel. Maps are
fitted on a part of the text: they rank sets, and none of them is delivered.
"""

import math
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from replaceme_core.engine.activations.tensor_store import activation_bytes
from replaceme_core.engine.methods.panel import Panel, report_dense_loss, variant_losses
from replaceme_core.engine.methods.task import Candidate, Task
from replaceme_core.engine.methods.windows import (
    Cuts,
    Ranked,
    RidgeFit,
    Tried,
    best_sets,
    fit_on_fit_tokens,
    lengths,
    residual_of,
    screened_row,
)
from replaceme_core.engine.model.changes import Cut, Variant, runs, windows
from replaceme_core.request.defaults import CHOICE_STREAM_BYTES, MOST_RUNS, RACE_PART
from replaceme_core.runner.messages import Stage


@contextmanager
def stored(task: Task) -> Iterator[Task]:
    """`task` itself, or the same with only as many fit sequences as can keep their streams; begins `select`.

    567 GB for 32 blocks of width 4,096 and 1,024 x 1,024 tokens: sets of blocks are ranked on a part of the text, and a
    refit that follows uses all of it. Raises `CalibrationTooSmall` where the part is too small for a map.
    """

    def size(sequences: int) -> int:
        return activation_bytes(task.block_runner, tokens=sequences * task.tokens.fit.shape[1])

    fit, part = task.tokens.fit, task
    room = (CHOICE_STREAM_BYTES - size(len(task.tokens.held_out))) // size(1)
    if len(fit) > room:
        activations = replace(
            task.activations,
            fit=fit[: max(1, room)],
            cached=None,
            store=None,
            complete=False,
            window_streams=None,
            dense_block_runs=0,
        )
        part = replace(task, tokens=task.tokens.first(fit=max(1, room)), activations=activations)
        part.require_rank()
    part.activations.capture()
    task.begin(Stage.SELECT)
    report_dense_loss(part)
    task.progress.metric("choice_tokens", part.calibration_tokens, "tokens")
    yield part
    if part is not task:
        task.activations.dense_block_runs += part.activations.dense_block_runs


@dataclass(kw_only=True)
class MappedSets:
    """The residuals and losses of sets of blocks with maps; everything is computed once."""

    task: Task
    panel: Panel = field(init=False)
    judging: Sequence[int] = field(init=False)
    numbers: Sequence[int] = field(init=False)
    """The batches that are read: a part of the fitted ones, and every second held-out one of each source."""
    rows: dict[Cut, Candidate] = field(default_factory=dict)
    tried: dict[Cuts, Tried] = field(default_factory=dict)
    _fits: dict[Cut, RidgeFit] = field(default_factory=dict)

    def __post_init__(self) -> None:
        activations = self.task.activations
        fit = activations.fit_batches[: max(1, round(RACE_PART * len(activations.fit_batches)))]
        self.numbers = [*fit, *activations.held_out_batches]
        self.judging = [
            number for number in activations.held_out_batches if not activations.batches[number].second_half
        ]
        self.panel = Panel.of(activations, numbers=self.judging)

    def residual(self, cut: Cut) -> float:
        """What a map leaves at the end of `cut` on held-out tokens, relative to the stream."""
        if cut not in self.rows:
            sums = self.task.activations.statistics(cut, numbers=self.numbers)
            self.rows[cut] = screened_row(sums, ridge=self.task.spec.method.ridge)
            self._fits[cut] = fit_on_fit_tokens(sums, ridge=self.task.spec.method.ridge)
        return residual_of(self.rows[cut])

    def mean(self, removed: Collection[int]) -> float:
        """The mean held-out loss with maps."""
        cuts = tuple(runs(sorted(removed)))
        if cuts not in self.tried:
            for cut in cuts:
                self.residual(cut)
            variant = Variant.of([self._fits[cut].fitted for cut in cuts])
            losses = variant_losses(self.task.activations, variant, numbers=self.judging)
            rows = [self._fits[cut].row(self.rows[cut], self.panel, losses) for cut in cuts]
            self.tried[cuts] = Tried(losses=losses, rows=rows)
        return self.panel.mean(self.tried[cuts].losses)


def search(task: Task) -> Ranked:
    """Sets of one to `MOST_RUNS` runs of even length, and those that are one move of an end away from the best one."""
    sets, blocks = MappedSets(task=task), len(task.block_runner.blocks)
    counts = range(1, min(MOST_RUNS, task.remove) + 1)
    for groups in counts:
        shares = lengths(remove=task.remove, groups=groups, slack=0)
        cuts = task.activations.allowed([cut for share in shares for cut in windows(blocks, share)])
        residuals = {}
        for number, cut in enumerate(cuts, start=1):
            residuals[cut] = sets.residual(cut)
            task.progress.advance((groups - 1 + number / len(cuts) / 2) / (len(counts) + 1))
        for some in best_sets(residuals, groups=groups, remove=task.remove, most=task.spec.method.replays):
            sets.mean([block for cut in some for block in cut.blocks])
        task.progress.advance(groups / (len(counts) + 1))
    best = min(sets.tried, key=lambda cuts: sets.panel.mean(sets.tried[cuts].losses))
    moves = neighbours([block for cut in best for block in cut.blocks], allowed=range(1, blocks))
    allows = task.activations.allows
    possible = [moved for moved in moves if allows is None or allows(moved)]
    possible.sort(key=lambda moved: sum(sets.residual(cut) for cut in runs(moved)))
    for moved in possible[: task.spec.method.replays]:
        sets.mean(moved)
    task.progress.advance(1.0)
    return Ranked.of(sets.tried, sets.panel, screened=sets.rows, judging=sets.judging)


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


def choose_one_by_one(task: Task) -> tuple[list[int], list[Candidate]]:
    """Greedy removal: in each step the block without which the loss is least, with a map in place of each run.

    Blocks are tried in the order of what they cost when they were tried last, until none can be better than the best
    one (lazy greedy: Minoux, Accelerated greedy algorithms, 1978): costs change little as others are removed.
    """
    sets = MappedSets(task=task)
    dense, every = task.activations.dense_losses(), task.activations.held_out_batches
    before = sets.panel.mean([dense[number - every.start] for number in sets.judging])
    removed, table = list[int](), list[Candidate]()
    costs = dict.fromkeys(range(1, len(task.block_runner.blocks)), -math.inf)
    for step in range(1, task.remove + 1):
        best, tried = math.inf, list[int]()
        for block in sorted(costs, key=lambda block: costs[block]):
            if before + costs[block] > best:
                break
            tried.append(block)
            costs[block] = sets.mean([*removed, block]) - before
            best = min(best, before + costs[block])
        taken = min(tried, key=lambda block: costs[block])
        for block in tried:
            losses = sets.tried[tuple(runs(sorted([*removed, block])))].losses
            table.append(
                Candidate(
                    start=block,
                    end=block,
                    held_out_loss=sets.panel.mean(losses),
                    source_losses=sets.panel.by_source(losses),
                    chosen=block == taken,
                    step=step,
                )
            )
        removed, before = [*removed, taken], best
        del costs[taken]
        task.progress.advance(step / task.remove)
    return sorted(removed), table
