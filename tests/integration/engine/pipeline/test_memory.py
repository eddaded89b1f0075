"""A model larger than the memory that there is, and the same model with plenty, give the same bytes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from replaceme_core.errors import OutOfMemory
from replaceme_core.request.method import Method
from replaceme_core.runner.messages import RunnerRequest
from tests.fixtures.models.pipeline import request, run
from tests.fixtures.models.tiny import VARIANTS, save_tiny

LARGE = {
    "hidden_size": 256,
    "intermediate_size": 1024,
    "num_hidden_layers": 40,
    "num_key_value_heads": 4,
    "vocab_size": 260,
}
ALLOWANCE = 96 * 2**20  # bytes of address space; the weights are 168 MB

CHILD = """
import os, resource, sys
from pathlib import Path
from replaceme_core.errors import OutOfMemory, ReplaceMeError
from replaceme_core.engine.pipeline import compress
from replaceme_core.runner.messages import RunnerRequest
from tests.fixtures.models.recorder import Recorder
from replaceme_core.runner.messages import describe

small, large = (RunnerRequest.model_validate_json(line) for line in sys.stdin)
compress(small, Recorder())  # what is imported on the way counts as imports
size = next(int(row.split()[1]) * 1024 for row in Path("/proc/self/status").read_text().splitlines() if "VmSize" in row)
limit = size + int(sys.argv[1])
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
try:
    report = compress(large, Recorder()).report
except Exception as error:
    print(describe(error).code)
else:
    print(report["spec"]["compute"]["loading"])
"""


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("large") / "source", **LARGE)


def of(source: Path, out: Path, loading: str, **fields: object) -> RunnerRequest:
    one = request(
        source,
        calibration={"dataset": "file:text.txt", "samples": 8, "max_length": 64},
        evaluation={"enabled": False},
        compute={"threads": 1, "batch_size": 2, "dtype": "float32", "loading": loading},
        **fields,
    )
    return one.model_copy(update={"output_directory": str(out)})


@pytest.mark.skipif(sys.platform != "linux", reason="address space is limited as Linux does")
@pytest.mark.parametrize(("loading", "expected"), [("auto", "blockwise"), ("whole", OutOfMemory.code)])
def test_in_an_address_space_too_small_for_the_weights(
    large: Path, tmp_path: Path, loading: str, expected: str
) -> None:
    assert (large / "model.safetensors").stat().st_size > 1.6 * ALLOWANCE
    small = save_tiny(tmp_path / "small")
    requests = [
        of(small, tmp_path / "small-out", "blockwise", drop=[2]),
        of(large, tmp_path / "out", loading, drop=[20, 21, 22]),
    ]
    environment = {**os.environ, "MALLOC_ARENA_MAX": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(ALLOWANCE)],
        input="\n".join(one.model_dump_json() for one in requests),
        capture_output=True,
        text=True,
        env=environment,
        timeout=250,
        check=False,
    )
    assert done.stdout.strip().splitlines()[-1:] == [expected], done.stderr[-2000:]
    if loading == "auto":
        config = json.loads((tmp_path / "out" / "config.json").read_text())
        assert config["num_hidden_layers"] == LARGE["num_hidden_layers"] - 3


@pytest.mark.parametrize("name", ["llama-tied", "qwen2-moe-mixed", "falcon-7b"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_whole_and_block_by_block_give_the_same_bytes(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    variant = next(one for one in VARIANTS if one.name == name)
    source = save_tiny(tmp_path / "source", variant=variant, dtype=dtype)
    reports = {}
    for loading in ("whole", "blockwise"):
        one = request(source, compute={"threads": 1, "dtype": "float32", "loading": loading})
        finished, *_ = run(one.model_copy(update={"output_directory": str(tmp_path / loading)}))
        reports[loading] = finished.report
    whole, parts = (reports[loading] for loading in ("whole", "blockwise"))
    expected, found = (load_file(tmp_path / loading / "model.safetensors") for loading in ("whole", "blockwise"))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    assert parts["candidates"] == whole["candidates"]
    assert parts["before"]["perplexity"] == whole["before"]["perplexity"]  # type: ignore[index]
    assert parts["captured"]["kept_bytes"] > 0  # type: ignore[index]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["blockwise", "source", "text.txt", "whole"]


@pytest.mark.parametrize("method", [each for each in Method if each is not Method.AUTO])
def test_every_method_takes_blocks_as_they_come(method: Method, tmp_path: Path) -> None:
    """Some try changes on the live model: these must hold when a block is read again, and be gone afterwards."""
    source = save_tiny(tmp_path / "source")
    for loading in ("whole", "blockwise"):
        compute = {"threads": 1, "dtype": "float32", "loading": loading}
        one = request(source, method={"name": method.value}, evaluation={"enabled": False}, compute=compute)
        run(one.model_copy(update={"output_directory": str(tmp_path / loading)}))
    expected, found = (load_file(tmp_path / loading / "model.safetensors") for loading in ("whole", "blockwise"))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)
