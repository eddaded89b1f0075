"""How many runs of dense blocks it takes to have the dense stream before a block."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from replaceme_core.engine.activations.capture import Activations
from replaceme_core.engine.activations.tensor_store import MemoryStore, SpillingStore
from replaceme_core.engine.model.changes import Cut
from tests.fixtures.models.activations import CUTS, make_activations

BLOCK = 4


@pytest.fixture
def windowed(tmp_path: Path) -> Iterator[Activations]:
    """After a pass over windows whose anchor blocks come before `BLOCK`; its held-out streams lie on disk."""
    with SpillingStore(beside=tmp_path / "out", limit=0) as streams, torch.inference_mode():
        activations = make_activations(make_held_out_store=lambda: streams)
        activations.windows([cut for cut in CUTS if cut.anchor < BLOCK])
        yield activations


@torch.inference_mode()
def test_the_stream_is_that_of_a_plain_pass_and_blocks_run_since_the_nearest_one(windowed: Activations) -> None:
    plain, kept = make_activations(), make_activations(store=MemoryStore())
    kept.capture()
    nearest = max(cut.anchor for cut in CUTS if cut.anchor < BLOCK)
    for batch, since in ((0, 0), (plain.held_out_batches[3], nearest)):
        expected = plain.block_runner.enter(plain.tokens(batch))
        for block in range(BLOCK):
            expected = plain.block_runner.run(block, expected)
        for activations, runs in ((plain, BLOCK), (windowed, BLOCK - since), (kept, 0)):
            before = activations.dense_block_runs
            assert torch.equal(activations.read_or_run(BLOCK, batch), expected)
            assert activations.dense_block_runs - before == runs


@torch.inference_mode()
def test_the_ends_of_a_cut_cost_the_blocks_since_its_anchor_on_held_out_tokens(windowed: Activations) -> None:
    kept = make_activations(store=MemoryStore())
    kept.capture()
    for activations, runs in ((windowed, 3), (kept, 0)):
        before = activations.dense_block_runs
        activations.at_cut(activations.held_out_batches[0], Cut(start=3, end=4), done=[])
        assert activations.dense_block_runs - before == runs
