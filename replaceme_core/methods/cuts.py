"""What methods share that remove runs of neighbouring blocks."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from replaceme_core.activations.cut_sums import CutStatistics, Screen
from replaceme_core.activations.held_out_loss import mean_loss
from replaceme_core.activations.window_sums import Windows
from replaceme_core.methods.protocol import Pruning, Task
from replaceme_core.models.cut import Cut, FittedCut, Variant, windows
from replaceme_core.numerics.solve import check_rank
from replaceme_core.runner.messages import Stage
from replaceme_core.selection.choose import Candidate, Fitted
from replaceme_core.selection.tournament import accepted_scale, paired_mean
from replaceme_core.selection.variants import variant_losses


def runs(drop: Sequence[int]) -> list[Cut]:
    """Neighbouring blocks together, in order.

    >>> [str(cut) for cut in runs([3, 12, 13])]
    ['3-3', '12-13']
    """
    cuts: list[Cut] = []
    for block in sorted(drop):
        if cuts and cuts[-1].end == block - 1:
            cuts[-1] = Cut(start=cuts[-1].start, end=block)
        else:
            cuts.append(Cut(start=block, end=block))
    return cuts


def pruning(folds: Sequence[FittedCut], candidates: Sequence[Candidate]) -> Pruning:
    """What removes exactly the cuts of `folds`."""
    removed = sorted(block for one in folds for block in one.cut.blocks)
    return Pruning(removed=removed, folds=folds, candidates=candidates)


def require_rank(task: Task) -> None:
    """Raises `CalibrationTooSmall` if the fit tokens cannot determine a map."""
    width = task.block_runner.resolved.model.config.hidden_size
    check_rank(tokens=task.tokens.fit.numel(), width=width, structure=task.structure)


def capture_all_windows(task: Task, cuts: Sequence[Cut] | None = None, *, screen: Screen | None = None) -> Windows:
    """From one pass the statistics of `cuts`, or of every window of `task.remove` blocks, or of what `screen` leaves.

    Begins the stage `select`.
    """
    found = cuts or windows(len(task.block_runner.blocks), task.remove)
    statistics, streams = task.activations.windows(found, screen=screen)
    for one in statistics:
        one.structure = task.structure
    progress = task.clock.progress
    progress.metric("tokens", task.tokens.fit.numel() + task.tokens.held_out.numel(), "tokens")
    progress.metric("sink_tokens", max(one.sinks for one in statistics), "tokens")
    task.clock.begin(Stage.SELECT)
    progress.metric("dense_held_out_loss", task.activations.dense_loss(streams), "nats")
    return statistics, streams


Fit = Callable[[CutStatistics], Fitted]


def fit_in_order(task: Task, cuts: Sequence[Cut], fit: Fit, *, first: CutStatistics | None = None) -> list[Fitted]:
    """Every cut is fitted on the prefix pruned so far, toward the dense model's stream at its end.

    Fitted on the unpruned model, later maps would get inputs that they never meet. The statistics of the `first` one
    may be known. Begins the stage `solve`.
    """
    done: list[Fitted] = []
    for index, cut in enumerate(cuts):
        known = first if index == 0 else None
        statistics = known or task.activations.statistics(cut, done=[one.final for one in done])
        statistics.structure = task.structure
        if index == 0:
            task.clock.begin(Stage.SOLVE)  # the passes of further cuts need the maps before them
        done.append(fit(statistics))
    return done


def rows(fitted: Sequence[Fitted], *, scale: float | None = None, loss: float | None = None) -> list[Candidate]:
    """The rows of cuts that were not chosen but named, or chosen before they were fitted."""
    return [
        Candidate(
            start=one.cut.start,
            end=one.cut.end,
            distance=one.statistics.angle.value,
            residual=one.residual,
            ridge=one.ridge,
            held_out_loss=loss,
            chosen=True,
            scale=scale,
            tokens=one.statistics.tokens,
        )
        for one in fitted
    ]


def weighed(task: Task, fitted: Sequence[Fitted]) -> Pruning:
    """The maps at the largest scale at which all together surely beat plain removal of the same blocks; else none.

    A ridge that was asked for is taken as it is.
    """
    if task.spec.method.ridge is not None:
        return pruning([one.final for one in fitted], rows(fitted))

    batches = task.activations.held_out_batches

    def loss_at(scale: float) -> Callable[[int], float]:
        variant = Variant.of([one.judged.scaled(scale) for one in fitted])
        return lambda batch: variant_losses(task.activations, [variant], batches=[batches[batch]])[0][0]

    scale, kept, none = accepted_scale(loss_at, batches=len(batches))
    mean = partial(mean_loss, batches=task.activations.held_out_tokens)
    table = rows([one.scaled(scale) for one in fitted], scale=scale, loss=mean(kept))
    return pruning(
        [one.final.scaled(scale) for one in fitted],
        [replace(row, plain_loss=paired_mean(none, beside=kept, mean=mean)) for row in table],
    )
