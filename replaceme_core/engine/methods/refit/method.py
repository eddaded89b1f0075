"""Blocks chosen one at a time or as a window, then the kept projections after the first cut are solved again.

Closed form throughout: no gradient, no new parameter, the stock architecture (docs/explanation/method.md).
"""

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch

from replaceme_core.engine.methods.cuts import require_rank
from replaceme_core.engine.methods.groups import CalibratedGroups, calibrate_groups
from replaceme_core.engine.methods.protocol import Calibrated, Pruning, Selected, Task
from replaceme_core.engine.methods.refit.lazy_greedy import BlockChoice
from replaceme_core.engine.methods.refit.one_by_one import choose_one_by_one
from replaceme_core.engine.methods.refit.part_of_text import for_choice
from replaceme_core.engine.methods.refit.projections import Refit, Strength, refit_kept
from replaceme_core.engine.methods.refit.reach import first_unchanged
from replaceme_core.engine.methods.refit.run_by_run import RunByRun, divisions
from replaceme_core.engine.methods.refit.temperature import fit_scale
from replaceme_core.engine.methods.windows import CalibratedWindows, calibrate_windows
from replaceme_core.engine.model.block_runner import summed_losses
from replaceme_core.engine.model.changes import Variant
from replaceme_core.engine.numerics.solve import SCREENING_RIDGE
from replaceme_core.engine.selection.candidate import Candidate
from replaceme_core.engine.selection.replay import held_out_judge, variant_losses
from replaceme_core.request.calibration import SELF_GENERATED
from replaceme_core.request.method import Selection
from replaceme_core.runner.eta import PartOfStage

ANCHOR_RIDGE = 0.5
LATER_RIDGE = 0.3
READING_RIDGE = 0.3
"""Measured: docs/explanation/how-the-default-works.md#refit."""


def calibrate(task: Task) -> "RefitCalibrated | RefitSelected":
    """The named blocks, or those that a search finds.

    The result is never worse on held-out tokens than plain removal of the same blocks: where it would be, no weight is
    changed.
    """
    require_rank(task)
    if task.spec.drop is not None:
        named = [Candidate(start=block, end=block, chosen=True) for block in task.spec.drop]
        return RefitSelected(task=task, removed=sorted(task.spec.drop), candidates=named)
    if task.spec.method.groups > 1:
        return _Groups(task=task, groups=calibrate_groups(task))
    if task.spec.method.selection is Selection.WINDOW:
        return _Window(task=task, windows=calibrate_windows(task))
    choosing = for_choice(task)
    choosing.activations.capture()
    return _OneByOne(task=task, choosing=choosing)


class RefitCalibrated(Calibrated):
    """Narrows what `select` returns."""

    @abstractmethod
    def select(self) -> "RefitSelected":
        """Choose the blocks to remove."""


@dataclass(frozen=True, kw_only=True)
class _Groups(RefitCalibrated):
    task: Task
    groups: CalibratedGroups

    def select(self) -> "RefitSelected":
        found = self.groups.choose()
        chosen = [Candidate(start=cut.start, end=cut.end, chosen=True) for cut in found.cuts]
        removed = sorted(block for cut in found.cuts for block in cut.blocks)
        return RefitSelected(task=self.task, removed=removed, candidates=[*found.candidates, *chosen])


@dataclass(frozen=True, kw_only=True)
class _Window(RefitCalibrated):
    task: Task
    windows: CalibratedWindows

    def select(self) -> "RefitSelected":
        found = self.windows.choose()
        return RefitSelected(task=self.task, removed=list(found.winner.cut.blocks), candidates=found.candidates)


@dataclass(frozen=True, kw_only=True)
class _OneByOne(RefitCalibrated):
    """`choosing` is the task on as much of the text as blocks are chosen on."""

    task: Task
    choosing: Task

    def select(self) -> "RefitSelected":
        with _chosen_on(self.task, self.choosing):
            found = choose_one_by_one(self.choosing)
        return RefitSelected(task=self.task, removed=sorted(found.removed), candidates=found.candidates)


def choose_runs(task: Task) -> list[BlockChoice]:
    """A few runs of blocks that enough others follow, and one run, on as much of the text as can keep its streams."""
    choosing = for_choice(task)
    choosing.activations.capture()
    with _chosen_on(task, choosing):
        by_run, ways = RunByRun(task=choosing), divisions(task.remove)
        steps = [(number / len(ways), (number + 1) / len(ways)) for number in range(len(ways))]
        parts = [PartOfStage(task.progress, start=start, end=end) for start, end in steps]
        return [by_run.choose(lengths, advance=part.advance) for lengths, part in zip(ways, parts, strict=True)]


@contextmanager
def _chosen_on(task: Task, choosing: Task) -> Iterator[None]:
    """Report on how much of the text blocks are chosen, and count its runs as those of the task."""
    task.progress.metric("choice_tokens", choosing.calibration_tokens, "tokens")
    yield
    if choosing is not task:
        task.activations.dense_block_runs += choosing.activations.dense_block_runs


@dataclass(frozen=True, kw_only=True)
class RefitSelected(Selected):
    """The blocks to remove, and the table that explains them."""

    task: Task
    removed: list[int]
    candidates: list[Candidate]

    def solve(self) -> Pruning:
        return with_all_tokens(self.task, self.judge(part=0.5).scaled())

    def judge(self, *, part: float = 1.0) -> "RefitJudged":
        """The fit on the fit tokens, and its loss on the held-out ones.

        It is the first `part` of the progress of its stage.
        """
        progress, activations = self.task.progress, self.task.activations
        found = _refit(
            self.task,
            removed=self.removed,
            fit=activations.fit_batches,
            advance=lambda fraction: progress.advance(part * fraction),
        )
        judge = held_out_judge(activations)
        streams = [found.streams[batch] for batch in activations.held_out_batches]
        tokens = [activations.tokens(batch) for batch in activations.held_out_batches]
        losses = summed_losses(self.task.block_runner, streams, tokens)
        (plain,) = variant_losses(activations, [Variant(removed=frozenset(self.removed))])
        progress.metric("unscaled_held_out_loss", judge.mean(losses), "nats")
        progress.metric("plain_held_out_loss", judge.mean(plain), "nats")
        # rare: text that says little about the blocks, or a requested ridge that is too small
        if not judge.score(losses) <= judge.score(plain):
            unchanged = Pruning(removed=self.removed, candidates=self.candidates, held_out_losses=plain)
            return RefitJudged(task=self.task, pruning=unchanged)
        pruning = Pruning(
            removed=self.removed,
            folds=found.folds,
            changes=found.changes,
            candidates=self.candidates,
            held_out_losses=losses,
        )
        return RefitJudged(task=self.task, pruning=pruning, streams=streams)


@dataclass(frozen=True, kw_only=True)
class RefitJudged:
    """A fit with its held-out losses, and its streams (sequences, positions, d) after the last block by held-out batch.

    Without streams the blocks are removed, and no weight is changed.
    """

    task: Task
    pruning: Pruning
    streams: Sequence[torch.Tensor] = ()

    def scaled(self) -> Pruning:
        """The same with the factor of the final norm that fits text best; it is never worse on held-out text."""
        if not self.streams:
            return self.pruning
        activations, progress = self.task.activations, self.task.progress
        judge = held_out_judge(activations)
        # own text is likelier than what people write: it was drawn at a temperature below 1
        text = judge.without(SELF_GENERATED)
        found = fit_scale(
            self.task.block_runner,
            self.streams,
            [activations.tokens(batch) for batch in activations.held_out_batches],
            judge=text,
            unscaled=self.pruning.held_out_losses,
        )
        progress.metric("held_out_loss", judge.mean(found.losses), "nats")
        progress.metric("final_scale", found.scale, "ratio")
        return replace(self.pruning, final_scale=found.scale, held_out_losses=found.losses)


def with_all_tokens(task: Task, judged: Pruning) -> Pruning:
    """The same fit with the held-out tokens in it: once they have judged it, an eighth of the text can still be used.

    Where they judged that nothing should change, nothing does.
    """
    if not judged.changes and not judged.folds:
        return judged
    progress = task.progress
    found = _refit(
        task,
        removed=judged.removed,
        fit=range(len(task.activations.batches)),
        advance=lambda fraction: progress.advance((1 + fraction) / 2),
    )
    return replace(judged, folds=found.folds, changes=found.changes)


def _refit(task: Task, *, removed: Sequence[int], fit: Sequence[int], advance: Callable[[float], None]) -> Refit:
    """With the ridges of the request, as far into the model as a refit goes."""
    return refit_kept(
        task.block_runner,
        task.activations,
        removed=removed,
        strength=_strength(task),
        fit=fit,
        unchanged_from=first_unchanged(removed, len(task.block_runner.blocks)),
        advance=advance,
    )


def _strength(task: Task) -> Strength:
    method = task.spec.method
    return Strength(
        anchor=ANCHOR_RIDGE if method.ridge is None else method.ridge,
        later=LATER_RIDGE if method.ridge_later is None else method.ridge_later,
        reading=READING_RIDGE,
        fold=SCREENING_RIDGE if method.ridge is None else method.ridge,
    )
