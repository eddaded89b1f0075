"""The held-out loss of a pruned model, before any weight changes; only the blocks after its first difference run."""

from collections.abc import Collection, Iterator, Sequence

import torch

from replaceme_core.engine.activations.capture import Activations
from replaceme_core.engine.methods.judge import Judge
from replaceme_core.engine.methods.task import Task
from replaceme_core.engine.model.block_runner import BlockRunner, predictions_of, summed_loss, summed_losses
from replaceme_core.engine.model.changes import FittedCut, Variant
from replaceme_core.engine.text.tokens import REPEATED


def held_out_judge(
    activations: Activations,
    *,
    positions: int | None = None,
    recall: bool = False,
    batches: Sequence[int] | None = None,
) -> Judge:
    """The judge of losses on the held-out `batches` of `activations`, all by default.

    With `positions` it judges losses on these first ones of each sequence. Repeated passages count only with
    `recall`, and then twice: a refit makes up for what is lost on other text and hardly for recall, and a map for
    neither (docs/explanation/how-the-default-works.md#judge).
    """
    names = activations.source_names
    numbers = activations.held_out_batches if batches is None else batches
    repeated = next((number for number, name in enumerate(names) if name == REPEATED), None)
    judged, dense = [activations.batches[number] for number in numbers], activations.dense_losses(positions=positions)
    return Judge(
        sources=[batch.source for batch in judged],
        predictions=[predictions_of([batch.tokens[:, :positions]]) for batch in judged],
        dense=[dense[number - activations.held_out_batches.start] for number in numbers],
        names=names,
        probes=() if recall or repeated is None else [repeated],
        heaviest=repeated if recall else None,
    )


def next_losses(
    activations: Activations, fitted: FittedCut, *, first: int, positions: int | None = None
) -> list[float]:
    """`variant_losses` with `fitted` in place, of those held-out batches from `first` on that are run together."""
    batches = next(_together(activations, activations.held_out_batches[first:]))
    return variant_losses(activations, Variant.of([fitted]), batches=batches, positions=positions)


def variant_losses(
    activations: Activations,
    variant: Variant,
    *,
    batches: Sequence[int] | None = None,
    positions: int | None = None,
) -> list[float]:
    """Summed next-token loss in nats of `variant` on each of the held-out `batches`, all by default.

    With `positions` only these first ones of each sequence are run: no later one changes what is predicted there. Small
    batches of the same shape are run together, as many sequences as the batches of a pass have: 0.8 of the time of one
    after the other (docs/research/memory-and-speed.md).
    """
    losses: list[float] = []
    for together in _together(activations, activations.held_out_batches if batches is None else batches):
        tokens = [activations.tokens(batch)[:, :positions] for batch in together]
        stream = torch.cat([activations.read_or_run(variant.first, batch)[:, :positions] for batch in together])
        after = variant.run(activations.block_runner, stream, since=variant.first).split([len(ids) for ids in tokens])
        losses += summed_losses(activations.block_runner, after, tokens)
    return losses


def _together(activations: Activations, batches: Sequence[int]) -> Iterator[list[int]]:
    """`batches` in order, those of one shape together, up to the number of sequences of a batch of the pass."""
    group: list[int] = []
    for batch in batches:
        shape = activations.batches[batch].tokens.shape
        if group and (
            shape != activations.batches[group[0]].tokens.shape or (len(group) + 1) * shape[0] > activations.batch_size
        ):
            yield group
            group = []
        group.append(batch)
    if group:
        yield group


def losses_without_each(
    block_runner: BlockRunner, tokens: torch.Tensor, *, removed: Collection[int], tried: Collection[int]
) -> dict[int, float]:
    """For each block of `tried`: summed loss in nats on `tokens` without it and without the blocks `removed`.

    One pass through the model; for each block that is tried, only the blocks after it run again.
    """
    stream = block_runner.enter(tokens)
    losses: dict[int, float] = {}
    for block in range(max(tried) + 1):
        if block in removed:
            continue
        if block in tried:
            without = Variant(removed=frozenset(removed)).run(block_runner, stream, since=block + 1)
            losses[block] = summed_loss(block_runner, without, tokens)
        if block < max(tried):
            stream = block_runner.run(block, stream)
    return losses


def report_dense_loss(task: Task) -> None:
    """The held-out loss of the dense model, to compare that of the candidates with."""
    judge = held_out_judge(task.activations)
    task.progress.metric("dense_held_out_loss", judge.mean(judge.dense), "nats")
