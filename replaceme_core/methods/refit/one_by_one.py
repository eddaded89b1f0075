"""Choose blocks one at a time: each step removes the one without which the held-out loss, after the fit, is least.

Every run of neighbouring blocks gets its map, fitted on the dense model's streams, so a step costs only replays and
small solves. The cost of removing a block changes little as others are removed, so its cost in an earlier step is a
fair guess: a step tries blocks in the order of their guesses and stops when the best one tried is not worse than the
next guess (lazy greedy: Minoux, Accelerated greedy algorithms, 1978). The blocks that are tried are compared in a
tournament, which spends few batches on those that are clearly worse.
"""

from collections.abc import Collection, Sequence

from replaceme_core.activations.held_out_loss import mean_loss, summed_loss
from replaceme_core.methods.cuts import runs
from replaceme_core.methods.protocol import Task
from replaceme_core.models.cut import Cut, FittedCut, Variant
from replaceme_core.selection.candidate import Candidate
from replaceme_core.selection.cut_fit import fit_on_fit_tokens
from replaceme_core.selection.replay import variant_losses
from replaceme_core.selection.tournament import is_beyond_doubt, paired_mean, tournament

LEAST_TRIES = 6
"""Blocks tried in each step whatever the guesses: a block may become cheap once its neighbour is removed."""
GUESSING = 0.3
"""Approximate share of the time that the first guesses take."""


class OneByOne:
    """Greedy removal. Maps are kept, since later steps need the same ones again.

    Losses are lists of sums in nats, one for each held-out batch from the first on.
    """

    def __init__(self, task: Task) -> None:
        self._task = task
        self._batches = task.activations.held_out_batches
        self._maps: dict[Cut, FittedCut] = {}

    def choose(self) -> tuple[list[int], list[Candidate]]:
        """The blocks in the order of their removal, and a row for every trial."""
        blocks = range(1, len(self._task.block_runner.blocks))
        before, removed = self._dense(), list[int]()
        guesses: dict[int, float] = {}
        for block in blocks:
            first = [self._loss([block], index) for index in range(max(1, len(self._batches) // 4))]
            guesses[block] = self._cost(first, before)
            self._task.progress.advance(GUESSING * len(guesses) / len(blocks))
        candidates: list[Candidate] = []
        for step in range(1, self._task.remove + 1):
            best, tried = self._step(removed, guesses, before)
            candidates += [
                Candidate(
                    start=block,
                    end=block,
                    held_out_loss=paired_mean(losses, beside=tried[best], mean=self._mean),
                    estimated=len(losses) < len(self._batches),
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
        return removed, candidates

    def _step(
        self, removed: Sequence[int], guesses: dict[int, float], before: Sequence[float]
    ) -> tuple[int, dict[int, list[float]]]:
        """The block to remove next, and the losses without each block that was tried, as many as were computed."""
        order = sorted(guesses, key=lambda block: guesses[block])
        best, tried = tournament(
            order[:LEAST_TRIES],
            batches=len(self._batches),
            loss=lambda block, index: self._loss([*removed, block], index),
            advance=lambda _: None,
        )
        for block in order[LEAST_TRIES:]:
            if self._mean(tried[best]) <= self._mean(before) + guesses[block]:
                break
            losses = tried[block] = list[float]()
            while len(losses) < len(self._batches) and not is_beyond_doubt(losses, than=tried[best][: len(losses)]):
                losses.append(self._loss([*removed, block], len(losses)))
            if len(losses) == len(self._batches) and sum(losses) < sum(tried[best]):
                best = block
        return best, tried

    def _loss(self, removed: Collection[int], index: int) -> float:
        """The loss on one held-out batch without the blocks `removed`, with a map for each run of them."""
        variant = Variant.of([self._map(cut) for cut in runs(sorted(removed))])
        return variant_losses(self._task.activations, [variant], batches=[self._batches[index]])[0][0]

    def _dense(self) -> list[float]:
        activations, block_runner = self._task.activations, self._task.block_runner
        last = len(block_runner.blocks)
        return [
            summed_loss(block_runner, activations.before(last, batch), activations.tokens(batch))
            for batch in self._batches
        ]

    def _mean(self, losses: Sequence[float]) -> float:
        return mean_loss(losses, self._task.activations.held_out_tokens)

    def _cost(self, losses: Sequence[float], before: Sequence[float]) -> float:
        """The growth of the mean loss, on the batches of `losses`."""
        return self._mean(losses) - self._mean(before[: len(losses)])

    def _map(self, cut: Cut) -> FittedCut:
        if cut not in self._maps:
            statistics = self._task.activations.statistics(cut)
            self._maps[cut] = fit_on_fit_tokens(statistics, ridge=self._task.spec.method.ridge).fitted
        return self._maps[cut]
