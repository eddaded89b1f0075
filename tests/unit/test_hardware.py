"""The accelerator of this machine, asked from a replaced torch and driver's tool, and control groups from files."""

import os
from pathlib import Path

import pytest
import torch

from replaceme_core.engine.model.device import free_bytes
from replaceme_core.hardware import Accelerator, find_accelerator, free_group_memory, gpu_memory

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


def test_the_accelerator_has_the_uuid_of_the_driver(tmp_path: Path) -> None:
    assert find_accelerator(environment(tmp_path)) == Accelerator(name="Some GPU", uuid=UUID)
    assert find_accelerator(environment(tmp_path, kind="mps")) == Accelerator(name="mps", uuid=None)
    assert find_accelerator(environment(tmp_path, uuid="; rm -r")) == Accelerator(name="Some GPU", uuid=None)
    assert find_accelerator(environment(tmp_path, available=False)) is None
    (tmp_path / "torch.py").write_text("raise ImportError")
    assert find_accelerator({**os.environ, "PYTHONPATH": str(tmp_path)}) is None


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


UNLIMITED = 9223372036854771712  # what version 1 shows where there is no limit


def write(root: Path, cgroup: str, files: dict[str, str | int]) -> dict[str, Path]:
    """A /proc and a /sys/fs/cgroup under `root`."""
    for name, content in {"proc/self/cgroup": cgroup, **{f"sys/{name}": each for name, each in files.items()}}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{content}\n")
    return {"proc": root / "proc", "cgroup": root / "sys"}


@pytest.mark.parametrize(
    ("cgroup", "files", "free"),
    [
        # version 2: a limit on the own group, on a parent, on the root that a container sees, none
        ("0::/a/b", {"a/b/memory.max": 5_000, "a/b/memory.current": 1_000}, 4_000),
        (
            "0::/a/b",
            {
                "a/memory.max": 3_000,
                "a/memory.current": 2_000,
                "a/b/memory.max": 5_000,
                "a/b/memory.current": 1_000,
            },
            1_000,
        ),
        ("0::/", {"memory.max": 5_000, "memory.current": 1_000}, 4_000),
        ("0::/outside", {"memory.max": 5_000, "memory.current": 1_000}, 4_000),
        ("0::/../../outside", {"memory.max": 5_000, "memory.current": 1_000}, 4_000),
        ("0::/a", {"a/memory.max": "max", "a/memory.current": 1_000}, None),
        # version 1
        (
            "5:cpu,cpuacct:/x\n4:memory:/a\n0::/",
            {
                "memory/memory.limit_in_bytes": UNLIMITED,
                "memory/memory.usage_in_bytes": 9_000,
                "memory/a/memory.limit_in_bytes": 5_000,
                "memory/a/memory.usage_in_bytes": 1_000,
            },
            4_000,
        ),
        ("0::/", {}, None),
    ],
)
def test_the_strictest_limit_counts(tmp_path: Path, cgroup: str, files: dict[str, str | int], free: int | None) -> None:
    assert free_group_memory(**write(tmp_path, cgroup, files)) == free


def test_free_memory_respects_the_limit_of_the_own_group(tmp_path: Path) -> None:
    """Also where the root, which holds all processes of the machine, has no limit."""
    files: dict[str, str | int] = {"memory.max": "max", "job/memory.max": 5_000, "job/memory.current": 1_000}
    assert free_bytes(torch.device("cpu"), **write(tmp_path, "0::/job", files)) == 4_000
    unlimited = free_bytes(torch.device("cpu"), proc=tmp_path / "none", cgroup=tmp_path / "none")
    assert unlimited > 4_000
