"""The accelerator of this machine, asked from a replaced torch and driver's tool."""

import os
import re
import sys
from pathlib import Path

import pytest

from replaceme_core.errors import InvalidInput
from replaceme_core.hardware import (
    Accelerator,
    WorkerKind,
    count_gpus,
    find_accelerator,
    gpu_memory,
    local_worker_kinds,
)

NVIDIA = [Path("/dev/nvidia0")]
UUID = "8c6a1f0e-1111-2222-3333-0123456789ab"
TORCH = """
class accelerator:
    is_available = staticmethod(lambda: {available})
    current_accelerator = staticmethod(lambda: type("Device", (), {{"type": "{kind}"}}))
class cuda:
    get_device_name = staticmethod(lambda: "Some GPU")
    get_device_properties = staticmethod(lambda number: type("Properties", (), {{"uuid": "{uuid}"}}))
class version:
    cuda = "13"
"""


def environment(place: Path, *, available: bool = True, kind: str = "cuda", uuid: str = UUID) -> dict[str, str]:
    (place / "torch.py").write_text(TORCH.format(available=available, kind=kind, uuid=uuid))
    return {**os.environ, "PYTHONPATH": str(place)}


def test_the_accelerator_has_the_uuid_of_the_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "torch.py").write_text("raise SystemExit('imported from the working directory')")
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr("replaceme_core.hardware.accelerators", lambda: NVIDIA)
    assert find_accelerator(environment(tmp_path)) == Accelerator(name="Some GPU", uuid=UUID)
    assert find_accelerator(environment(tmp_path, kind="mps")) == Accelerator(name="mps", uuid=None)
    assert find_accelerator(environment(tmp_path, uuid="; rm -r")) == Accelerator(name="Some GPU", uuid=None)
    assert find_accelerator(environment(tmp_path, available=False)) is None
    (tmp_path / "torch.py").write_text("raise ImportError")
    assert find_accelerator({**os.environ, "PYTHONPATH": str(tmp_path)}) is None


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("raise ImportError('no CUDA here')", "(ImportError: no CUDA here)"),
        ("import sys, time; print('old', file=sys.stderr, flush=True); time.sleep(60)", "timed out after 2.0 s"),
        ("import os, sys; print(file=sys.stderr, flush=True); os._exit(3)", "returned non-zero exit status 3"),
    ],
    ids=["error", "hangs", "blank line"],
)
def test_why_torch_gives_no_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, reason: str) -> None:
    monkeypatch.setattr("replaceme_core.hardware.TIMEOUT_SECONDS", 2.0)
    (tmp_path / "torch.py").write_text(text)
    with pytest.raises(InvalidInput, match=re.escape(reason)):
        count_gpus({**os.environ, "PYTHONPATH": str(tmp_path)})


@pytest.mark.skipif(sys.platform != "linux", reason="devices are files on Linux")
def test_torch_is_not_asked_where_there_is_no_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("replaceme_core.hardware.accelerators", list)
    environ = environment(tmp_path)
    (tmp_path / "torch.py").write_text(f"open({str(tmp_path / 'asked')!r}, 'w'); raise ImportError")
    assert find_accelerator(environ) is None
    assert local_worker_kinds(environ, runner_command=None) == (WorkerKind.CPU,)
    assert not (tmp_path / "asked").exists()


def put_tool(place: Path, script: str) -> None:
    tool = place / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\n{script}\n")
    tool.chmod(0o755)


def test_the_memory_of_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    put_tool(tmp_path, f'case "$*" in *--id=GPU-{UUID}*memory.total,memory.used*) echo "81559, 417";; *) exit 6;; esac')
    assert gpu_memory(UUID) == (81559 * 2**20, 417 * 2**20)
    assert gpu_memory(UUID.replace("8", "9")) is None
    put_tool(tmp_path, "echo '[N/A], [N/A]'")
    assert gpu_memory(UUID) is None


def test_without_the_tool_nothing_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert gpu_memory(UUID) is None
