"""Better blocks from given ones: one is exchanged for another while the held-out score, with maps, gets better.

A window is a good set to begin with, and rarely the best one: often an early block can go instead of its last one.
Removing blocks one after another instead ends where no single step leads on (docs/research/selection.md).
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from replaceme_core.methods.protocol import Task
from replaceme_core.methods.refit.set_losses import SetLosses
from replaceme_core.selection.candidate import Candidate
from replaceme_core.selection.replay import held_out_judge
from replaceme_core.selection.tournament import tournament

POSITIONS = 256
"""So many positions of each held-out sequence are run: more sequences say more than longer ones."""
TRIES = 4
"""Blocks that are tried in place of one: those that cost least by themselves."""
FAILURES = 2
"""Blocks that are put back in turn without finding a better one in their place, before the search ends."""
GUESSING = 0.3
"""Approximate share of the time that the cost of each block by itself takes."""


@dataclass(frozen=True, kw_only=True)
class Exchanged:
    """The blocks, and a row for every trial.

    `loss` in nats and `score` (`selection.judge`) are without all of them, with maps, on the held-out tokens.
    """

    removed: list[int]
    candidates: list[Candidate]
    loss: float
    score: float


def exchange(task: Task, start: Collection[int]) -> Exchanged:
    """The blocks to remove in place of `start`, as many."""
    search = _Search(task)
    removed = search.improve(frozenset(start))
    judge = held_out_judge(task.activations)
    losses = search.losses.at_all_positions(removed)
    return Exchanged(
        removed=sorted(removed), candidates=search.rows, loss=judge.mean(losses), score=judge.score(losses)
    )


class _Search:
    def __init__(self, task: Task) -> None:
        self._is_shorter = task.tokens.held_out.shape[1] > POSITIONS
        self.losses = SetLosses(task, positions=POSITIONS if self._is_shorter else None)
        self.rows: list[Candidate] = []
        self._task = task
        self._judge = self.losses.judge

    def improve(self, removed: frozenset[int]) -> frozenset[int]:
        """`removed` after all exchanges."""
        blocks = range(1, len(self._task.block_runner.blocks))
        if len(removed) == len(blocks):  # none is left to go instead
            return removed
        alone = self._cheapest_alone(blocks)
        before = self.losses.all(removed)
        step, steps, failures = 0, self._task.remove + FAILURES, 0
        order = self._cheapest_to_have(removed)
        while failures < min(FAILURES, len(order)) and step < steps:
            step += 1
            back = order[failures]
            tried = [removed - {back} | {block} for block in alone if block not in removed][:TRIES]
            best, losses = tournament(tried, judge=self._judge, loss=self.losses.loss, advance=lambda _: None)
            is_better = self._judge.score(losses[best]) < self._judge.score(before)
            for each in tried:
                self._note(each - removed, losses[each], losses[best], back, step, is_better and each == best)
            self._task.progress.advance(GUESSING + (1 - GUESSING) * step / steps)
            if is_better:
                removed, before, failures = best, losses[best], 0
                order = self._cheapest_to_have(removed)
            else:
                failures += 1
        return removed

    def _cheapest_alone(self, blocks: Collection[int]) -> list[int]:
        """All blocks that may go, those first that cost least by themselves."""
        scores: dict[int, float] = {}
        for block in blocks:
            scores[block] = self._judge.score(self.losses.guess([block]))
            self._task.progress.advance(GUESSING * len(scores) / len(blocks))
        return sorted(blocks, key=scores.__getitem__)

    def _cheapest_to_have(self, removed: frozenset[int]) -> list[int]:
        """The removed blocks, those first whose return gains most."""
        if len(removed) == 1:
            return list(removed)
        scores = {block: self._judge.score(self.losses.guess(removed - {block})) for block in removed}
        return sorted(removed, key=scores.__getitem__)

    def _note(
        self,
        added: Collection[int],
        losses: Sequence[float],
        beside: Sequence[float],
        back: int,
        step: int,
        is_chosen: bool,
    ) -> None:
        (block,) = added
        self.rows.append(
            Candidate(
                start=block,
                end=block,
                instead_of=back,
                held_out_loss=self._judge.paired_mean(losses, beside=beside),
                estimated=self._is_shorter or len(losses) < len(beside),
                source_losses=self._judge.by_source(losses, beside=beside),
                chosen=is_chosen,
                step=step,
            )
        )
