"""The whole story on an accelerator: what a CPU makes of the same job, the same bytes each time, what only it can do.

Each test that needs no accelerator also runs on the CPU, so that it is known to hold before one is there.
"""

import hashlib
import importlib.util
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from replaceme_core.engine.model.device import default_device
from replaceme_core.engine.pipeline import compress
from replaceme_core.request.method import Method
from replaceme_core.runner.messages import Finished
from tests.fixtures.models.pipeline import request
from tests.fixtures.models.recorder import Recorder
from tests.fixtures.models.tiny import BLOCKS, save_tiny, token_ids

pytestmark = pytest.mark.usefixtures("brief_reports")

ACCELERATOR = pytest.param("accelerator", marks=pytest.mark.gpu)
EVERYWHERE = pytest.mark.parametrize("where", ["cpu", ACCELERATOR])
FITTING = [Method.LEAST_SQUARES, Method.COSINE, Method.REFIT, Method.AUTO]


def device(where: str) -> str:
    return default_device() if where == "accelerator" else where


def run(
    source: Path,
    out: Path,
    *,
    device: str,
    method: str = Method.LEAST_SQUARES,
    quantization: str | None = None,
    **fields: object,
) -> Finished:
    """A third of the blocks of the model in `source`, or those that are named."""
    compute = {"threads": 1, "dtype": "float32", "device": device, "quantization": quantization}
    one = request(source, method={"name": method}, compute=compute, **fields)
    return compress(one.model_copy(update={"output_directory": str(out)}), Recorder())


def digest(out: Path) -> str:
    return hashlib.sha256((out / "model.safetensors").read_bytes()).hexdigest()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return save_tiny(tmp_path / "source")


@pytest.mark.parametrize(
    ("method", "where"),
    [(Method.AUTO, "cpu"), *(pytest.param(one, "accelerator", marks=pytest.mark.gpu) for one in FITTING)],
)
def test_the_same_job_makes_the_same_bytes(source: Path, where: str, method: Method, tmp_path: Path) -> None:
    outs = [tmp_path / "first", tmp_path / "second"]
    for out in outs:
        run(source, out, device=device(where), method=method)
    assert digest(outs[0]) == digest(outs[1])


@pytest.mark.gpu
@pytest.mark.parametrize("method", Method)
def test_an_accelerator_makes_what_a_cpu_makes(source: Path, method: Method, tmp_path: Path) -> None:
    """With the same blocks named: which of two like ones is chosen may hang on rounding."""
    on_cpu = run(source, tmp_path / "cpu", device="cpu", method=method, drop=[2, 3])
    there = run(source, tmp_path / "there", device=default_device(), method=method, drop=[2, 3])
    assert there.kept_blocks == on_cpu.kept_blocks
    one, other = (AutoModelForCausalLM.from_pretrained(tmp_path / name) for name in ("cpu", "there"))
    tokens = token_ids(4, 32)
    with torch.inference_mode():
        expected, found = one(input_ids=tokens).logits, other(input_ids=tokens).logits
    assert torch.linalg.vector_norm(found - expected) <= 0.01 * torch.linalg.vector_norm(expected)


@EVERYWHERE
def test_each_stage_reports_the_peak_memory_of_the_device(source: Path, where: str, tmp_path: Path) -> None:
    stages = run(source, tmp_path / "out", device=device(where)).report["stages"]
    assert isinstance(stages, list)
    assert all(stage["peak_bytes"] > 0 for stage in stages)


@EVERYWHERE
@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="the extra `quantized` is not installed")
@pytest.mark.parametrize("bits", ["8bit", "4bit"])
def test_calibration_in_few_bits_folds_into_the_stored_weights(where: str, bits: str, tmp_path: Path) -> None:
    source = save_tiny(tmp_path / "wide", hidden_size=64, intermediate_size=128, dtype=torch.bfloat16)
    finished = run(source, tmp_path / "out", device=device(where), quantization=bits)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert len(finished.removed_blocks) + model.config.num_hidden_layers == BLOCKS
    assert model.dtype == torch.bfloat16
