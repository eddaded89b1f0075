"""Methods that remove blocks and compensate for nothing; they differ in how they choose."""

from collections.abc import Sequence

import torch

from replaceme_core.engine.activations.capture import capture_distances
from replaceme_core.engine.methods.candidates import allowed_windows, blocks_of, least_distance, some_of
from replaceme_core.engine.methods.panel import losses_without_each, report_result, variant_losses
from replaceme_core.engine.methods.task import Candidate, Pruning, Task
from replaceme_core.engine.model.changes import Cut, Variant, runs
from replaceme_core.runner.messages import Stage

EVIDENCE_TOKENS = 8_192
"""Of `perplexity_greedy`: fit sequences join the held-out ones until there are this many tokens. Removing n of L
blocks costs about n L / 4 dense passes over them, and a smaller difference between two blocks hardly counts."""


def drop(task: Task) -> Pruning:
    """Remove the window of least angular distance (UIDL, arXiv 2403.17887), or the named blocks."""
    named = runs(task.spec.drop or ())
    angles = capture_distances(task.activations, named or allowed_windows(task))
    task.progress.metric("tokens", task.activations.count(), "tokens")
    task.begin(Stage.SELECT)
    chosen, candidates = least_distance(angles, named=named)
    return _plain_removal(task, blocks_of(chosen), candidates)


def block_influence(task: Task) -> Pruning:
    """Remove the blocks across which the stream changes its direction least, wherever they are, or the named blocks.

    The influence of block i is 1 - mean cos(X_i, X_i+1) (ShortGPT, arXiv 2403.03853).
    """
    blocks = range(1, len(task.block_runner.blocks)) if task.spec.drop is None else task.spec.drop
    angles = capture_distances(task.activations, [Cut.of(block) for block in blocks])
    task.progress.metric("tokens", task.activations.count(), "tokens")
    task.begin(Stage.SELECT)
    influence = {cut.start: angle.influence for cut, angle in angles.items()}
    removed = [*(task.spec.drop or ())]
    while len(removed) < len(influence) and len(removed) < task.remove:
        left = [block for block in influence if block not in removed and task.activations.may_go([*removed, block])]
        removed.append(min(some_of(left), key=lambda block: influence[block]))
    candidates = [
        Candidate(cut=cut, distance=angle.value, influence=angle.influence, chosen=cut.start in removed)
        for cut, angle in angles.items()
    ]
    return _plain_removal(task, removed, candidates)


def perplexity_greedy(task: Task) -> Pruning:
    """Remove one block at a time, the one whose removal costs the least loss (SLEB, arXiv 2402.09025), or named blocks.

    Nothing is fitted here, so the tokens that other methods fit on are as good as held-out ones. Every trial is in the
    table.
    """
    if task.spec.drop is not None:
        task.begin(Stage.SELECT)
        named = [Candidate(cut=Cut.of(block), chosen=True) for block in task.spec.drop]
        return _plain_removal(task, task.spec.drop, named)
    batches = evidence(task)
    predictions = sum(map(task.block_runner.judged, batches))
    task.progress.metric("tokens", sum(batch.numel() for batch in batches), "tokens")
    task.progress.advance(1.0)
    task.begin(Stage.SELECT)
    removed: list[int] = []
    candidates: list[Candidate] = []
    for step in range(1, task.remove + 1):
        blocks = range(1, len(task.block_runner.blocks))
        left = [block for block in blocks if block not in removed and task.activations.may_go([*removed, block])]
        remaining = some_of(left)
        losses = dict.fromkeys(remaining, 0.0)
        for number, batch in enumerate(batches, start=1):
            for block, loss in losses_without_each(task.block_runner, batch, removed=removed, tried=remaining).items():
                losses[block] += loss
            task.progress.advance((step - 1 + number / len(batches)) / task.remove)
        best = min(remaining, key=lambda block: losses[block])
        candidates += [
            Candidate(cut=Cut.of(block), held_out_loss=losses[block] / predictions, chosen=block == best, step=step)
            for block in remaining
        ]
        removed.append(best)
    return _plain_removal(task, removed, candidates)


def evidence(task: Task) -> list[torch.Tensor]:
    """The batches that `perplexity_greedy` judges on, the held-out ones first; of images, these alone."""
    activations = task.activations
    batches = [activations.tokens(number) for number in activations.held_out_batches]
    if task.tokens.pictures is not None:
        return batches
    missing = EVIDENCE_TOKENS - sum(batch.numel() for batch in batches)
    more = task.tokens.fit[: max(0, missing) // task.tokens.fit.shape[1]].to(batches[0].device)
    return [*batches, *(more.split(len(batches[0])) if len(more) else ())]


def _plain_removal(task: Task, removed: Sequence[int], candidates: Sequence[Candidate]) -> Pruning:
    """Remove the blocks and change no weight; the held-out loss of that is reported."""
    report_result(task, variant_losses(task.activations, Variant(removed=frozenset(removed))))
    task.begin(Stage.SOLVE)
    return Pruning(removed=sorted(removed), candidates=candidates)
