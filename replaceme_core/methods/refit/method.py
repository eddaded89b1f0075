"""Blocks chosen one at a time or as a window, then every kept projection after the first cut solved anew.

Closed form throughout: no gradient, no new parameter, the stock architecture (method.md, section 3).
"""

from dataclasses import replace

from replaceme_core.activations.held_out_loss import mean_loss
from replaceme_core.methods.cuts import require_rank
from replaceme_core.methods.groups import choose_groups
from replaceme_core.methods.least_squares import choose_window
from replaceme_core.methods.protocol import Pruning, Task
from replaceme_core.methods.refit.one_by_one import OneByOne
from replaceme_core.methods.refit.part_of_text import for_choice
from replaceme_core.methods.refit.projections import Strength, refit_kept
from replaceme_core.methods.refit.temperature import fit_scale
from replaceme_core.models.cut import Variant
from replaceme_core.numerics.solve import SCREENING_RIDGE
from replaceme_core.runner.messages import Stage
from replaceme_core.selection.choose import Candidate
from replaceme_core.selection.variants import variant_losses
from replaceme_core.spec import Selection

ANCHOR_RIDGE = 0.5
LATER_RIDGE = 0.3
READING_RIDGE = 0.3
"""Measured: docs/decisions/0020-refit.md."""


def refit(task: Task) -> Pruning:
    """The named blocks, or those that a search finds; never worse on held-out tokens than their plain removal."""
    return from_all_tokens(task, judged_refit(task))


def judged_refit(task: Task) -> Pruning:
    """What the fit tokens say, and what that is worth on the held-out tokens, which take no part in it."""
    require_rank(task)
    removed, candidates = _choose(task)
    task.clock.begin(Stage.SOLVE)
    progress, batches = task.clock.progress, task.activations.held_out_batches
    found = refit_kept(
        task.block_runner,
        task.activations,
        removed=removed,
        strength=_strength(task),
        fit=task.activations.fit_batches,
        advance=lambda fraction: progress.advance(fraction / 2),
    )
    scale, fitted, unscaled = fit_scale(
        task.block_runner,
        [found.streams[batch] for batch in batches],
        [task.activations.tokens(batch) for batch in batches],
    )
    plain = _plain_loss(task, removed)
    for name, loss in (("held_out_loss", fitted), ("unscaled_held_out_loss", unscaled), ("plain_held_out_loss", plain)):
        progress.metric(name, loss, "nats")
    if not fitted <= plain:  # rare: text that says little about the blocks, or a ridge asked for that is too small
        return Pruning(removed=removed, candidates=candidates, held_out_loss=plain)
    progress.metric("final_scale", scale, "ratio")
    return Pruning(
        removed=removed,
        folds=found.folds,
        changes=found.changes,
        final_scale=scale,
        candidates=candidates,
        held_out_loss=fitted,
    )


def from_all_tokens(task: Task, judged: Pruning) -> Pruning:
    """The same fit with the held-out tokens in it: they have judged, and are an eighth of what there is to learn from.

    Where they judged that nothing should change, nothing does.
    """
    if not judged.changes and not judged.folds:
        return judged
    progress = task.clock.progress
    found = refit_kept(
        task.block_runner,
        task.activations,
        removed=judged.removed,
        strength=_strength(task),
        fit=range(len(task.activations.batches)),
        advance=lambda fraction: progress.advance((1 + fraction) / 2),
    )
    return replace(judged, folds=found.folds, changes=found.changes)


def _strength(task: Task) -> Strength:
    method = task.spec.method
    return Strength(
        anchor=ANCHOR_RIDGE if method.ridge is None else method.ridge,
        later=LATER_RIDGE if method.ridge_later is None else method.ridge_later,
        reading=READING_RIDGE,
        fold=SCREENING_RIDGE if method.ridge is None else method.ridge,
    )


def _choose(task: Task) -> tuple[list[int], list[Candidate]]:
    if task.spec.drop is not None:
        return sorted(task.spec.drop), [Candidate(start=block, end=block, chosen=True) for block in task.spec.drop]
    if task.spec.method.groups > 1:
        groups = choose_groups(task)
        chosen = [Candidate(start=cut.start, end=cut.end, chosen=True) for cut in groups.cuts]
        return sorted(block for cut in groups.cuts for block in cut.blocks), [*groups.candidates, *chosen]
    if task.spec.method.selection is Selection.WINDOW:
        winner, candidates = choose_window(task)
        return list(winner.cut.blocks), candidates
    choosing = for_choice(task)
    choosing.activations.capture()
    task.clock.begin(Stage.SELECT)
    task.clock.progress.metric(
        "choice_tokens", choosing.tokens.fit.numel() + choosing.tokens.held_out.numel(), "tokens"
    )
    removed, candidates = OneByOne(choosing).choose()
    if choosing is not task:
        task.activations.dense_block_runs += choosing.activations.dense_block_runs
    return sorted(removed), candidates


def _plain_loss(task: Task, removed: list[int]) -> float:
    """The same where nothing stands in for the blocks."""
    (losses,) = variant_losses(task.activations, [Variant(removed=frozenset(removed))])
    return mean_loss(losses, task.activations.held_out_tokens)
