"""Limits of memory, and the kernel's counts of processes killed for it, from files as it writes them."""

from pathlib import Path

import pytest
import torch

from replaceme_core.engine.model.device import free_bytes
from replaceme_core.hardware import free_group_memory
from replaceme_core.runner.memory_limit import OomKills, count_oom_kills

EVENTS = "low 0\nhigh 0\nmax 12\noom 3\noom_kill 2\noom_group_kill 0"
CONTROL = "oom_kill_disable 0\nunder_oom 0\noom_kill 5"
VMSTAT = "nr_free_pages 1234\noom_kill 9"
UNLIMITED = "9223372036854771712"  # what version 1 shows where there is no limit


def write(root: Path, groups: str, files: dict[str, str]) -> dict[str, Path]:
    """A /proc and a /sys/fs/cgroup under `root`. `groups` are those of this process; names ending in / have both files
    of version 2: the limit, and what is used.
    """
    found = {"proc/self/cgroup": groups} if groups else {}
    for name, content in files.items():
        if name.endswith("/"):
            found |= dict(zip((f"sys{name}memory.max", f"sys{name}memory.current"), content.split(), strict=True))
        else:
            found[name] = content
    for name, content in found.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{content}\n")
    return {"proc": root / "proc", "cgroup": root / "sys"}


@pytest.mark.parametrize(
    ("groups", "files", "free"),
    [
        # version 2: a limit on the own group, on a parent, on the root that a container sees, none
        ("0::/a/b", {"/a/b/": "5000 1000"}, 4_000),
        ("0::/a/b", {"/a/": "3000 2000", "/a/b/": "5000 1000"}, 1_000),
        ("0::/", {"/": "5000 1000"}, 4_000),
        ("0::/outside", {"/": "5000 1000"}, 4_000),
        ("0::/../../outside", {"/": "5000 1000"}, 4_000),
        ("0::/a", {"/a/": "max 1000"}, None),
        # version 1
        (
            "5:cpu,cpuacct:/x\n4:memory:/a\n0::/",
            {
                "sys/memory/memory.limit_in_bytes": UNLIMITED,
                "sys/memory/memory.usage_in_bytes": "9000",
                "sys/memory/a/memory.limit_in_bytes": "5000",
                "sys/memory/a/memory.usage_in_bytes": "1000",
            },
            4_000,
        ),
        ("0::/", {}, None),
        ("", {}, None),
    ],
)
def test_the_strictest_limit_counts(tmp_path: Path, groups: str, files: dict[str, str], free: int | None) -> None:
    assert free_group_memory(**write(tmp_path, groups, files)) == free


def test_free_memory_respects_the_limit_of_the_own_group(tmp_path: Path) -> None:
    """Also where the root, which holds all processes of the machine, has no limit."""
    limited = write(tmp_path, "0::/job", {"sys/memory.max": "max", "/job/": "5000 1000"})
    assert free_bytes(torch.device("cpu"), **limited) == 4_000
    assert free_bytes(torch.device("cpu"), proc=tmp_path / "none", cgroup=tmp_path / "none") > 4_000


@pytest.mark.parametrize(
    ("groups", "files", "of_group", "of_machine"),
    [
        ("0::/a/b", {"sys/a/b/memory.events": EVENTS}, 2, None),
        ("0::/", {"sys/memory.events": EVENTS, "proc/vmstat": VMSTAT}, 2, 9),
        ("5:cpu,cpuacct:/x\n4:memory:/a\n0::/", {"sys/memory/a/memory.oom_control": CONTROL}, 5, None),
        # a container that sees its path on the host, and its group mounted as the root
        ("4:memory:/docker/1", {"sys/memory/memory.oom_control": CONTROL}, 5, None),
        ("0::/", {"proc/vmstat": VMSTAT}, None, 9),
        ("0::/", {"proc/vmstat": "nr_free_pages 1"}, None, None),
        ("", {}, None, None),
    ],
)
def test_counts_are_found(
    tmp_path: Path, groups: str, files: dict[str, str], of_group: int | None, of_machine: int | None
) -> None:
    found = count_oom_kills(**write(tmp_path, groups, files))
    assert found == OomKills(group=of_group, machine=of_machine)


@pytest.mark.parametrize(
    ("before", "after", "verdict"),
    [
        ((1, 1), (2, 2), True),
        ((1, 1), (1, 1), False),
        ((1, 1), (1, 2), None),
        ((None, 1), (None, 2), True),
        ((None, 1), (None, 1), False),
        ((1, None), (1, None), False),
        ((1, None), (2, None), True),
        ((None, None), (None, None), None),
    ],
)
def test_whether_they_explain_a_kill(
    before: tuple[int | None, int | None], after: tuple[int | None, int | None], verdict: bool | None
) -> None:
    first, second = (OomKills(group=group, machine=machine) for group, machine in (before, after))
    assert second.explain_a_kill_since(first) is verdict
