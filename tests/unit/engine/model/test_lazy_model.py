"""A model whose blocks are read one at a time: the next one is read while one is in use."""

from pathlib import Path
from threading import Semaphore, current_thread

import pytest
import torch

from replaceme_core.engine.model import safetensors_io
from replaceme_core.engine.model.lazy_model import load_lazily
from replaceme_core.engine.model.load import load_model
from replaceme_core.errors import BrokenModel
from replaceme_core.families.resolve import resolve
from tests.fixtures.models.tiny import save_tiny, token_ids


def test_the_next_block_is_read_while_one_is_in_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = save_tiny(tmp_path / "source")
    model = load_lazily(source, dtype=torch.float32, device="cpu")
    blocks = resolve(model).blocks
    read, read_ahead, this = safetensors_io.read_tensor, Semaphore(0), current_thread()

    def noted(*arguments: object, **options: object) -> torch.Tensor:
        found = read(*arguments, **options)  # type: ignore[arg-type]
        if current_thread() is not this:
            read_ahead.release()
        return found

    def wait_for_the_next(*_: object) -> None:
        assert all(read_ahead.acquire(timeout=30) for _ in blocks[0].parameters())

    monkeypatch.setattr(safetensors_io, "read_tensor", noted)
    for block in blocks[:-1]:
        block.register_forward_hook(wait_for_the_next)
    tokens = token_ids(1, 8)
    with torch.inference_mode():
        for _ in range(2):
            logits = model(input_ids=tokens, use_cache=False).logits
        wait_for_the_next()  # the second time it is block 0 after the last one
        whole = load_model(source, dtype=torch.float32, device="cpu")
        assert torch.equal(logits, whole(input_ids=tokens, use_cache=False).logits)


def test_a_block_that_is_damaged_is_an_error_where_it_is_needed(tmp_path: Path) -> None:
    source = save_tiny(tmp_path / "source")
    model = load_lazily(source, dtype=torch.float32, device="cpu")
    data = (source / "model.safetensors").read_bytes()
    (source / "model.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(BrokenModel, match="the file ends within"), torch.inference_mode():
        model(input_ids=token_ids(1, 8), use_cache=False)
