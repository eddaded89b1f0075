"""Memory: a model larger than what there is gives the same bytes, and freed memory is used again."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from replaceme_core.engine.model.allocator import reuse_freed_memory
from replaceme_core.request.method import Method
from replaceme_core.runner.messages import RunnerRequest
from tests.fixtures.models.pipeline import request, run
from tests.fixtures.models.tiny import BY_NAME, save_tiny

LARGE = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 20, "num_key_value_heads": 4}
ALLOWANCE = 48 * 2**20  # bytes of address space; the weights are 84 MB

CHILD = """
import gc, os, resource, sys
from pathlib import Path
sys.modules["matplotlib"] = None  # pictures take most of the time of a run of a tiny model
from replaceme_core.engine.pipeline import compress
from replaceme_core.runner.messages import RunnerRequest
from tests.fixtures.models.recorder import Recorder

gc.freeze()  # as the runner does: else each of fifty collections visits all that is imported
small, large = (RunnerRequest.model_validate_json(line) for line in sys.stdin)
compress(small, Recorder())  # what is imported on the way counts as imports
size = next(int(row.split()[1]) * 1024 for row in Path("/proc/self/status").read_text().splitlines() if "VmSize" in row)
limit = size + int(sys.argv[1])
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
print(compress(large, Recorder()).report["spec"]["compute"]["loading"])
"""


def of(source: Path, out: Path, drop: list[int], loading: str) -> RunnerRequest:
    one = request(
        source,
        calibration={"dataset": "file:text.txt", "samples": 8, "max_length": 64},
        evaluation={"enabled": False},
        compute={"threads": 1, "batch_size": 2, "dtype": "float32", "loading": loading},
        drop=drop,
    )
    return one.model_copy(update={"output_directory": str(out)})


@pytest.mark.skipif(sys.platform != "linux", reason="address space is limited as Linux does")
def test_an_address_space_too_small_for_the_weights_is_enough_block_by_block(tmp_path: Path) -> None:
    large, small = save_tiny(tmp_path / "large" / "source", **LARGE), save_tiny(tmp_path / "small" / "source")
    assert (large / "model.safetensors").stat().st_size > 1.6 * ALLOWANCE
    requests = [
        of(small, tmp_path / "small-out", [2], "blockwise"),
        of(large, tmp_path / "out", [10, 11, 12], "auto"),
    ]
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(ALLOWANCE)],
        input="\n".join(one.model_dump_json() for one in requests),
        capture_output=True,
        text=True,
        env={**os.environ, "MALLOC_ARENA_MAX": "1", "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.stdout.strip().splitlines()[-1:] == ["blockwise"], done.stderr[-2000:]
    assert json.loads((tmp_path / "out" / "config.json").read_text())["num_hidden_layers"] == 17


@pytest.mark.parametrize(
    ("method", "name", "dtype"),
    [
        *((each, "llama", torch.float32) for each in Method if each is not Method.AUTO),
        (Method.LEAST_SQUARES, "qwen2-moe-mixed", torch.bfloat16),
        (Method.LEAST_SQUARES, "falcon-7b", torch.bfloat16),
    ],
)
def test_whole_and_block_by_block_give_the_same_bytes(
    method: Method, name: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    """Methods that try changes on the live model: these hold when a block is read again, and are gone afterwards."""
    source = save_tiny(tmp_path / "source", variant=BY_NAME[name], dtype=dtype)
    reports, measured = {}, {"samples": 4, "enabled": method is Method.LEAST_SQUARES}
    for loading in ("whole", "blockwise"):
        compute = {"threads": 1, "dtype": "float32", "loading": loading}
        one = request(source, method={"name": method.value}, evaluation=measured, compute=compute)
        reports[loading] = run(one.model_copy(update={"output_directory": str(tmp_path / loading)}))[0].report
    expected, found = (load_file(tmp_path / loading / "model.safetensors") for loading in ("whole", "blockwise"))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    assert reports["blockwise"]["candidates"] == reports["whole"]["candidates"]
    if measured["enabled"]:
        before = [reports[loading]["before"]["perplexity"] for loading in ("whole", "blockwise")]  # type: ignore[index]
        assert before[0] == before[1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["blockwise", "source", "text.txt", "whole"]


FAULTS = """
import resource, sys, torch
from replaceme_core.engine.model.allocator import release_memory, reuse_freed_memory
from replaceme_core.request.defaults import PART_BYTES
from replaceme_core.engine.results.stage_clock import resident_bytes
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        first, second = torch.ones(PART_BYTES * 3 // 4), torch.ones(PART_BYTES * 3 // 4)
        del first, second
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
without = faults()
assert reuse_freed_memory()
faults()
print(faults() / without)
held = [torch.ones(PART_BYTES // 8) for _ in range(8)]
full = resident_bytes()
del held
release_memory()
assert resident_bytes() < full - 6 * PART_BYTES // 2
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc")
def test_pages_are_not_made_anew_and_go_back_when_told() -> None:
    """20 tensors of 96 MiB are 491,520 pages of 4 KiB; above 32 MiB glibc would never reuse one by itself.

    Where small blocks lie between them, a few tensors get new pages.
    """
    done = subprocess.run(
        [sys.executable, "-c", FAULTS], env={"PATH": "/usr/bin:/bin"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 1 / 3


def test_what_the_variables_say_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "131072")
    assert not reuse_freed_memory()
