"""A model that was published quantized becomes a shallower one in bfloat16, and can be measured and asked."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

from replaceme_core.engine.evaluation.evaluate import evaluate
from replaceme_core.engine.model.dequantize import in_full_precision
from replaceme_core.hub.files import sha256_of
from replaceme_core.runner.messages import EvaluateRequest
from tests.fixtures.models.pipeline import request, run
from tests.fixtures.models.quantized import save_fp8, save_mxfp4


@pytest.mark.parametrize(("save", "loading"), [(save_mxfp4, "whole"), (save_fp8, "blockwise")], ids=["mxfp4", "fp8"])
def test_a_quantized_model_becomes_shallower(save, loading: str, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    source = save(tmp_path / "source")
    published = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(published | {"torch_dtype": "float16"}))
    compute = {"threads": 1, "dtype": "bfloat16", "loading": loading}
    calibration = {"dataset": "file:text.txt", "samples": 16, "max_length": 64}
    gate = {"size_ratio": {"max": 1}}
    finished, _, out = run(request(source, compute=compute, calibration=calibration, gate=gate))
    report = json.loads((out / "replaceme.json").read_text())
    scheme = published["quantization_config"]["quant_method"]
    warnings = {one["code"]: one["message"] for one in report["warnings"]}
    assert f"stored as {scheme}" in warnings["dequantized"]
    assert report["model"]["model.safetensors"] == sha256_of(source / "model.safetensors"), "what reproduce compares"
    assert report["numerics"]["stored_in"] == "bfloat16"
    sizes = [(path / "model.safetensors").stat().st_size for path in (source, out)]
    assert [report[side]["bytes"] for side in ("before", "after")] == sizes, "as published, not as the copy"
    assert report["gate"]["criteria"][0]["value"] == sizes[1] / sizes[0]
    config = json.loads((out / "config.json").read_text())
    assert "quantization_config" not in config
    assert config["dtype"] == config["torch_dtype"] == "bfloat16", "older releases of transformers read the second"
    model = AutoModelForCausalLM.from_pretrained(out)
    assert model.config.num_hidden_layers == len(finished.kept_blocks) == 4
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "source", "text.txt"]


@pytest.mark.parametrize("save", [save_mxfp4, save_fp8], ids=["mxfp4", "fp8"])
def test_a_quantized_model_is_measured_and_asked(
    save: Callable[[Path], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is worth what its copy in bfloat16 is, and nothing is left of that which was made for it."""
    (scratch := tmp_path / "scratch").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    source, compute = save(tmp_path / "source"), {"device": "cpu", "dtype": "bfloat16", "threads": 1}
    with in_full_precision(source, beside=tmp_path / "copy") as copy:
        both = {"model_directory": str(source), "others": (str(copy),), **compute}
        text = {"builtin": "builtin:code", "samples": 2, "max_length": 32}
        measured: Any = evaluate(EvaluateRequest.model_validate({**both, **text}))["models"]
        asked: Any = evaluate(EvaluateRequest.model_validate({**both, "prompts": ("Why?",), "new_tokens": 4}))["models"]
    assert measured[1]["ratio"] == 1
    assert measured[0]["bytes"] == (source / "model.safetensors").stat().st_size, "as published"
    assert asked[0] == asked[1]
    assert list(scratch.iterdir()) == []
