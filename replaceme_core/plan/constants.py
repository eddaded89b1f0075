"""Sizes that the memory model takes from other rooms, which import torch. A test holds them equal where they are fixed
there; the others are measured.
"""

MIB = 2**20

RUNNER_BYTES = 400 * MIB
"""Measured: resident memory of a runner on a CPU with the interpreter and all libraries, before a model is loaded."""
GPU_RUNNER_BYTES = 3 * 2**30
"""The same with the libraries of a GPU and its context. Not measured by the tests."""

REUSED_BYTES = 32 * MIB
"""`models.allocator.PART_BYTES`: parts of a batch are made so that what is inside an MLP stays within it."""
MLP_WIDTH = 4
"""`models.block_runner.MLP_WIDTH`."""
HELD_OUT_BYTES = 64 * MIB
"""`activations.spill_to_disk.MEMORY_BYTES`."""
MEMORY_SHARE = 0.25
"""`activations.cached_activations.MEMORY_SHARE`: streams that take a greater share of the memory go to disk."""
CHOICE_STREAM_BYTES = 64 * 2**30
"""`methods.refit.part_of_text.STREAM_BYTES`: blocks are chosen on as much of the text as this holds."""
KEPT_BYTES = 2**28
"""`methods.refit.sums.KEPT_BYTES`."""
SPARE_WINDOWS = 2
"""`methods.windows.SPARE`."""
LOGITS_AT_ONCE = 2**26
"""`evaluation.measure.LOGITS_AT_ONCE`, values."""
MEASURED_ELSEWHERE = 4
"""`evaluation.compare.ELSEWHERE`, sequences."""
TEXT_TOKENS = 192
"""`calibration.self_generated.TEXT_TOKENS`."""
BATCH_TEXTS = 128
"""`calibration.self_generated.BATCH_TEXTS`."""
REPLAYED_LOGITS = 6 * 2**20
"""`activations.held_out_loss.LOGITS_AT_ONCE`, values."""
HELD_OUT_BATCHES = 16
"""`activations.batches.HELD_OUT_BATCHES`."""
TRIES = 4
"""Maps that a search for blocks makes in each step, beside the first ones."""
REFITTED = 0.5
"""Share of the kept blocks that are refitted: those after the first cut, without the last third of the model."""
