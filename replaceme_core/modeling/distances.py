"""How much the stream turns across blocks, from one pass and without the sums that a map would need."""

from collections.abc import Callable, Sequence

import torch

from replaceme_core.modeling.blockwise import BlockwiseModel
from replaceme_core.modeling.capture import Cut, HeldOutStreams, schedule
from replaceme_core.numerics.distance import MeanAngle
from replaceme_core.numerics.sinks import token_weights
from replaceme_core.numerics.stream import Stream


def capture_distances(
    blockwise: BlockwiseModel,
    cuts: Sequence[Cut],
    *,
    fit: torch.Tensor,
    held_out: torch.Tensor,
    batch_size: int,
    advance: Callable[[float], None],
    keep_streams: bool = False,
) -> tuple[dict[Cut, MeanAngle], HeldOutStreams]:
    """The angle across each of `cuts`, of any length, over all ordinary tokens of `fit` and `held_out`.

    With `keep_streams` the held-out tokens leave their stream before every keeper behind, where a replay starts.
    """
    angles = {cut: MeanAngle() for cut in cuts}
    last_block = max(cut.end for cut in cuts)
    before: dict[int, list[torch.Tensor]] = {cut.keeper: [] for cut in cuts if keep_streams}
    held_out_tokens: list[torch.Tensor] = []
    last: list[torch.Tensor] = []
    total, done = fit.numel() + held_out.numel(), 0
    for batch, is_held_out in schedule(fit, held_out, batch_size):
        tokens = batch.to(blockwise.resolved.model.device)
        stream = blockwise.enter(tokens)
        kept: dict[int, Stream] = {}  # by the first block of a cut: what that block reads
        for block in range(last_block + 1):
            if is_held_out and block in before:
                before[block].append(stream)
            if any(cut.start == block for cut in cuts):
                kept[block] = Stream(stream.flatten(0, 1))
            stream = blockwise.run(block, stream)
            here = Stream(stream.flatten(0, 1))
            for cut in cuts:
                if cut.end == block:
                    mask = token_weights(kept[cut.start], here) == 1
                    angles[cut].add(kept[cut.start], here, mask=mask)
            kept = {start: one for start, one in kept.items() if any(c.start == start and c.end > block for c in cuts)}
        if is_held_out:
            held_out_tokens.append(tokens)
            if last_block == len(blockwise.blocks) - 1:
                last.append(stream)
        done += batch.numel()
        advance(done / total)
    return angles, HeldOutStreams(tokens=held_out_tokens, before=before, last=last)
