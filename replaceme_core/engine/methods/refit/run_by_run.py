"""Choose a few runs of neighbouring blocks: each step removes the run without which the held-out score is best.

A block that costs least by itself may have neighbours that cost much, so a run is judged as a whole
(docs/explanation/how-the-default-works.md#runs). Every run gets its map (`set_losses`), so a step costs only replays
and small solves. What a run costs alone is a guess of what it costs beside others (`lazy_greedy`).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from replaceme_core.engine.methods.protocol import Task
from replaceme_core.engine.methods.refit.lazy_greedy import BlockChoice, Run, cost, next_run
from replaceme_core.engine.methods.refit.moved_ends import best_move
from replaceme_core.engine.methods.refit.part_of_text import batches_for_choice, positions_for_choice
from replaceme_core.engine.methods.refit.set_losses import SetLosses
from replaceme_core.engine.selection.candidate import Candidate
from replaceme_core.engine.selection.judge import Judge

FOLLOWING = 3
"""A third of the kept blocks follow all that are removed."""
FIRST = 10
"""A tenth of the blocks come before all that are removed: removing the first ones costs a refit more than maps show
(docs/explanation/how-the-default-works.md#runs)."""
LEAST_RUNS, BLOCKS_IN_RUN = 2, 4
"""Two runs are removed, or one for each four blocks. Each run has a map of its own here, and a refit has none:
maps flatter many short runs (docs/explanation/how-the-default-works.md#runs)."""
LEAST_TRIES, MOST_TRIES = 4, 8
"""Runs tried in each step, whatever the guesses."""
GUESSING = 0.4
"""Approximate share of the time until all runs are chosen that the guesses take."""
MOVING = 0.25
"""Approximate share of the time that a move of their ends takes."""


def early_blocks(blocks: int, *, remove: int) -> range:
    """Those of `blocks` that at least a third of the kept ones follow, without the first ones.

    What a removed block did is made up for in the blocks after it, which maps do not show: they flatter late blocks
    (docs/explanation/how-the-default-works.md#runs).

    >>> early_blocks(30, remove=8), early_blocks(6, remove=2)
    (range(3, 23), range(1, 5))
    """
    following = (blocks - remove) // FOLLOWING
    return range(max(1, min(blocks // FIRST, following)), blocks - following)


def divisions(remove: int) -> list[list[int]]:
    """The ways to divide the blocks to remove: several runs, the longer ones first, and one.

    >>> [divisions(remove) for remove in (1, 2, 15)]
    [[[1]], [[1, 1], [2]], [[5, 5, 5], [15]]]
    """
    count = max(min(LEAST_RUNS, remove), remove // BLOCKS_IN_RUN)
    each, longer = divmod(remove, count)
    several = [each + 1] * longer + [each] * (count - longer)
    return [several] if count == 1 else [several, [remove]]


@dataclass(kw_only=True)
class RunByRun:
    """Losses are lists of sums in nats, one for each held-out batch from the first on.

    It leaves the last blocks alone (`early_blocks`), and looks at the beginning of as many held-out sequences of each
    source; repeated passages judge, too.
    """

    task: Task
    losses: SetLosses = field(init=False)
    judge: Judge = field(init=False)
    is_part: bool = field(init=False)
    guesses: dict[Run, float] = field(default_factory=dict)
    """By run: how much the score grows without it alone, on the first batches."""

    def __post_init__(self) -> None:
        positions, batches = positions_for_choice(self.task), batches_for_choice(self.task)
        self.is_part = positions is not None or batches != list(self.task.activations.held_out_batches)
        self.losses = SetLosses(self.task, batches=batches, positions=positions, recall=True)
        self.judge = self.losses.judge

    @property
    def _early(self) -> range:
        return early_blocks(len(self.task.block_runner.blocks), remove=self.task.remove)

    def choose(self, lengths: Sequence[int], *, advance: Callable[[float], None]) -> BlockChoice:
        """Runs of these lengths; an end of several ones is then moved (`moved_ends`), where that is better.

        `advance` is given the fraction that is done. Maps serve later choices as well.
        """
        removed, before = list[int](), list(self.judge.dense)
        candidates: list[Candidate] = []
        for number, length in enumerate(lengths, start=1):
            step = next_run(
                self._possible(removed, length, advance)[:MOST_TRIES],
                guesses=self.guesses,
                losses=self.losses,
                removed=removed,
                before=before,
                least_tries=LEAST_TRIES,
            )
            candidates += step.rows(self.judge, number=number if len(lengths) > 1 else None, is_part=self.is_part)
            removed, before = [*removed, *step.best], step.tried[step.best]
            advance((1 - MOVING) * (GUESSING + (1 - GUESSING) * number / len(lengths)))
        move = best_move(self.losses, removed, allowed=self._early) if len(lengths) > 1 else None
        if move is not None:
            removed, before = move.removed, move.losses
            moved = move.rows(self.judge, number=len(lengths) + 1, is_part=self.is_part)
            candidates = [*(replace(row, chosen=False) for row in candidates), *moved]
        advance(1.0)
        losses = self.losses.whole(removed) if self.is_part else before
        return BlockChoice(removed=sorted(removed), candidates=candidates, losses=losses)

    def _possible(self, removed: Sequence[int], length: int, advance: Callable[[float], None]) -> list[Run]:
        """Runs of `length` blocks that are neighbours once `removed` are gone, those with the best guesses first."""
        left = [block for block in self._early if block not in removed]
        found = [tuple(left[start : start + length]) for start in range(len(left) - length + 1)]
        apart = [run for run in found if run[-1] - run[0] == length - 1]
        for number, run in enumerate(run for run in apart if run not in self.guesses):
            self.guesses[run] = cost(self.judge, self.losses.guess(run), before=self.judge.dense)
            if not removed:
                advance((1 - MOVING) * GUESSING * (number + 1) / len(apart))
        # a run around removed blocks is one long cut with these: it comes last
        return sorted(found, key=lambda run: self.guesses.get(run, math.inf))
