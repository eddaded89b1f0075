"""How many runs of dense blocks it takes to have the dense stream before a block."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from replaceme_core.activations.capture import Activations
from replaceme_core.activations.dense_prefix import dense_before
from replaceme_core.activations.spill_to_disk import SpillingStore
from replaceme_core.activations.tensor_store import MemoryStore
from replaceme_core.methods.cosine.descent import cut_streams
from replaceme_core.models.cut import Cut
from tests.fixtures.models.activations import CUTS, make_activations

BLOCK = 4


@pytest.fixture
def passed(tmp_path: Path) -> Iterator[Activations]:
    """After a pass over windows whose keepers come before `BLOCK`; its held-out streams lie on disk."""
    with SpillingStore(beside=tmp_path / "out", limit=0) as streams, torch.inference_mode():
        activations = make_activations(make_held_out=lambda: streams)
        activations.windows([cut for cut in CUTS if cut.anchor < BLOCK])
        yield activations


@torch.inference_mode()
def test_the_stream_is_that_of_a_plain_pass_and_blocks_run_since_the_nearest_one(passed: Activations) -> None:
    plain, kept = make_activations(), make_activations(streams=MemoryStore())
    kept.capture()
    nearest = max(cut.anchor for cut in CUTS if cut.anchor < BLOCK)
    for batch, since in ((0, 0), (plain.held_out_batches[3], nearest)):
        expected = plain.block_runner.enter(plain.tokens(batch))
        for block in range(BLOCK):
            expected = plain.block_runner.run(block, expected)
        for activations, runs in ((plain, BLOCK), (passed, BLOCK - since), (kept, 0)):
            before = activations.dense_block_runs
            assert torch.equal(dense_before(activations, BLOCK, batch), expected)
            assert activations.dense_block_runs - before == runs


@torch.inference_mode()
def test_the_ends_of_a_cut_cost_the_blocks_since_its_keeper_on_held_out_tokens(passed: Activations) -> None:
    kept = make_activations(streams=MemoryStore())
    kept.capture()
    for activations, runs in ((passed, 3), (kept, 0)):
        before = activations.dense_block_runs
        cut_streams(activations, activations.held_out_batches[0], Cut(start=3, end=4), done=[])
        assert activations.dense_block_runs - before == runs
