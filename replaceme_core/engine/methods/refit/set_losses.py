"""Held-out losses of sets of blocks, each run of neighbouring blocks with its map.

Maps are fitted on the dense model's streams and kept, since many sets have the same runs: a set costs only replays and
small solves. Losses are lists of sums in nats, one for each held-out batch from the first on.
"""

from collections.abc import Collection, Sequence

from replaceme_core.engine.methods.cuts import runs
from replaceme_core.engine.methods.protocol import Task
from replaceme_core.engine.model.changes import Cut, FittedCut, Variant
from replaceme_core.engine.selection.cut_fit import fit_on_fit_tokens
from replaceme_core.engine.selection.judge import Judge
from replaceme_core.engine.selection.replay import held_out_judge, variant_losses

TOGETHER = 4
"""Batches that are run together, once enough of them are known to leave a set out."""


class SetLosses:
    """On these held-out `batches`, all by default.

    With `positions` only these first ones of each sequence are run; `recall`: as `held_out_judge`.
    """

    def __init__(
        self, task: Task, *, batches: Sequence[int] | None = None, positions: int | None = None, recall: bool = False
    ) -> None:
        self._task = task
        self._positions = positions
        self._maps: dict[Cut, FittedCut] = {}
        self._known: dict[frozenset[int], list[float]] = {}
        self._numbers = task.activations.held_out_batches if batches is None else batches
        self.judge: Judge = held_out_judge(task.activations, positions=positions, recall=recall, batches=self._numbers)

    @property
    def first_look(self) -> int:
        """How many batches are run where a guess will do."""
        return max(len(self.judge.counts), self.judge.batches // 4)

    def loss(self, removed: Collection[int], batch: int) -> float:
        """On one held-out batch. Those that will be asked for as well are run with it."""
        known = self._known.setdefault(frozenset(removed), [])
        while len(known) <= batch:
            until = max(self.judge.first_verdict, len(known) + TOGETHER)
            known += self._losses(removed, self._numbers[len(known) : until], self._positions)
        return known[batch]

    def guess(self, removed: Collection[int]) -> list[float]:
        """On the first batches."""
        known = self._known[frozenset(removed)] = self._losses(
            removed, self._numbers[: self.first_look], self._positions
        )
        return list(known)

    def whole(self, removed: Collection[int]) -> list[float]:
        """On every held-out batch, and all of it; `held_out_judge` without `batches` and `positions` judges these."""
        return self._losses(removed, self._task.activations.held_out_batches, None)

    def _losses(self, removed: Collection[int], numbers: Collection[int], positions: int | None) -> list[float]:
        variant = Variant.of([self._map(cut) for cut in runs(sorted(removed))])
        (losses,) = variant_losses(self._task.activations, [variant], batches=list(numbers), positions=positions)
        return losses

    def _map(self, cut: Cut) -> FittedCut:
        if cut not in self._maps:
            statistics = self._task.activations.statistics(cut)
            self._maps[cut] = fit_on_fit_tokens(statistics, ridge=self._task.spec.method.ridge).fitted
        return self._maps[cut]
