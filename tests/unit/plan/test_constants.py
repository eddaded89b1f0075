"""The memory model's constants are those of the rooms that it describes."""

from replaceme_core.engine.activations import cache, cut_sums, tensor_store
from replaceme_core.engine.evaluation import compare, measure
from replaceme_core.engine.methods import refit_choice, refit_projections, windows
from replaceme_core.engine.model import allocator, block_runner
from replaceme_core.engine.text import self_generated
from replaceme_core.request import defaults as constants


def test_constants_are_those_of_the_rooms() -> None:
    assert constants.PART_BYTES == allocator.PART_BYTES
    assert constants.MLP_WIDTH == block_runner.MLP_WIDTH
    assert constants.HELD_OUT_BYTES == tensor_store.MEMORY_BYTES
    assert constants.MEMORY_SHARE == cache.MEMORY_SHARE
    assert constants.CHOICE_STREAM_BYTES == refit_choice.STREAM_BYTES
    assert constants.KEPT_INPUT_BYTES == refit_projections.KEPT_BYTES
    assert constants.SPARE_WINDOWS == windows.SPARE
    assert constants.LOGITS_AT_ONCE == measure.LOGITS_AT_ONCE
    assert constants.MEASURED_ELSEWHERE == compare.ELSEWHERE
    assert constants.TEXT_TOKENS == self_generated.TEXT_TOKENS
    assert constants.BATCH_TEXTS == self_generated.BATCH_TEXTS
    assert constants.REPLAYED_LOGITS == block_runner.LOGITS_AT_ONCE
    assert constants.HELD_OUT_BATCHES == cut_sums.HELD_OUT_BATCHES
