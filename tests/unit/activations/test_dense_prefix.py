"""How many runs of dense blocks it takes to have the dense stream before a block."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from replaceme_core.activations.capture import Captured
from replaceme_core.activations.dense_prefix import dense_before
from replaceme_core.activations.spill_to_disk import SpillingStreams
from replaceme_core.activations.tensor_store import MemoryStreams
from replaceme_core.methods.cosine.descent import cut_streams
from replaceme_core.models.cut import Cut
from tests.unit.selection.test_screening import CUTS, captured_by

BLOCK = 4


@pytest.fixture
def passed(tmp_path: Path) -> Iterator[Captured]:
    """After a pass over windows whose keepers come before `BLOCK`; its held-out streams lie on disk."""
    with SpillingStreams(beside=tmp_path / "out", limit=0) as streams, torch.inference_mode():
        captured = captured_by(make_held_out=lambda: streams)
        captured.windows([cut for cut in CUTS if cut.keeper < BLOCK])
        yield captured


@torch.inference_mode()
def test_the_stream_is_that_of_a_plain_pass_and_blocks_run_since_the_nearest_one(passed: Captured) -> None:
    plain, kept = captured_by(), captured_by(streams=MemoryStreams())
    kept.capture()
    nearest = max(cut.keeper for cut in CUTS if cut.keeper < BLOCK)
    for batch, since in ((0, 0), (plain.held_out_batches[3], nearest)):
        expected = plain.blockwise.enter(plain.tokens(batch))
        for block in range(BLOCK):
            expected = plain.blockwise.run(block, expected)
        for captured, runs in ((plain, BLOCK), (passed, BLOCK - since), (kept, 0)):
            before = captured.dense_block_runs
            assert torch.equal(dense_before(captured, BLOCK, batch), expected)
            assert captured.dense_block_runs - before == runs


@torch.inference_mode()
def test_the_ends_of_a_cut_cost_the_blocks_since_its_keeper_on_held_out_tokens(passed: Captured) -> None:
    kept = captured_by(streams=MemoryStreams())
    kept.capture()
    for captured, runs in ((passed, 3), (kept, 0)):
        before = captured.dense_block_runs
        cut_streams(captured, captured.held_out_batches[0], Cut(start=3, end=4), done=[])
        assert captured.dense_block_runs - before == runs
