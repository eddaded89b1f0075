"""Removal of one block at a time: the one whose removal costs the least loss (SLEB, arXiv 2402.09025).

Nothing is fitted here, so the tokens that other methods fit on are as good as held-out ones.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch

from replaceme_core.engine.methods.protocol import Calibrated, Decided, Task
from replaceme_core.engine.methods.removal import plain_removal
from replaceme_core.engine.model.block_runner import mean_loss
from replaceme_core.engine.selection.candidate import Candidate
from replaceme_core.engine.selection.replay import losses_without_each

EVIDENCE_TOKENS = 8_192
"""Fit sequences join the held-out ones until there are this many tokens. Removing n of L blocks costs about n L / 4
dense passes over them, and a difference between two blocks that they do not show hardly counts."""


def calibrate(task: Task) -> Calibrated:
    """The named blocks, or those that a greedy search by loss finds; every trial is in the table."""
    if task.spec.drop is not None:
        return _Named(task=task, blocks=task.spec.drop)
    batches = evidence(task)
    task.progress.metric("tokens", sum(batch.numel() for batch in batches), "tokens")
    task.progress.advance(1.0)
    return _Calibrated(task=task, batches=batches)


@dataclass(frozen=True, kw_only=True)
class _Named(Calibrated):
    task: Task
    blocks: tuple[int, ...]

    def select(self) -> Decided:
        """Nothing to choose; what their removal costs is measured."""
        named = [Candidate(start=block, end=block, chosen=True) for block in self.blocks]
        return plain_removal(self.task, self.blocks, named)


@dataclass(frozen=True, kw_only=True)
class _Calibrated(Calibrated):
    task: Task
    batches: list[torch.Tensor]

    def select(self) -> Decided:
        task, batches = self.task, self.batches
        removed: list[int] = []
        candidates: list[Candidate] = []
        while len(removed) < task.remove:
            remaining = [block for block in range(1, len(task.block_runner.blocks)) if block not in removed]
            losses = _try_each(task, batches, removed=removed, remaining=remaining)
            # Only blocks that were tried on all batches compare; the others were left behind with a greater loss.
            complete = [block for block in remaining if len(losses[block]) == len(batches)]
            best = min(complete, key=lambda block: sum(losses[block]))
            candidates += [
                Candidate(
                    start=block,
                    end=block,
                    held_out_loss=_estimate(losses[block], beside=losses[best], batches=batches),
                    estimated=len(losses[block]) < len(batches),
                    chosen=block == best,
                    step=len(removed) + 1,
                )
                for block in remaining
            ]
            removed.append(best)
            task.progress.advance(len(removed) / task.remove)
        return plain_removal(task, removed, candidates)


def evidence(task: Task) -> list[torch.Tensor]:
    """The batches to judge on, the held-out ones first."""
    activations = task.activations
    batches = [activations.tokens(number) for number in activations.held_out_batches]
    missing = EVIDENCE_TOKENS - sum(batch.numel() for batch in batches)
    more = task.tokens.fit[: max(0, missing) // task.tokens.fit.shape[1]].to(batches[0].device)
    return [*batches, *(more.split(len(batches[0])) if len(more) else ())]


def _try_each(
    task: Task, batches: list[torch.Tensor], *, removed: list[int], remaining: list[int]
) -> dict[int, list[float]]:
    """Summed losses by block and batch, in rounds that halve the field while the evidence doubles."""
    losses: dict[int, list[float]] = {block: [] for block in remaining}
    field = remaining
    for count, since, until in rounds(len(remaining), len(batches)):
        field = sorted(field, key=lambda block: sum(losses[block]))[:count]
        for batch in batches[since:until]:
            found = losses_without_each(task.block_runner, batch, removed=removed, tried=field)
            for block, loss in found.items():
                losses[block].append(loss)
    return losses


def _estimate(losses: Sequence[float], *, beside: Sequence[float], batches: Sequence[torch.Tensor]) -> float:
    """Mean loss over all batches, from those on the first of them; how hard the others are is taken from `beside`."""
    mean = partial(mean_loss, batches=batches)
    return mean(beside) + mean(losses) - mean(beside[: len(losses)])


def rounds(candidates: int, batches: int) -> list[tuple[int, int, int]]:
    """`(entries left, first batch, end)` of each round: entries halve while batches double, until two are left."""
    plan = []
    count, since, until = candidates, 0, max(1, batches // 8)
    while count > 2 and until < batches:
        plan.append((count, since, until))
        count, since, until = max(2, (count + 1) // 2), until, 2 * until
    return [*plan, (count, since, batches)]
