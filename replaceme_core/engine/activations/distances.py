"""Angular distances between the streams at both ends of cuts, without the sums that a map would need."""

from collections.abc import Sequence

import torch

from replaceme_core.engine.activations.capture import Activations
from replaceme_core.engine.activations.held_out_streams import HeldOutStreams, stored_held_out
from replaceme_core.engine.activations.tensor_store import stream_key
from replaceme_core.engine.model.cut import Cut
from replaceme_core.engine.numerics.distance import MeanAngle
from replaceme_core.engine.numerics.sinks import token_weights
from replaceme_core.engine.numerics.stream import Stream


def capture_distances(
    activations: Activations, cuts: Sequence[Cut], *, keep_streams: bool = False
) -> tuple[dict[Cut, MeanAngle], HeldOutStreams]:
    """The mean angular distance across each of `cuts`, of any length, over all tokens that are no sinks.

    One pass, or none where streams are stored. With `keep_streams` the held-out streams before every anchor block are
    stored, where a replay starts.
    """
    angles = {cut: MeanAngle() for cut in cuts}
    last_block, blocks = max(cut.end for cut in cuts), len(activations.block_runner.blocks)
    starts = {cut.start: max(one.end for one in cuts if one.start == cut.start) for cut in cuts}
    tokens: list[torch.Tensor] = []
    streams = activations.make_held_out_store()
    anchors = {cut.anchor for cut in cuts if keep_streams and not activations.stores_streams}
    for number, batch in enumerate(activations.batches):
        kept: dict[int, Stream] = {}  # by the first block of a cut, which reads it
        for block, stream in enumerate(activations.streams_through(number, last_block=last_block)):
            here = Stream(stream.flatten(0, 1))
            for cut in cuts:
                if cut.end == block - 1:
                    mask = token_weights(kept[cut.start], here) == 1
                    angles[cut].add(kept[cut.start], here, mask=mask)
            kept = {start: one for start, one in kept.items() if starts[start] >= block}
            if block in starts:
                kept[block] = here
            if batch.held_out and block in anchors:
                streams.put(stream_key(block), stream)
        if batch.held_out:
            tokens.append(activations.tokens(number))
            if anchors and last_block == blocks - 1:
                streams.put(stream_key(blocks), stream)
        activations.advance((number + 1) / len(activations.batches))
    if activations.stores_streams:
        return angles, activations.held_out_streams()
    return angles, stored_held_out(streams, tokens=tokens, blocks=blocks, at_once=activations.batch_size)
