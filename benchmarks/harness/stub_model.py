"""A model directory that the stub runner accepts: a config, and weights of one value for each block."""

import json
import struct
from pathlib import Path

BLOCKS = 4


def stub_weights(blocks: int) -> bytes:
    """A weight file that has blocks, so that its header can be read; no model can be loaded from it."""
    rows = {
        f"model.layers.{block}.weight": {"dtype": "F32", "shape": [1], "data_offsets": [4 * block, 4 * block + 4]}
        for block in range(blocks)
    }
    raw = json.dumps(rows).encode()
    return struct.pack("<Q", len(raw)) + raw + bytes(4 * blocks)


STUB_MODEL = {
    "config.json": json.dumps({"model_type": "llama", "num_hidden_layers": BLOCKS, "hidden_size": 8}).encode(),
    "model.safetensors": stub_weights(BLOCKS),
}


def write_stub_model(folder: Path) -> None:
    """Create `folder` with the files of the model."""
    folder.mkdir(parents=True)
    for name, content in STUB_MODEL.items():
        (folder / name).write_bytes(content)
