"""Swap an end block of the chosen runs for a neighbour of a run.

A choice of runs begins with equal lengths, since runs of every length would be many times as many guesses. One move
from there finds the better lengths nearby (docs/explanation/how-the-default-works.md#runs).
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from replaceme_core.engine.methods.cuts import runs
from replaceme_core.engine.methods.refit.lazy_greedy import Run, cost, next_run, row_of
from replaceme_core.engine.methods.refit.set_losses import SetLosses
from replaceme_core.engine.selection.candidate import Candidate
from replaceme_core.engine.selection.judge import Judge

TRIES = 4
"""Sets of blocks tried for each move, the present one among them, whatever the guesses."""


def neighbours(removed: Collection[int], *, allowed: Collection[int]) -> list[Run]:
    """The sets of blocks one move away, in order; they have no more runs than `removed`.

    >>> neighbours([1, 2, 5], allowed=range(1, 6))
    [(1, 2, 3), (1, 4, 5), (2, 3, 5), (2, 4, 5)]
    """
    found = set[Run]()
    cuts = runs(sorted(removed))
    for released in sorted({block for cut in cuts for block in (cut.start, cut.end)}):
        left = sorted({*removed} - {released})
        for run in runs(left):
            for taken in (run.start - 1, run.end + 1):
                moved = tuple(sorted([*left, taken]))
                if taken in allowed and taken not in removed and len(runs(moved)) <= len(cuts):
                    found.add(moved)
    return sorted(found)


@dataclass(frozen=True, kw_only=True)
class Move:
    """The blocks to remove after a move, and the held-out losses by batch."""

    removed: list[int]
    losses: list[float]

    def rows(self, judge: Judge, *, number: int, is_part: bool) -> list[Candidate]:
        """A row for each run that goes, in step `number`; `is_part`: `judge` sees a part of the held-out text."""
        return [
            row_of(cut, self.losses, judge=judge, beside=self.losses, chosen=True, number=number, is_part=is_part)
            for cut in runs(self.removed)
        ]


def best_move(losses: SetLosses, removed: Sequence[int], *, allowed: Collection[int]) -> Move | None:
    """The move that lowers the score most among those tried; `None` where none of them lowers it."""
    judge, present = losses.judge, tuple(sorted(removed))
    possible = neighbours(removed, allowed=allowed)
    guesses = {blocks: cost(judge, losses.guess(blocks), before=judge.dense) for blocks in possible}
    found = next_run(
        [present, *sorted(possible, key=lambda blocks: guesses[blocks])],
        guesses=guesses,
        losses=losses,
        removed=(),
        before=judge.dense,
        least_tries=TRIES,
    )
    if found.best == present:
        return None
    return Move(removed=list(found.best), losses=found.tried[found.best])
