"""Control groups from files as Linux writes them."""

from pathlib import Path

import pytest
import torch

from replaceme_core.engine.model.device import free_bytes
from replaceme_core.hardware import free_group_memory, memory_groups

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


def test_without_control_groups_there_is_no_limit(tmp_path: Path) -> None:
    assert list(memory_groups(proc=tmp_path, cgroup=tmp_path)) == []
    assert free_group_memory(proc=tmp_path, cgroup=tmp_path) is None


def test_free_memory_respects_the_limit_of_the_own_group(tmp_path: Path) -> None:
    """Also where the root, which holds all processes of the machine, has no limit."""
    files: dict[str, str | int] = {"memory.max": "max", "job/memory.max": 5_000, "job/memory.current": 1_000}
    assert free_bytes(torch.device("cpu"), **write(tmp_path, "0::/job", files)) == 4_000
    unlimited = free_bytes(torch.device("cpu"), proc=tmp_path / "none", cgroup=tmp_path / "none")
    assert unlimited > 4_000
