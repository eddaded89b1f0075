"""Choose blocks one at a time: each step removes the one without which the held-out score, after the fit, is best.

Every run of neighbouring blocks gets its map (`set_losses`), so a step costs only replays and small solves. The cost of
removing a block changes little as others are removed, so its cost in an earlier step is a fair guess: a step tries
blocks in the order of their guesses and stops when the best one tried is not worse than the next guess (lazy greedy:
Minoux, Accelerated greedy algorithms, 1978). Costs are differences of scores (`selection.judge`). The blocks that are
tried are compared in a tournament, which spends fewer batches on those that are clearly worse.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from replaceme_core.methods.cuts import runs
from replaceme_core.methods.protocol import Task
from replaceme_core.methods.refit.part_of_text import batches_for_choice, positions_for_choice
from replaceme_core.methods.refit.set_losses import SetLosses
from replaceme_core.selection.candidate import Candidate
from replaceme_core.selection.tournament import tournament

LEAST_TRIES = 4
"""Blocks tried in each step whatever the guesses: a block may become cheap once its neighbour is removed."""
FEW_TRIES = 1
"""The same with `early`: it found the same blocks as with two and four, in less time
(docs/research/memory-and-speed.md)."""
FOLLOWING = 3
"""One in so many of the kept blocks follows all blocks that `early` removes."""
LEAST_RUNS, BLOCKS_IN_RUN = 2, 4
"""`early` removes at most so many runs of neighbours, or one for each so many blocks. Each run has a map of its own
here, and a refit has none, so maps flatter many short runs (docs/decisions/0052-blocks-that-others-follow.md)."""
GUESSING = 0.3
"""Approximate share of the time that the first guesses take."""


def early_blocks(blocks: int, *, remove: int) -> range:
    """Those of `blocks` that at least a third of the kept ones follow.

    What a removed block did is made up for in the blocks after it, which maps do not show: they flatter late blocks
    (docs/decisions/0052-blocks-that-others-follow.md).

    >>> early_blocks(30, remove=8)
    range(1, 23)
    """
    return range(1, blocks - (blocks - remove) // FOLLOWING)


@dataclass(frozen=True, kw_only=True)
class OneByOneChoice:
    """The blocks in the order of their removal, a row for every trial, and the held-out losses without the blocks."""

    removed: list[int]
    candidates: list[Candidate]
    losses: list[float]


class OneByOne:
    """Greedy removal. Losses are lists of sums in nats, one for each held-out batch from the first on.

    With `early` it leaves the last blocks alone (`early_blocks`), removes few runs of neighbours, tries less, looks at
    the beginning of as many sequences of each source, and repeated passages judge too.
    """

    def __init__(self, task: Task, *, early: bool = False) -> None:
        self._task = task
        blocks = len(task.block_runner.blocks)
        self._blocks = early_blocks(blocks, remove=task.remove) if early else range(1, blocks)
        self._most_runs = max(LEAST_RUNS, task.remove // BLOCKS_IN_RUN) if early else blocks
        self._least_tries = FEW_TRIES if early else LEAST_TRIES
        positions = positions_for_choice(task) if early else None
        held_out = list(task.activations.held_out_batches)
        batches = batches_for_choice(task) if early else held_out
        self._is_part = positions is not None or batches != held_out
        self._losses = SetLosses(task, batches=batches, positions=positions, recall=early)
        self._judge = self._losses.judge

    def choose(self) -> OneByOneChoice:
        blocks = self._blocks
        before, removed = list(self._judge.dense), list[int]()
        guesses: dict[int, float] = {}
        for block in blocks:
            guesses[block] = self._cost(self._losses.guess([block]), before)
            self._task.progress.advance(GUESSING * len(guesses) / len(blocks))
        candidates: list[Candidate] = []
        for step in range(1, self._task.remove + 1):
            best, tried = self._step(removed, guesses, before)
            candidates += [
                Candidate(
                    start=block,
                    end=block,
                    held_out_loss=self._judge.paired_mean(losses, beside=tried[best]),
                    estimated=self._is_part or len(losses) < self._judge.batches,
                    source_losses=self._judge.by_source(losses, beside=tried[best]),
                    chosen=block == best,
                    step=step,
                )
                for block, losses in tried.items()
            ]
            guesses.update({block: self._cost(losses, before) for block, losses in tried.items()})
            before = tried[best]
            removed.append(best)
            del guesses[best]
            self._task.progress.advance(GUESSING + (1 - GUESSING) * step / self._task.remove)
        losses = self._losses.whole(removed) if self._is_part else before
        return OneByOneChoice(removed=removed, candidates=candidates, losses=losses)

    def _step(
        self, removed: Sequence[int], guesses: dict[int, float], before: Sequence[float]
    ) -> tuple[int, dict[int, list[float]]]:
        """The block to remove next, and the losses without each block that was tried, as many as were computed."""
        possible = [block for block in guesses if len(runs([*removed, block])) <= self._most_runs]
        order = sorted(possible, key=lambda block: guesses[block])
        best, tried = tournament(
            order[: self._least_tries],
            judge=self._judge,
            loss=lambda block, batch: self._losses.loss([*removed, block], batch),
            advance=lambda _: None,
        )
        for block in order[self._least_tries :]:
            if self._judge.score(tried[best]) <= self._judge.score(before) + guesses[block]:
                break
            losses = tried[block] = list[float]()
            while len(losses) < self._judge.batches and not (
                losses and self._judge.is_beyond_doubt(losses, than=tried[best][: len(losses)])
            ):
                losses.append(self._losses.loss([*removed, block], len(losses)))
            if len(losses) == self._judge.batches and self._judge.score(losses) < self._judge.score(tried[best]):
                best = block
        return best, tried

    def _cost(self, losses: Sequence[float], before: Sequence[float]) -> float:
        """How much the score grows, on the batches of `losses`."""
        return self._judge.score(losses) - self._judge.score(before[: len(losses)])
