"""The loss of a stream, in pieces of logits that are small beside what memory there is."""

from pathlib import Path

import pytest
import torch

from replaceme_core.engine.model import block_runner as module
from replaceme_core.engine.model.block_runner import BlockRunner, summed_loss
from replaceme_core.engine.model.lazy_model import load_lazily
from replaceme_core.engine.model.load import load_model
from replaceme_core.families.resolve import resolve
from tests.fixtures.models.tiny import save_tiny, token_ids


@torch.inference_mode()
def test_parts_of_the_logits_are_smaller_for_a_lazily_loaded_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LOGITS_AT_ONCE", 8 * 260)
    monkeypatch.setattr(module, "FEWER_LOGITS_AT_ONCE", 2 * 260)
    source, tokens = save_tiny(tmp_path / "model"), token_ids(1, 17)
    losses, pieces = [], []
    for load in (load_model, load_lazily):
        block_runner = BlockRunner(resolved=resolve(load(source, dtype=torch.float32, device="cpu")))
        stream = block_runner.enter(tokens)
        for block in range(len(block_runner.blocks)):
            stream = block_runner.run(block, stream)
        positions = list[int]()
        block_runner.resolved.model.register_forward_hook(
            lambda _, args, output, positions=positions: positions.append(output.logits.shape[1])
        )
        losses.append(summed_loss(block_runner, stream, tokens))
        pieces.append(positions)
    assert pieces == [[8, 8], [2] * 8]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
