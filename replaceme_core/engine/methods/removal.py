"""Methods that remove blocks and compensate for nothing; they differ in how they choose."""

from collections.abc import Sequence
from functools import partial

import torch

from replaceme_core.engine.activations.capture import capture_distances
from replaceme_core.engine.methods.replay import losses_without_each, variant_losses
from replaceme_core.engine.methods.task import Candidate, Pruning, Task
from replaceme_core.engine.model.block_runner import mean_loss
from replaceme_core.engine.model.changes import Cut, Variant, runs, windows
from replaceme_core.request.defaults import EVIDENCE_TOKENS
from replaceme_core.runner.messages import Stage


def drop(task: Task) -> Pruning:
    """Remove the window of least angular distance (UIDL, arXiv 2403.17887), or the named blocks."""
    named, blocks = task.spec.drop, len(task.block_runner.blocks)
    cuts = task.activations.allowed(windows(blocks, task.remove)) if named is None else runs(named)
    angles = capture_distances(task.activations, cuts)
    task.progress.metric("tokens", task.calibration_tokens, "tokens")
    task.begin(Stage.SELECT)
    distances = {cut: angle.value for cut, angle in angles.items()}
    chosen = cuts if named is not None else [min(distances, key=lambda cut: distances[cut])]
    candidates = [
        Candidate(start=cut.start, end=cut.end, distance=distance, chosen=cut in chosen)
        for cut, distance in distances.items()
    ]
    return _plain_removal(task, [block for cut in chosen for block in cut.blocks], candidates)


def block_influence(task: Task) -> Pruning:
    """Remove the blocks across which the stream changes its direction least, wherever they are, or the named blocks.

    The influence of block i is 1 - mean cos(X_i, X_i+1) (ShortGPT, arXiv 2403.03853).
    """
    blocks = range(1, len(task.block_runner.blocks)) if task.spec.drop is None else task.spec.drop
    angles = capture_distances(task.activations, [Cut(start=block, end=block) for block in blocks])
    task.progress.metric("tokens", task.calibration_tokens, "tokens")
    task.begin(Stage.SELECT)
    influence = {cut.start: angle.influence for cut, angle in angles.items()}
    removed = sorted(sorted(influence, key=lambda block: influence[block])[: task.remove])
    candidates = [
        Candidate(
            start=cut.start,
            end=cut.end,
            distance=angle.value,
            influence=angle.influence,
            chosen=cut.start in removed,
        )
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
        named = [Candidate(start=block, end=block, chosen=True) for block in task.spec.drop]
        return _plain_removal(task, task.spec.drop, named)
    batches = evidence(task)
    task.progress.metric("tokens", sum(batch.numel() for batch in batches), "tokens")
    task.progress.advance(1.0)
    task.begin(Stage.SELECT)
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
    return _plain_removal(task, removed, candidates)


def evidence(task: Task) -> list[torch.Tensor]:
    """The batches that `perplexity_greedy` judges on, the held-out ones first."""
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


def _plain_removal(task: Task, removed: Sequence[int], candidates: Sequence[Candidate]) -> Pruning:
    """Remove the blocks and change no weight; the held-out loss of that is reported."""
    losses = variant_losses(task.activations, Variant(removed=frozenset(removed)))
    task.progress.metric("result_held_out_loss", mean_loss(losses, task.activations.held_out_tokens), "nats")
    task.progress.advance(1.0)
    task.begin(Stage.SOLVE)
    return Pruning(removed=sorted(removed), candidates=candidates)
