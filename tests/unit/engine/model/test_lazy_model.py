"""A model whose blocks are read one at a time: the next one is read while one is in use."""

import time
from pathlib import Path

import pytest
import torch

from replaceme_core.engine.model import safetensors_io
from replaceme_core.engine.model.lazy_model import load_lazily
from replaceme_core.engine.model.load import load_model
from replaceme_core.errors import BrokenModel
from replaceme_core.families.resolve import resolve
from tests.fixtures.models.tiny import save_tiny, token_ids

BLOCKS, COMPUTING, READING = 16, 0.04, 0.03
"""Seconds for each block."""


def test_reading_costs_no_time_where_computing_takes_longer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = save_tiny(tmp_path / "source", num_hidden_layers=BLOCKS)
    model = load_lazily(source, dtype=torch.float32, device="cpu")
    blocks = resolve(model).blocks
    of_each = len(list(blocks[0].parameters()))
    read = safetensors_io.read_tensor

    def read_slowly(*arguments: object, **options: object) -> torch.Tensor:
        time.sleep(READING / of_each)
        return read(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(safetensors_io, "read_tensor", read_slowly)
    for block in blocks:
        block.register_forward_hook(lambda *_: time.sleep(COMPUTING))
    tokens = token_ids(1, 8)
    seconds = []
    with torch.inference_mode():
        for _ in range(2):
            began = time.perf_counter()
            logits = model(input_ids=tokens, use_cache=False).logits
            seconds.append(time.perf_counter() - began)
        whole = load_model(source, dtype=torch.float32, device="cpu")
        assert torch.equal(logits, whole(input_ids=tokens, use_cache=False).logits)
    # one after the other takes all of it; the second time block 0 has been read after the last one
    assert min(seconds) < 0.9 * BLOCKS * (COMPUTING + READING)


def test_a_block_that_is_damaged_is_an_error_where_it_is_needed(tmp_path: Path) -> None:
    source = save_tiny(tmp_path / "source")
    model = load_lazily(source, dtype=torch.float32, device="cpu")
    data = (source / "model.safetensors").read_bytes()
    (source / "model.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(BrokenModel, match="the file ends within"), torch.inference_mode():
        model(input_ids=token_ids(1, 8), use_cache=False)
