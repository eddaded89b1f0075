"""Choose blocks one at a time: each step takes the block whose loss on held-out tokens, after its fit, is least.

Every run of neighbours gets its map, fitted on the dense model's streams, so a step costs replays and small solves
only. What a block costs changes little as others go, so the cost of an earlier step is a fair guess: a step tries
blocks in the order of their guesses and stops when the best one tried is not worse than the next guess (lazy greedy:
Minoux, Accelerated greedy algorithms, 1978).
"""

from collections.abc import Collection, Sequence

from replaceme_core.methods.cuts import runs
from replaceme_core.methods.protocol import Task
from replaceme_core.modeling.capture import Cut, FittedCut
from replaceme_core.modeling.choose import Candidate
from replaceme_core.modeling.replay import Variant, summed_loss
from replaceme_core.numerics.solve import RIDGES, choose_ridge, solve_delta

LEAST_TRIES = 6
"""Blocks tried in each step whatever the guesses say, since a block may become cheap beside one that went."""
GUESSING = 0.3
"""Share of the time that the first guesses take, about."""


class OneByOne:
    """Greedy removal. What was fitted and measured once is kept: neighbours of a step ask for it again."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._batches = task.captured.held_out_batches
        self._maps: dict[Cut, FittedCut] = {}

    def choose(self) -> tuple[list[int], list[Candidate]]:
        """The blocks in the order in which they go, and a row for every trial."""
        first = self._batches[: max(1, len(self._batches) // 4)]
        blocks = range(1, len(self._task.blockwise.blocks))
        dense = self._dense(first)
        guesses: dict[int, float] = {}
        for block in blocks:
            guesses[block] = self.loss([block], first) - dense
            self._task.clock.progress.advance(GUESSING * len(guesses) / len(blocks))
        loss, removed = self._dense(self._batches), list[int]()
        candidates: list[Candidate] = []
        for step in range(1, self._task.remove + 1):
            tried = self._step(removed, guesses, loss=loss)
            best = min(tried, key=lambda block: tried[block])
            candidates += [
                Candidate(start=block, end=block, held_out_loss=found, chosen=block == best, step=step)
                for block, found in tried.items()
            ]
            guesses.update({block: found - loss for block, found in tried.items()})
            loss = tried[best]
            removed.append(best)
            del guesses[best]
            self._task.clock.progress.advance(GUESSING + (1 - GUESSING) * step / self._task.remove)
        return removed, candidates

    def _step(self, removed: Sequence[int], guesses: dict[int, float], *, loss: float) -> dict[int, float]:
        """The loss without each block that is worth a try."""
        tried: dict[int, float] = {}
        for block in sorted(guesses, key=lambda block: guesses[block]):
            if len(tried) >= LEAST_TRIES and min(tried.values()) <= loss + guesses[block]:
                break
            tried[block] = self.loss([*removed, block], self._batches)
        return tried

    def loss(self, removed: Collection[int], batches: Sequence[int]) -> float:
        """Mean next-token loss in nats without the blocks `removed`, each run of them with its map."""
        variant = Variant.of([self._map(cut) for cut in runs(sorted(removed))])
        captured, blockwise = self._task.captured, self._task.blockwise
        total, predictions = 0.0, 0
        for batch in batches:
            stream = variant.run(blockwise, captured.before(variant.first, batch), since=variant.first)
            tokens = captured.tokens(batch)
            total += summed_loss(blockwise, stream, tokens)
            predictions += tokens.shape[0] * (tokens.shape[1] - 1)
        return total / predictions

    def _dense(self, batches: Sequence[int]) -> float:
        captured, blockwise = self._task.captured, self._task.blockwise
        last, total, predictions = len(blockwise.blocks), 0.0, 0
        for batch in batches:
            tokens = captured.tokens(batch)
            total += summed_loss(blockwise, captured.before(last, batch), tokens)
            predictions += tokens.shape[0] * (tokens.shape[1] - 1)
        return total / predictions

    def _map(self, cut: Cut) -> FittedCut:
        if cut not in self._maps:
            one, ridge = self._task.captured.statistics(cut), self._task.spec.method.ridge
            ridges = RIDGES if ridge is None else (ridge,)
            ridge, _ = choose_ridge(one.fit, one.held_out, ridges=ridges, structure=one.structure)
            # Judged with the map of the fit tokens alone: one that has seen the held-out tokens would flatter itself.
            delta = solve_delta(one.fit, ridge=ridge, structure=one.structure)
            self._maps[cut] = FittedCut(cut=cut, delta=delta)
        return self._maps[cut]
