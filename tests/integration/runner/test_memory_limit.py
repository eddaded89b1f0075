"""A runner that takes more memory than it may ends with `out_of_memory`: by a control group, or a limit of its own."""

import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from replaceme_core.errors import OutOfMemory
from replaceme_core.hardware import accelerators, total_memory
from replaceme_core.local.compress import compress
from replaceme_core.runner import memory_limit, process
from replaceme_core.runner.memory_limit import (
    LEAST_BYTES,
    PLAN_FACTOR,
    MemoryLimit,
    make_group,
    mapped_bytes,
)
from replaceme_core.runner.messages import EvaluateRequest
from replaceme_core.runner.process import Confinement, Runner
from tests.fixtures.hostile.files import FUSE, tokenizer_bomb
from tests.fixtures.models.tiny import save_tiny

SIZE = 256 * 2**20
GROWS = """
import sys
sys.stdin.readline()
kept = [bytearray(8 * 2**20) for _ in range(int(sys.argv[1]))]
print('{"type": "finished", "report": {}}', flush=True)
"""
DESCRIBES = """
import sys
from replaceme_core.runner.messages import describe
sys.stdin.readline()
try:
    kept = [bytearray(8 * 2**20) for _ in range(64)]
except MemoryError as error:
    kept = None
    print(describe(error).model_dump_json(), flush=True)
"""
OFF = {"enabled": False}
ABORTS = "import os; os.write(2, b'memory allocation of 1099511627776 bytes failed\\n'); os.abort()"


def runner(place: Path, code: str, *arguments: str, limit: MemoryLimit | None) -> Runner:
    request = EvaluateRequest(model_directory=str(place / "model"), text_path=str(place))
    command = [sys.executable, "-c", code, *arguments]
    return Runner(command, request, scratch=place / "scratch", confinement=Confinement(memory=limit))


@pytest.fixture
def without_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (process, memory_limit):
        monkeypatch.setattr(module, "make_group", lambda size: None)
    monkeypatch.setattr(memory_limit, "accelerators", list)


def test_in_a_control_group(tmp_path: Path) -> None:
    """Where none can be made here, that is what the log says."""
    limit = MemoryLimit(size=SIZE, named=False, of_process=False)
    group = make_group(SIZE)
    if group is None:
        assert limit.describe() == "none, as no control group can be made"  # on a machine that may have a GPU
        return
    group.remove()
    assert not group.directory.exists()
    assert limit.describe() == "by the plan, at most 0.2 GiB, in a control group of its own"
    assert replace(limit, named=True).describe() == "0.2 GiB, in a control group of its own"
    with runner(tmp_path, GROWS, "64", limit=limit) as started, pytest.raises(OutOfMemory) as caught:
        list(started.messages())
    assert type(caught.value) is OutOfMemory, "it is known, not guessed"
    said = "more than its limit of 0.2 GiB (from its plan; REPLACEME_RUNNER_MEMORY_BYTES sets another)"
    assert said in caught.value.message
    with runner(tmp_path, GROWS, "2", limit=limit) as started:
        assert [message.type for message in started.messages()] == ["finished"]
    assert not list(group.directory.parent.glob(f"replaceme-runner-{os.getpid()}-*"))


@pytest.mark.usefixtures("without_groups")
def test_by_a_limit_of_the_process(tmp_path: Path) -> None:
    limit = MemoryLimit(size=SIZE, named=False, of_process=True)
    assert limit.describe() == "by the plan, at most 0.2 GiB of data, as no control group can be made"
    with runner(tmp_path, DESCRIBES, limit=limit) as started:
        *_, last = started.messages()
    assert (last.type, getattr(last, "code", None)) == ("failed", "out_of_memory")
    with runner(tmp_path, GROWS, "64", limit=replace(limit, of_process=False)) as started:
        assert [message.type for message in started.messages()] == ["finished"], "there it does not hold"


@pytest.mark.usefixtures("without_groups")
def test_native_code_that_aborts(tmp_path: Path) -> None:
    with (
        runner(tmp_path, ABORTS, limit=MemoryLimit(size=SIZE, named=True, of_process=True)) as started,
        pytest.raises(OutOfMemory, match=r"more than its limit of 0\.2 GiB"),
    ):
        list(started.messages())
    with runner(tmp_path, ABORTS, limit=None) as started, pytest.raises(OutOfMemory, match="out of memory; try"):
        list(started.messages())


@pytest.mark.usefixtures("without_groups")
def test_torch_works_under_the_limit(tmp_path: Path) -> None:
    """With mapped weights as large as the limit: they take no memory of their own."""
    (tmp_path / "model").mkdir()
    with (tmp_path / "model" / "model.safetensors").open("wb") as weights:
        weights.truncate(2 * 2**30)
    code = """
import sys, torch
sys.stdin.readline()
mapped = torch.UntypedStorage.from_file(sys.argv[1], False, 2 * 2**30)
product = torch.randn(512, 512) @ torch.randn(512, 512)
print('{"type": "finished", "report": {"size": %d}}' % mapped.nbytes(), flush=True)
"""
    weights_path = str(tmp_path / "model" / "model.safetensors")
    assert mapped_bytes(tmp_path / "model") == 4 * 2**30
    with runner(
        tmp_path, code, weights_path, limit=MemoryLimit(size=2 * 2**30, named=True, of_process=True)
    ) as started:
        assert [message.type for message in started.messages()] == ["finished"]


def test_the_default_follows_from_the_plan() -> None:
    found = MemoryLimit.of_setting(None)
    most = int(total_memory() * memory_limit.DEFAULT_SHARE)
    assert found == MemoryLimit(size=most, named=False, of_process=not accelerators())
    assert found.for_plan(0).size == min(LEAST_BYTES, most)
    assert found.for_plan(LEAST_BYTES).size == min(PLAN_FACTOR * LEAST_BYTES, most)
    assert found.for_plan(2**50).size == most
    assert MemoryLimit.of_setting(0) is None
    assert MemoryLimit.of_setting(SIZE) == MemoryLimit(size=SIZE, named=True, of_process=True)


@pytest.mark.usefixtures("without_groups")
def test_a_tokenizer_bomb_gets_what_its_plan_allows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that a short text does not set off, with all default settings and the real runner."""
    monkeypatch.setattr(memory_limit, "LEAST_BYTES", 2**30)
    model = save_tiny(tmp_path / "model")
    tokenizer_bomb(model)
    text = tmp_path / "text.txt"

    def run(out: Path) -> None:
        calibration = {"dataset": f"file:{text}", "samples": 16, "max_length": 32}
        compute = {"threads": 1, "device": "cpu"}
        compress(model, out=out, calibration=calibration, drop=[2], method="drop", evaluation=OFF, compute=compute)

    text.write_text("A sound line of text. " * 1000)
    run(tmp_path / "sound")
    text.write_text(FUSE + "A line of text. " * 1000)
    with pytest.raises(OutOfMemory, match=r"its limit of 1\.[05] GiB \(from its plan; REPLACEME_RUNNER"):
        run(tmp_path / "out")
    assert not (tmp_path / "out").exists()
