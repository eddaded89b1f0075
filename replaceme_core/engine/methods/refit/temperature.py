"""Temperature of a pruned model: one factor for all logits, found on held-out tokens.

A pruned model is wrong more often than the dense one, but just as confident. The factor is folded into the final norm,
so nothing is added to the model (Guo et al., On Calibration of Modern Neural Networks, ICML 2017: temperature scaling).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from replaceme_core.engine.model.block_runner import BlockRunner, scale_output, summed_losses
from replaceme_core.engine.selection.judge import Judge

STEP = 0.05
LEAST, MOST = 0.75, 1.1


@dataclass(frozen=True, kw_only=True)
class Scaled:
    """`scale` of the final norm's output, and the summed losses in nats with it, by held-out batch."""

    scale: float
    losses: Sequence[float]


def fit_scale(
    block_runner: BlockRunner,
    streams: Sequence[torch.Tensor],
    tokens: Sequence[torch.Tensor],
    *,
    judge: Judge,
    unscaled: Sequence[float],
) -> Scaled:
    """The factor of the final norm's output with the best score.

    `streams` (sequences, positions, d) after the last block and `tokens` (sequences, positions), batch by batch, with
    the `unscaled` losses. The factor is 1 where the norm has no weight that can take it.
    """
    tried: dict[float, Sequence[float]] = {1.0: unscaled}

    def score_at(scale: float) -> float:
        with scale_output(block_runner.resolved.final_norm, scale):
            tried[scale] = summed_losses(block_runner, streams, tokens)
        return judge.score(tried[scale])

    scale = 1.0
    if block_runner.resolved.takes_scale:
        scale, _ = least(score_at, known=judge.score(unscaled))
    return Scaled(scale=scale, losses=tried[scale])


def least(loss_at: Callable[[float], float], *, known: float) -> tuple[float, float]:
    """The minimum of the parabola through 1, with its `known` loss, and the two points below it, and the loss there.

    The loss is convex in the logits, and close to a parabola near its minimum. The best of all evaluated points is
    returned.

    >>> scale, loss = least(lambda scale: (scale - 0.93) ** 2, known=0.07**2)
    >>> round(scale, 6), round(loss, 6)
    (0.93, 0.0)
    """
    losses = {1.0: known, **{scale: loss_at(scale) for scale in (1 - STEP, 1 - 2 * STEP)}}
    low, middle, high = (losses[1 - steps * STEP] for steps in (2, 1, 0))
    bend = low - 2 * middle + high
    if bend > 0:
        scale = min(max(1 - STEP - STEP * (high - low) / (2 * bend), LEAST), MOST)
        losses[scale] = loss_at(scale)
    best = min(losses, key=lambda scale: losses[scale])
    return best, losses[best]
