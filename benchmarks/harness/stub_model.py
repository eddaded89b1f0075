"""A model directory that the stub runner accepts: a config without weights that could be loaded."""

import json
from pathlib import Path

STUB_MODEL = {
    "config.json": json.dumps({"model_type": "llama", "num_hidden_layers": 4, "hidden_size": 8}).encode(),
    "model.safetensors": b"weights of the source",
}


def write_stub_model(folder: Path) -> None:
    """Create `folder` with the files of the model."""
    folder.mkdir(parents=True)
    for name, content in STUB_MODEL.items():
        (folder / name).write_bytes(content)
