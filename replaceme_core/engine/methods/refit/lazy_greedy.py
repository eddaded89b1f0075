"""One step of a greedy choice that tries few entries: those with the best guesses of their costs.

A step tries runs of blocks in the order of their guesses and stops when the best one tried is not worse than the next
guess (lazy greedy: Minoux, Accelerated greedy algorithms, 1978). Costs are differences of scores (`selection.judge`).
What is tried is compared in a tournament, which spends fewer batches on what is clearly worse. Losses are lists of sums
in nats, one for each held-out batch from the first on.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from replaceme_core.engine.methods.refit.set_losses import SetLosses
from replaceme_core.engine.model.changes import Cut
from replaceme_core.engine.selection.candidate import Candidate
from replaceme_core.engine.selection.judge import Judge
from replaceme_core.engine.selection.tournament import tournament

Run = tuple[int, ...]
"""Blocks that are removed together, in order."""


@dataclass(frozen=True, kw_only=True)
class BlockChoice:
    """The blocks that go, a row for every trial, and the held-out losses without the blocks."""

    removed: list[int]
    candidates: list[Candidate]
    losses: list[float]


@dataclass(frozen=True, kw_only=True)
class Step:
    """The run to remove next, and the losses without each run that was tried, as many as were computed."""

    best: Run
    tried: Mapping[Run, list[float]]

    def rows(self, judge: Judge, *, number: int | None, is_part: bool = False) -> list[Candidate]:
        """A row for each trial of step `number`, `None` where it is the only one.

        `is_part`: `judge` sees a part of the held-out text.
        """
        beside = self.tried[self.best]
        return [
            row_of(
                Cut(start=run[0], end=run[-1]),
                losses,
                judge=judge,
                beside=beside,
                chosen=run == self.best,
                number=number,
                is_part=is_part,
            )
            for run, losses in self.tried.items()
        ]


def row_of(
    cut: Cut,
    losses: Sequence[float],
    *,
    judge: Judge,
    beside: Sequence[float],
    chosen: bool,
    number: int | None,
    is_part: bool,
) -> Candidate:
    """The row of `cut` in step `number`; where `losses` are fewer than those `beside` them, it is an estimate."""
    return Candidate(
        start=cut.start,
        end=cut.end,
        held_out_loss=judge.paired_mean(losses, beside=beside),
        estimated=is_part or len(losses) < judge.batches,
        source_losses=judge.by_source(losses, beside=beside),
        chosen=chosen,
        step=number,
    )


def next_run(
    order: Sequence[Run],
    *,
    guesses: Mapping[Run, float],
    losses: SetLosses,
    removed: Sequence[int],
    before: Sequence[float],
    least_tries: int,
) -> Step:
    """The best of `order`, which is sorted by `guesses`, once `removed` are gone; `before` are the losses then.

    A run without a guess is tried only among the first `least_tries`.
    """
    judge = losses.judge

    def loss(run: Run, batch: int) -> float:
        return losses.loss([*removed, *run], batch)

    best, tried = tournament(order[:least_tries], judge=judge, loss=loss, advance=lambda _: None)
    for run in order[least_tries:]:
        if judge.score(tried[best]) <= judge.score(before) + guesses.get(run, math.inf):
            break
        found = tried[run] = list[float]()
        while len(found) < judge.batches and not (
            found and judge.is_beyond_doubt(found, than=tried[best][: len(found)])
        ):
            found.append(loss(run, len(found)))
        if len(found) == judge.batches and judge.score(found) < judge.score(tried[best]):
            best = run
    return Step(best=best, tried=tried)


def cost(judge: Judge, losses: Sequence[float], *, before: Sequence[float]) -> float:
    """How much the score grows, on the batches of `losses`."""
    return judge.score(losses) - judge.score(before[: len(losses)])
