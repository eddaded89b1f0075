"""One map for each cut that maximises the cosine to the dense stream (ReplaceMe, arXiv 2505.02819, section 3).

The cut is chosen as `least_squares` chooses it, and its map is where a gradient descent on the cosine loss starts, over
buffers of a fixed size (`numerics/cosine.py`).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import torch

from replaceme_core.engine.activations.capture import Activations
from replaceme_core.engine.activations.cut_sums import CutStatistics
from replaceme_core.engine.methods.least_squares import CutFit, fit_cut, fit_cuts
from replaceme_core.engine.methods.task import Pruning, Task
from replaceme_core.engine.model.changes import Cut, FittedCut
from replaceme_core.engine.numerics.cosine import CosineFit, CosineTokens, annealed

BUFFER_TOKENS = 8_192
"""On the device at a time, 3 d float32 values each: 57 MB at d = 576, 400 MB at d = 4,096, however long the text."""
COSINE_SHARE = 0.5
"""Of the fit tokens; with it the descent takes less than half the time of the first pass."""
COSINE_RATE = 1e-4
"""Learning rate. A larger one, or more epochs on a buffer, overfits the buffer."""

Buffer = TypeVar("Buffer")


def cosine(task: Task) -> Pruning:
    """Remove the named blocks, or those that cost least after their least-squares fit, each cut with its map."""
    done: list[FittedCut] = []

    def fit(statistics: CutStatistics) -> CutFit:
        found = _improved(task, fit_cut(statistics, ridge=task.spec.method.ridge), done=done)
        done.append(found.from_all_tokens)
        return found

    return fit_cuts(task, fit)


def _improved(task: Task, start: CutFit, *, done: list[FittedCut]) -> CutFit:
    """`start` with a better map, if the descent finds one on the prefix that is pruned by `done`."""
    found = descend(
        task.activations,
        start.from_fit_tokens,
        done=done,
        diagonal=start.statistics.diagonal,
        light=task.spec.method.loss == "light",
    )
    progress, cut = task.progress, start.statistics.cut
    progress.metric("cosine_loss_before", found.before, "ratio", block=cut.anchor, candidate=str(cut))
    progress.metric("cosine_loss", found.after, "ratio", block=cut.anchor, candidate=str(cut))
    if not found.after < found.before:
        return start
    # The map of all tokens moves as the one of the fit tokens did, so that what it has learned of the others stays.
    delta = start.from_all_tokens.delta + (found.fitted.delta - start.from_fit_tokens.delta)
    return replace(
        start,
        from_fit_tokens=found.fitted,
        from_all_tokens=FittedCut(cut=found.fitted.cut, delta=delta),
        residual=start.statistics.held_out.residual(found.fitted.delta),
    )


@dataclass(frozen=True, kw_only=True)
class Descent:
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
    make = CosineTokens.light if light else CosineTokens.exact
    one = _buffers(activations, activations.held_out_batches, start.cut, make, done=done, limit=BUFFER_TOKENS)
    held_out = next(one)
    wanted = max(BUFFER_TOKENS, int(COSINE_SHARE * activations.text.fit.numel()))
    count = max(1, min(wanted, activations.text.fit.numel()) // BUFFER_TOKENS)
    some = _buffers(activations, activations.fit_batches, start.cut, make, done=done, limit=count * BUFFER_TOKENS)
    fit = CosineFit.start(start.delta, diagonal=diagonal, rate=COSINE_RATE)
    order = torch.Generator().manual_seed(0)
    before = after = fit.loss(held_out)
    best = start
    for number in range(count):
        fit.rate = annealed(COSINE_RATE, done=number / count)
        fit.epoch(next(some), order=order)  # no reference to a buffer is left while the next one is made
        loss = fit.loss(held_out)
        if loss < after:
            after, best = loss, FittedCut(cut=start.cut, delta=fit.as_matrix())
        activations.advance((number + 1) / count)
    return Descent(fitted=best, before=before, after=after)


def _buffers(
    activations: Activations,
    batches: Sequence[int],
    cut: Cut,
    make: Callable[..., Buffer],
    *,
    done: Sequence[FittedCut],
    limit: int,
) -> Iterator[Buffer]:
    """What `make` makes of `write`, `kept` and `end` (tokens, d), for the first `limit` tokens.

    At most `BUFFER_TOKENS` at a time. No reference to a buffer is kept while it is used.
    """
    pending: list[tuple[torch.Tensor, ...]] = []
    waiting = given = 0
    for number, batch in enumerate(batches):
        pending.append(activations.at_cut(batch, cut, done=done))
        waiting += len(pending[-1][0])
        while waiting >= BUFFER_TOKENS or (waiting and number == len(batches) - 1):
            count = min(BUFFER_TOKENS, waiting, limit - given)
            given, waiting = given + count, waiting - count
            yield make(**_taken(pending, count))
            if given >= limit:
                return


def _taken(pending: list[tuple[torch.Tensor, ...]], count: int) -> dict[str, torch.Tensor]:
    """The first `count` tokens, which `pending` then no longer has."""
    parts = [torch.cat(part) for part in zip(*pending, strict=True)]
    pending[:] = [tuple(part[count:].clone() for part in parts)]
    return dict(zip(("write", "kept", "end"), (part[:count] for part in parts), strict=True))
