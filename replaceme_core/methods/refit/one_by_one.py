"""Choose blocks one at a time: each step removes the one without which the held-out score, after the fit, is best.

Every run of neighbouring blocks gets its map, fitted on the dense model's streams, so a step costs only replays and
small solves. The cost of removing a block changes little as others are removed, so its cost in an earlier step is a
fair guess: a step tries blocks in the order of their guesses and stops when the best one tried is not worse than the
next guess (lazy greedy: Minoux, Accelerated greedy algorithms, 1978). Costs are differences of scores
(`selection.judge`). The blocks that are tried are compared in a tournament, which spends fewer batches on those that
are clearly worse.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from replaceme_core.methods.cuts import runs
from replaceme_core.methods.protocol import Task
from replaceme_core.models.cut import Cut, FittedCut, Variant
from replaceme_core.selection.candidate import Candidate
from replaceme_core.selection.cut_fit import fit_on_fit_tokens
from replaceme_core.selection.replay import held_out_judge, variant_losses
from replaceme_core.selection.tournament import tournament

LEAST_TRIES, QUICK_TRIES = 4, 2
"""Blocks tried in each step whatever the guesses: a block may become cheap once its neighbour is removed."""
QUICK_POSITIONS = 256
"""So many positions of each held-out sequence are run: more sequences say more than longer ones."""
GUESSING = 0.3
"""Approximate share of the time that the first guesses take."""


@dataclass(frozen=True, kw_only=True)
class OneByOneChoice:
    """The blocks in the order of their removal, and a row for every trial.

    `loss` in nats and `score` (`selection.judge`) are without all of them, with maps, on the held-out tokens of the
    choice.
    """

    removed: list[int]
    candidates: list[Candidate]
    loss: float
    score: float


class OneByOne:
    """Greedy removal. Maps are kept, since later steps need the same ones again.

    Losses are lists of sums in nats, one for each held-out batch from the first on. With `quick`, steps try fewer
    blocks and run the first `QUICK_POSITIONS` of each sequence; the result is judged on all.
    """

    def __init__(self, task: Task, *, quick: bool = False) -> None:
        self._task = task
        self._batches = task.activations.held_out_batches
        self._positions = QUICK_POSITIONS if quick and task.tokens.held_out.shape[1] > QUICK_POSITIONS else None
        self._judge = held_out_judge(task.activations, positions=self._positions)
        self._tries = QUICK_TRIES if quick else LEAST_TRIES
        self._maps: dict[Cut, FittedCut] = {}

    def choose(self) -> "OneByOneChoice":
        blocks = range(1, len(self._task.block_runner.blocks))
        before, removed = list(self._judge.dense), list[int]()
        guesses: dict[int, float] = {}
        looks = max(len(self._judge.counts), len(self._batches) // 4)
        for block in blocks:
            first = [self._loss([block], index) for index in range(looks)]
            guesses[block] = self._cost(first, before)
            self._task.progress.advance(GUESSING * len(guesses) / len(blocks))
        candidates: list[Candidate] = []
        for step in range(1, self._task.remove + 1):
            best, tried = self._step(removed, guesses, before)
            candidates += [
                Candidate(
                    start=block,
                    end=block,
                    held_out_loss=self._judge.paired_mean(losses, beside=tried[best]),
                    estimated=self._positions is not None or len(losses) < len(self._batches),
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
        losses, judge = before, self._judge
        if self._positions is not None:
            judge = held_out_judge(self._task.activations)
            (losses,) = variant_losses(self._task.activations, [self._variant(removed)])
        return OneByOneChoice(
            removed=removed, candidates=candidates, loss=judge.mean(losses), score=judge.score(losses)
        )

    def _step(
        self, removed: Sequence[int], guesses: dict[int, float], before: Sequence[float]
    ) -> tuple[int, dict[int, list[float]]]:
        """The block to remove next, and the losses without each block that was tried, as many as were computed."""
        order = sorted(guesses, key=lambda block: guesses[block])
        best, tried = tournament(
            order[: self._tries],
            judge=self._judge,
            loss=lambda block, index: self._loss([*removed, block], index),
            advance=lambda _: None,
        )
        for block in order[self._tries :]:
            if self._judge.score(tried[best]) <= self._judge.score(before) + guesses[block]:
                break
            losses = tried[block] = list[float]()
            while len(losses) < self._judge.batches and not (
                losses and self._judge.is_beyond_doubt(losses, than=tried[best][: len(losses)])
            ):
                losses.append(self._loss([*removed, block], len(losses)))
            if len(losses) == self._judge.batches and self._judge.score(losses) < self._judge.score(tried[best]):
                best = block
        return best, tried

    def _loss(self, removed: Collection[int], index: int) -> float:
        """The loss on one held-out batch without the blocks `removed`, with a map for each run of them."""
        (losses,) = variant_losses(
            self._task.activations,
            [self._variant(removed)],
            batches=[self._batches[index]],
            positions=self._positions,
        )
        return losses[0]

    def _variant(self, removed: Collection[int]) -> Variant:
        return Variant.of([self._map(cut) for cut in runs(sorted(removed))])

    def _cost(self, losses: Sequence[float], before: Sequence[float]) -> float:
        """How much the score grows, on the batches of `losses`."""
        return self._judge.score(losses) - self._judge.score(before[: len(losses)])

    def _map(self, cut: Cut) -> FittedCut:
        if cut not in self._maps:
            statistics = self._task.activations.statistics(cut)
            self._maps[cut] = fit_on_fit_tokens(statistics, ridge=self._task.spec.method.ridge).fitted
        return self._maps[cut]
