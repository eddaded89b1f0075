"""Parameter differences of the removed blocks are added to the block before them (LaCo, arXiv 2402.11187, eq. 2)."""

from collections.abc import Sequence

from torch import nn

from replaceme_core.engine.activations.capture import Activations, Losses, capture_distances
from replaceme_core.engine.methods.candidates import allowed_windows, blocks_of, store_streams
from replaceme_core.engine.methods.panel import Panel, report_result, variant_losses
from replaceme_core.engine.methods.task import Candidate, Pruning, Task
from replaceme_core.engine.model.changes import Cut, Variant, WeightChange, runs, try_changes
from replaceme_core.engine.model.lazy_model import load_block
from replaceme_core.engine.numerics.sums import SOLVE_DTYPE
from replaceme_core.errors import InvalidInput
from replaceme_core.families.resolve import kind
from replaceme_core.runner.messages import Stage


def merge(task: Task) -> Pruning:
    """Remove the named blocks, or the window that costs least when merged; each run goes into the block before it.

    Raises `InvalidInput` where the blocks are not of one kind, so that their parameters do not mean the same.
    """
    cuts, candidates = _best_window(task) if task.spec.drop is None else _named(task, runs(task.spec.drop))
    task.begin(Stage.SOLVE)
    return Pruning(
        removed=blocks_of(cuts),
        changes=[change for cut in cuts for change in merge_changes(task.block_runner.blocks, cut)],
        candidates=candidates,
    )


def _named(task: Task, cuts: list[Cut]) -> tuple[list[Cut], list[Candidate]]:
    """Nothing to choose; what merging costs is measured."""
    for cut in cuts:
        if not mergeable(task.block_runner.blocks, cut):
            raise InvalidInput(
                f"blocks {cut.anchor} to {cut.end} are not of one kind, so their parameters do not mean the same and "
                "cannot be merged; name blocks of one kind, or use another method",
                field="drop",
                value=list(blocks_of(cuts)),
            )
    task.begin(Stage.SELECT)
    report_result(task, merged_losses(task.activations, cuts))
    return cuts, [Candidate(cut=cut, chosen=True) for cut in cuts]


def _best_window(task: Task) -> tuple[list[Cut], list[Candidate]]:
    """Of those of least distance across them the one of least held-out loss when merged."""
    blocks = task.block_runner.blocks
    possible = [cut for cut in allowed_windows(task) if mergeable(blocks, cut)]
    if not possible:
        raise InvalidInput(
            f"no {task.remove + 1} neighbouring blocks of this model are of one kind, so none can be merged; remove "
            "fewer blocks, or use another method",
            field="method",
            value=str(task.spec.method.name),
        )
    activations = store_streams(task)
    distances = {cut: angle.value for cut, angle in capture_distances(activations, possible).items()}
    panel, losses = Panel.of(activations), dict[Cut, Losses]()
    tried = sorted(distances, key=lambda cut: distances[cut])[: task.spec.method.replays]
    for number, cut in enumerate(tried, start=1):
        losses[cut] = merged_losses(activations, [cut])
        task.progress.advance(number / len(tried))
    winner = min(tried, key=lambda cut: panel.mean(losses[cut]))
    candidates = [
        Candidate(
            cut=cut,
            distance=distances[cut],
            held_out_loss=panel.mean(losses[cut]) if cut in losses else None,
            chosen=cut == winner,
        )
        for cut in distances
    ]
    return [winner], candidates


def mergeable(blocks: nn.ModuleList, cut: Cut) -> bool:
    """Whether the anchor block and all blocks of `cut` are of one kind."""
    return all(kind(blocks[block]) == kind(blocks[cut.anchor]) for block in cut.blocks)


def merge_changes(blocks: nn.ModuleList, cut: Cut) -> list[WeightChange]:
    """The sum of `theta_j - theta_anchor` over the blocks j of `cut`, for every floating-point parameter."""
    changes = {
        name: parameter.detach().to(SOLVE_DTYPE) * -len(cut.blocks)
        for name, parameter in load_block(blocks[cut.anchor]).named_parameters()
        if parameter.is_floating_point()
    }
    for block in cut.blocks:
        parameters = dict(load_block(blocks[block]).named_parameters())
        for name, change in changes.items():
            change += parameters[name].detach()
    return [WeightChange(block=cut.anchor, parameter=name, change=change) for name, change in changes.items()]


def merged_losses(activations: Activations, cuts: Sequence[Cut]) -> Losses:
    """The held-out losses once `cuts` are merged; the live blocks are as before afterwards, to the bit."""
    blocks = activations.block_runner.blocks
    changes = [change for cut in cuts for change in merge_changes(blocks, cut)]
    with try_changes(blocks) as put:
        for one in changes:
            put(one)
        merged = Variant(removed=frozenset(blocks_of(cuts)), changed=frozenset(cut.anchor for cut in cuts))
        return variant_losses(activations, merged)
