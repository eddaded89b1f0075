"""How far blocks of the dense model turn the stream: pictures for card and report, not for any choice."""

from dataclasses import dataclass

import torch

from replaceme_core.engine.activations.capture import Activations
from replaceme_core.engine.numerics.stream import MeanAngle, Stream, mean_angles, token_weights

MOST_BYTES = 64 * 2**20
"""Of the streams that are kept at once for the distances of windows, in float32."""
MOST_TOKENS = 512
MOST_WINDOWS = 10_000
"""In a report. A model of more than 140 blocks has the shorter ones only."""
DIGITS = 6


@dataclass(frozen=True, kw_only=True)
class LayerAngles:
    """Mean angular distances in [0, 1]: `blocks` across each block, `windows[i][n - 1]` across the n blocks from i on.

    Those of blocks are over all tokens of the first batch that are no sinks, those of windows over `tokens` of them.
    """

    blocks: list[float]
    windows: list[list[float]]
    tokens: int


def layer_angles(activations: Activations) -> LayerAngles | None:
    """Of the first batch.

    `None` for a model that is read block by block where no streams are stored: it would be read once more.
    """
    if activations.block_runner.is_lazy and not activations.complete:
        return None
    blocks = len(activations.block_runner.blocks)
    streams = activations.streams_through(0, last_block=blocks - 1)
    before = Stream(next(streams).flatten(0, 1))
    tokens, width = before.values.shape
    most = max(min(tokens, MOST_TOKENS, MOST_BYTES // (4 * width * (blocks + 1))), 1)
    chosen = torch.arange(most, device=before.values.device) * tokens // most  # spread over the batch
    is_ordinary = torch.ones_like(chosen, dtype=torch.bool)
    directions, angles = [_directions(before, chosen)], []
    for stream in streams:
        after, angle = Stream(stream.flatten(0, 1)), MeanAngle()
        ordinary = token_weights(before, after) == 1
        angle.add(before, after, mask=ordinary)
        angles.append(angle.value)
        is_ordinary &= ordinary[chosen]
        directions.append(_directions(after, chosen))
        before = after
    is_ordinary = is_ordinary.cpu()
    windows: list[list[float]] = []
    if is_ordinary.any():  # else all tokens are sinks
        between = mean_angles(torch.stack(directions)[:, is_ordinary])
        longest = next(n for n in range(blocks, 0, -1) if n == 1 or n * (2 * blocks - n + 1) // 2 <= MOST_WINDOWS)
        rows = [between[start, start + 1 : start + 1 + longest].tolist() for start in range(blocks)]
        windows = [[round(value, DIGITS) for value in row] for row in rows]
    return LayerAngles(blocks=angles, windows=windows, tokens=int(is_ordinary.sum()))


def _directions(stream: Stream, chosen: torch.Tensor) -> torch.Tensor:
    values = stream.values[chosen].to(torch.float32)
    return torch.nn.functional.normalize(values, dim=1).cpu()
