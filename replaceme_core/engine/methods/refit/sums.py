"""The sums that a projection is solved from, and what is kept while it is."""

import torch
from torch import nn

from replaceme_core.engine.numerics.stream import Stream, inverse_length_weights
from replaceme_core.engine.numerics.sums import PRODUCT_DTYPE, Moments
from replaceme_core.families.resolve import Projection

KEPT_BYTES = 2**28
"""Of the inputs of an MLP's projection on all fit tokens, in float32."""


def added(moments: Moments | None, inputs: torch.Tensor, *, reached: torch.Tensor, target: torch.Tensor) -> Moments:
    """`moments`, or new ones, with a batch added: `inputs` (tokens, f), the stream and its target (tokens, d)."""
    kept, end = Stream(reached), Stream(target)
    if moments is None:
        moments = Moments.zeros(kept.values.shape[1], inputs=inputs.shape[1], device=inputs.device)
    moments.add(inputs, kept=kept, end=end, weights=inverse_length_weights(end))
    return moments


def may_keep(projection: Projection, block: nn.Module, *, tokens: int) -> bool:
    """Whether the inputs (tokens, f) of the projection of an MLP are small enough to wait for its new weight.

    Else the MLP is run a second time. A fixed limit, not what is free: the same request must give the same bytes.
    """
    shape = block.get_parameter(projection.parameter).shape
    return tokens * shape[0 if projection.transposed else 1] * PRODUCT_DTYPE.itemsize <= KEPT_BYTES
