"""Choose blocks one at a time: each step removes the one without which the held-out score, after the fit, is best.

Every run of neighbouring blocks gets its map (`set_losses`), so a step costs only replays and small solves. The cost of
removing a block changes little as others are removed, so its cost in an earlier step is a fair guess: a step tries
blocks in the order of their guesses and stops when the best one tried is not worse than the next guess (lazy greedy:
Minoux, Accelerated greedy algorithms, 1978). Costs are differences of scores (`selection.judge`). The blocks that are
tried are compared in a tournament, which spends fewer batches on those that are clearly worse.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from replaceme_core.methods.protocol import Task
from replaceme_core.methods.refit.set_losses import SetLosses
from replaceme_core.selection.candidate import Candidate
from replaceme_core.selection.tournament import tournament

LEAST_TRIES = 4
"""Blocks tried in each step whatever the guesses: a block may become cheap once its neighbour is removed."""
GUESSING = 0.3
"""Approximate share of the time that the first guesses take."""


@dataclass(frozen=True, kw_only=True)
class OneByOneChoice:
    """The blocks in the order of their removal, a row for every trial, and the held-out losses without the blocks."""

    removed: list[int]
    candidates: list[Candidate]
    losses: list[float]


class OneByOne:
    """Greedy removal. Losses are lists of sums in nats, one for each held-out batch from the first on."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._losses = SetLosses(task)
        self._judge = self._losses.judge

    def choose(self) -> OneByOneChoice:
        blocks = range(1, len(self._task.block_runner.blocks))
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
                    estimated=len(losses) < self._judge.batches,
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
        return OneByOneChoice(removed=removed, candidates=candidates, losses=before)

    def _step(
        self, removed: Sequence[int], guesses: dict[int, float], before: Sequence[float]
    ) -> tuple[int, dict[int, list[float]]]:
        """The block to remove next, and the losses without each block that was tried, as many as were computed."""
        order = sorted(guesses, key=lambda block: guesses[block])
        best, tried = tournament(
            order[:LEAST_TRIES],
            judge=self._judge,
            loss=lambda block, batch: self._losses.loss([*removed, block], batch),
            advance=lambda _: None,
        )
        for block in order[LEAST_TRIES:]:
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
