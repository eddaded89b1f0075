"""The removed blocks' differences are added to the block before them (LaCo, arXiv 2402.11187)."""

from collections.abc import Sequence
from functools import partial

from replaceme_core.activations.distances import capture_distances
from replaceme_core.activations.held_out_loss import mean_loss
from replaceme_core.errors import InvalidInput
from replaceme_core.methods.cuts import runs
from replaceme_core.methods.merging import merge_changes, mergeable, merged, merged_loss
from replaceme_core.methods.protocol import Pruning, Task
from replaceme_core.models.cut import Cut, Variant, windows
from replaceme_core.runner.messages import Stage
from replaceme_core.selection.choose import Candidate
from replaceme_core.selection.tournament import paired_mean, tournament
from replaceme_core.selection.variants import variant_losses


def merge(task: Task) -> Pruning:
    """The named blocks, or the window that costs least when merged; each run goes into the block before it."""
    return _best_window(task) if task.spec.drop is None else _named(task, runs(task.spec.drop))


def _named(task: Task, cuts: Sequence[Cut]) -> Pruning:
    for cut in cuts:
        if not mergeable(task.block_runner.blocks, cut):
            raise InvalidInput(
                f"blocks {cut.anchor} to {cut.end} are not of one kind, so their parameters do not mean the same and "
                "cannot be merged; name blocks of one kind, or use another method",
                field="drop",
                value=[block for one in cuts for block in one.blocks],
            )
    task.clock.begin(Stage.SELECT)
    removed = frozenset(block for cut in cuts for block in cut.blocks)
    with merged(task.block_runner, cuts):
        (losses,) = variant_losses(task.activations, [Variant(removed=removed)])
    task.clock.progress.metric("result_held_out_loss", mean_loss(losses, task.activations.held_out_tokens), "nats")
    task.clock.progress.advance(1.0)
    return _pruning(task, cuts, [Candidate(start=cut.start, end=cut.end, chosen=True) for cut in cuts])


def _best_window(task: Task) -> Pruning:
    """Screened by the distance across it, then judged by the held-out loss of the merged model."""
    blocks, progress = task.block_runner.blocks, task.clock.progress
    possible = [cut for cut in windows(len(blocks), task.remove) if mergeable(blocks, cut)]
    if not possible:
        raise InvalidInput(
            f"no {task.remove + 1} neighbouring blocks of this model are of one kind, so none can be merged; remove "
            "fewer blocks, or use another method",
            field="method",
            value=str(task.spec.method.name),
        )
    angles, streams = capture_distances(task.activations, possible, keep_streams=True)
    progress.metric("tokens", task.tokens.fit.numel() + task.tokens.held_out.numel(), "tokens")
    task.clock.begin(Stage.SELECT)
    if streams.last:
        progress.metric("dense_held_out_loss", task.activations.dense_loss(streams), "nats")
    distances = {cut: angle.value for cut, angle in angles.items()}

    def loss(cut: Cut, batch: int) -> float:
        with merged(task.block_runner, [cut]):
            return merged_loss(task.block_runner, streams, cut, batch=batch)

    winner, losses = tournament(
        sorted(possible, key=lambda cut: distances[cut])[: task.spec.method.replays],
        batches=len(streams.tokens),
        loss=loss,
        rank=distances,
        advance=progress.advance,
    )
    mean = partial(mean_loss, batches=streams.tokens)
    candidates = [
        Candidate(
            start=cut.start,
            end=cut.end,
            distance=distances[cut],
            held_out_loss=paired_mean(losses[cut], beside=losses[winner], mean=mean) if cut in losses else None,
            chosen=cut == winner,
        )
        for cut in possible
    ]
    return _pruning(task, [winner], candidates)


def _pruning(task: Task, cuts: Sequence[Cut], candidates: Sequence[Candidate]) -> Pruning:
    task.clock.begin(Stage.SOLVE)
    return Pruning(
        removed=sorted(block for cut in cuts for block in cut.blocks),
        changes=[change for cut in cuts for change in merge_changes(task.block_runner, cut)],
        candidates=candidates,
    )
