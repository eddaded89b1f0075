"""Attention over whole sequences in bfloat16 on a CPU: about a third of the time of torch's own kernel.

That kernel multiplies bfloat16 no faster than float32 (measured: docs/research/memory-and-speed.md). Here a part of the
queries at a time is multiplied with all keys that it may see: the products are native, and the scores stay in the
cache. Precision is that of the `eager` attention of transformers; everything else goes to the kernel.
"""

import torch
from torch import nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

QUERIES = 128
"""Positions of a part."""
SCORE_BYTES = 2**22
"""Of the scores of a part: more do not stay in the cache."""


def use_fast_attention() -> None:
    """Models of this process that ask for `sdpa` attention get `attend`."""
    AttentionInterface.register("sdpa", attend)


def attend(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **kwargs: object,
) -> tuple[torch.Tensor, None]:
    """As `sdpa_attention_forward`: `query` (batch, heads, positions, width); returns (batch, positions, heads, width).

    `key` and `value` may have fewer heads, each for a group of those of `query`.
    """
    causal = attention_mask is None and (getattr(module, "is_causal", True) if is_causal is None else is_causal)
    shared = attention_mask is not None and _is_shared(attention_mask)
    suits = (
        query.device.type == "cpu"
        and query.dtype is torch.bfloat16
        and 1 < query.shape[2] == key.shape[2]
        and (causal or shared)
        and not any(other is not None for name, other in kwargs.items() if name in ("position_bias", "softcap"))
    )
    if not suits:
        return sdpa_attention_forward(
            module,
            query,
            key,
            value,
            attention_mask,
            dropout,
            scaling,
            is_causal,
            **kwargs,  # type: ignore[arg-type]
        )
    batch, heads, positions, width = query.shape
    groups = heads // key.shape[1]
    rows = query.reshape(-1, groups, positions, width)  # (batch x key heads, groups, positions, width)
    keys, values = key.reshape(-1, positions, width).transpose(1, 2), value.reshape(-1, positions, value.shape[3])
    added = _added(attention_mask, positions)
    scaling = width**-0.5 if scaling is None else scaling
    parts = []
    for first in range(0, positions, QUERIES):
        end = min(first + QUERIES, positions)
        seen = end if causal else positions
        hidden = added[first:end, :seen].repeat(groups, 1)
        at_once = max(1, SCORE_BYTES // hidden.nbytes)
        part = [
            torch.bmm(torch.baddbmm(hidden, some, keys_seen, alpha=scaling).softmax(-1), values_seen)
            for some, keys_seen, values_seen in zip(
                rows[:, :, first:end].flatten(1, 2).split(at_once),
                keys[:, :, :seen].split(at_once),
                values[:, :seen].split(at_once),
                strict=True,
            )
        ]
        parts.append(torch.cat(part).unflatten(1, (groups, end - first)))
    together = torch.cat(parts, dim=2).view(batch, heads, positions, -1)
    return together.transpose(1, 2).contiguous(), None


def _is_shared(mask: torch.Tensor) -> bool:
    """Whether `mask` (batch, heads, positions, positions) is the same for all sequences and heads."""
    return all(size == 1 or stride == 0 for size, stride in zip(mask.shape[:2], mask.stride(), strict=False))


def _added(mask: torch.Tensor | None, positions: int) -> torch.Tensor:
    """What is added to the scores (positions, positions): 0 where a query may see a key, else no weight is left."""
    least = torch.finfo(torch.bfloat16).min
    if mask is None:
        return torch.full((positions, positions), least, dtype=torch.bfloat16).triu(1)
    if mask.dtype is torch.bool:
        return torch.zeros((positions, positions), dtype=torch.bfloat16).masked_fill(~mask[0, 0], least)
    return mask[0, 0].to(torch.bfloat16)
