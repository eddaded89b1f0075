"""Configs and headers that are admitted although they are not as `save_pretrained` writes them today."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from replaceme_core.engine.model.safetensors_io import tensors_of
from replaceme_core.hub.model_config import admit_config
from replaceme_core.hub.model_files import read_config
from replaceme_core.plan.resources import shape_of
from tests.fixtures.models.pipeline import request, run
from tests.fixtures.models.tiny import BY_NAME, save_tiny

pytestmark = pytest.mark.usefixtures("brief_reports")

WEIGHTS = "model.safetensors"


@pytest.mark.parametrize(
    ("variant", "module", "dtype"),
    [
        ("neox-parallel", "gpt_neox.layers.{}.attention", torch.uint8),
        ("neox-parallel", "gpt_neox.layers.{}.attention", torch.bool),
        ("gpt2", "transformer.h.{}.attn", torch.uint8),
    ],
)
def test_causal_masks_of_older_checkpoints_are_left_out(
    variant: str, module: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    """They are larger than the weights here, and so their dtype is that of most values."""
    source = save_tiny(tmp_path / "source", variant=BY_NAME[variant])
    parameters = load_file(source / WEIGHTS)
    mask = torch.ones(1, 1, 256, 256, dtype=dtype).tril()
    masks = {f"{module.format(block)}.bias": mask.clone() for block in range(6)}
    save_file(parameters | masks, source / WEIGHTS, metadata={"format": "pt"})
    config = read_config(source)
    shape = shape_of(admit_config(config), config, tensors_of([source / WEIGHTS]))
    assert shape.parameters == sum(values.numel() for values in parameters.values())
    _, _, result = run(request(source, evaluation={"enabled": False}))
    assert not masks.keys() & load_file(result / WEIGHTS).keys()
