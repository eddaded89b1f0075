"""A model directory that the stub runner accepts: a config, and weights of one value for each block."""

import json
import struct
from pathlib import Path

BLOCKS = 4


def stub_weights(blocks: int, *, values: int = 1) -> bytes:
    """A weight file that has blocks, so that its header can be read; no model can be loaded from it."""
    size = 4 * values
    rows = {
        f"model.layers.{block}.weight": {
            "dtype": "F32",
            "shape": [values],
            "data_offsets": [size * block, size * (block + 1)],
        }
        for block in range(blocks)
    }
    raw = json.dumps(rows).encode()
    return struct.pack("<Q", len(raw)) + raw + bytes(size * blocks)


STUB_MODEL = {
    "config.json": json.dumps({"model_type": "llama", "num_hidden_layers": BLOCKS, "hidden_size": 8}).encode(),
    "model.safetensors": stub_weights(BLOCKS),
}


def write_stub_model(folder: Path) -> None:
    """Create `folder` with the files of the model."""
    folder.mkdir(parents=True)
    for name, content in STUB_MODEL.items():
        (folder / name).write_bytes(content)
