"""How far each block of the dense model turns the stream: a picture for the model card, not for any choice."""

from collections.abc import Iterator

import torch

from replaceme_core.activations.dense_streams import DenseStreams
from replaceme_core.numerics.distance import MeanAngle
from replaceme_core.numerics.sinks import token_weights
from replaceme_core.numerics.stream import Stream


def layer_angles(activations: DenseStreams) -> list[float] | None:
    """The mean angular distance across each block, in [0, 1], over the tokens of the first batch that are no sinks.

    `None` for a model that is read block by block where no streams are stored: it would be read once more.
    """
    if activations.block_runner.is_lazy and not activations.complete:
        return None
    angles = []
    streams = _streams(activations)
    before = Stream(next(streams).flatten(0, 1))
    for stream in streams:
        after, angle = Stream(stream.flatten(0, 1)), MeanAngle()
        angle.add(before, after, mask=token_weights(before, after) == 1)
        angles.append(angle.value)
        before = after
    return angles


def _streams(activations: DenseStreams) -> Iterator[torch.Tensor]:
    """The streams before each block and after the last one. What is run here does not count as a dense pass."""
    blocks = len(activations.block_runner.blocks)
    if activations.complete:
        for block in range(blocks + 1):
            yield activations.before(block, 0)
        return
    stream = activations.block_runner.enter(activations.tokens(0))
    yield stream
    for block in range(blocks):
        stream = activations.block_runner.run(block, stream)
        yield stream
