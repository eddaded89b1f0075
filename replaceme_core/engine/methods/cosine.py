"""One map for each cut that maximises the cosine to the dense stream (ReplaceMe, arXiv 2505.02819, section 3).

The cut is chosen as `least_squares` chooses it, and its map is where a gradient descent on the cosine loss starts, over
buffers of a fixed size (`numerics/cosine.py`).
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice, starmap
from typing import NamedTuple

import torch
from torch.utils.data import TensorDataset

from replaceme_core.engine.activations.capture import Activations, CutStatistics
from replaceme_core.engine.methods.least_squares import CutFit, fit_cut, fit_cuts
from replaceme_core.engine.methods.task import Pruning, Task
from replaceme_core.engine.model.changes import Cut, FittedCut
from replaceme_core.engine.numerics.cosine import CosineFit, annealed, cosine_tokens

BUFFER_TOKENS = 8_192
"""On the device at a time, 3 d float32 values each: 57 MB at d = 576, 400 MB at d = 4,096, however long the text."""
COSINE_SHARE = 0.5
"""Of the fit tokens; with it the descent takes less than half the time of the first pass."""
COSINE_RATE = 1e-4
"""Learning rate. A larger one, or more epochs on a buffer, overfits the buffer."""


def cosine(task: Task) -> Pruning:
    """Remove the named blocks, or those that cost least after their least-squares fit, each cut with its map."""
    return fit_cuts(task, partial(_improved, task))


def _improved(task: Task, statistics: CutStatistics) -> CutFit:
    """The fit of least squares with a better map, if the descent finds one on the pruned prefix."""
    method, cut = task.spec.method, statistics.cut
    start = fit_cut(statistics, ridge=method.ridge)
    found = descend(
        task.activations,
        start.from_fit_tokens,
        done=statistics.done,
        diagonal=statistics.diagonal,
        light=method.loss == "light",
    )
    task.progress.metric("cosine_loss_before", found.before, "ratio", block=cut.anchor, candidate=str(cut))
    task.progress.metric("cosine_loss", found.after, "ratio", block=cut.anchor, candidate=str(cut))
    if not found.after < found.before:
        return start
    # The map of all tokens moves as the one of the fit tokens did, so that what it has learned of the others stays.
    delta = start.from_all_tokens.delta + (found.fitted.delta - start.from_fit_tokens.delta)
    return replace(
        start,
        from_fit_tokens=found.fitted,
        from_all_tokens=FittedCut(cut=cut, delta=delta),
        residual=statistics.held_out.residual(found.fitted.delta),
    )


class Descent(NamedTuple):
    """The best map, and the mean of 1 - cos on held-out tokens with the first map and with the best one."""

    fitted: FittedCut
    before: float
    after: float


def descend(
    activations: Activations, start: FittedCut, *, done: Sequence[FittedCut], diagonal: bool, light: bool
) -> Descent:
    """The map of least held-out cosine loss that Adam finds from `start` on; `start` itself counts.

    The prefix is pruned by `done`. The steps pass once over a share of the fit tokens.
    """
    held_out, fitted = (
        _buffers(activations, batches, start.cut, done=done, light=light)
        for batches in (activations.held_out_batches, activations.fit_batches)
    )
    judging = next(held_out)
    tokens = activations.text.fit.numel()
    count = max(1, min(max(BUFFER_TOKENS, int(COSINE_SHARE * tokens)), tokens) // BUFFER_TOKENS)
    fit, order = CosineFit(start.delta, diagonal=diagonal), torch.Generator().manual_seed(0)
    before = after = fit.loss(judging)
    best = start
    for number in range(count):
        # no reference to a buffer is left while the next one is made
        fit.epoch(next(fitted), rate=annealed(COSINE_RATE, done=number / count), order=order)
        loss = fit.loss(judging)
        if loss < after:
            after, best = loss, FittedCut(cut=start.cut, delta=fit.as_matrix())
        activations.advance((number + 1) / count)
    return Descent(best, before, after)


def _buffers(
    activations: Activations, batches: Sequence[int], cut: Cut, *, done: Sequence[FittedCut], light: bool
) -> Iterator[TensorDataset]:
    """The tokens of these batches, `BUFFER_TOKENS` at a time; no reference to a buffer is kept while it is used."""
    ends = (activations.at_cut(batch, cut, done=done) for batch in batches)
    tokens = (token for streams in ends for token in zip(*streams, strict=True))
    full = iter(lambda: [torch.stack(each) for each in zip(*islice(tokens, BUFFER_TOKENS), strict=True)], [])
    return starmap(partial(cosine_tokens, light=light), full)
