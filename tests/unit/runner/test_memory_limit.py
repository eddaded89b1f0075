"""Limits of memory, and the kernel's counts of processes killed for it, from files as it writes them."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from replaceme_core import hardware
from replaceme_core.engine.model.device import free_bytes
from replaceme_core.runner.memory_limit import OomKills, count_oom_kills, make_group

EVENTS = "low 0\nhigh 0\nmax 12\noom 3\noom_kill 2\noom_group_kill 0"
CONTROL = "oom_kill_disable 0\nunder_oom 0\noom_kill 5"
VMSTAT = "nr_free_pages 1234\noom_kill 9"
CACHE = "anon 500\nfile 3500\nfile_mapped 400\ninactive_anon 500\ninactive_file 2000\nactive_file 1000"
CACHE_OF_ALL = (
    "cache 7\ninactive_file 3\nactive_file 4\ntotal_cache 3500\ntotal_inactive_file 2000\ntotal_active_file 1000"
)
UNLIMITED = "9223372036854771712"  # what version 1 shows where there is no limit


Show = Callable[[str, dict[str, str]], None]


@pytest.fixture
def show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Show:
    """Gives this process the control groups `groups`, and these files of /proc and /sys/fs/cgroup.

    Names ending in / have both files of version 2: the limit, and what is used.
    """
    monkeypatch.setattr(hardware, "PROC", tmp_path / "proc")
    monkeypatch.setattr(hardware, "CGROUP", tmp_path / "sys")

    def show(groups: str, files: dict[str, str]) -> None:
        found = {"proc/self/cgroup": groups} if groups else {}
        for name, content in files.items():
            if name.endswith("/"):
                found |= dict(zip((f"sys{name}memory.max", f"sys{name}memory.current"), content.split(), strict=True))
            else:
                found[name] = content
        for name, content in found.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(f"{content}\n")

    return show


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
        ("0::/a", {"sys/memory.max": "max", "/a/": "5000 1000"}, 4_000),
        # files in memory count as free
        ("0::/a", {"/a/": "5000 4000", "sys/a/memory.stat": CACHE}, 4_000),
        (
            "4:memory:/a",
            {
                "sys/memory/a/memory.limit_in_bytes": "5000",
                "sys/memory/a/memory.usage_in_bytes": "4000",
                "sys/memory/a/memory.stat": CACHE_OF_ALL,
            },
            4_000,
        ),
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
def test_the_strictest_limit_counts(show: Show, groups: str, files: dict[str, str], free: int | None) -> None:
    show(groups, files)
    if free is None:
        assert free_bytes(torch.device("cpu")) > 5_000
    else:
        assert free_bytes(torch.device("cpu")) == free


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
    show: Show, groups: str, files: dict[str, str], of_group: int | None, of_machine: int | None
) -> None:
    show(groups, files)
    assert count_oom_kills() == OomKills(group=of_group, machine=of_machine)


def test_a_group_is_not_made_outside_of_a_limit(show: Show, tmp_path: Path) -> None:
    """The limit of this process's own group would no longer count what the runner uses."""
    show("0::/service", {"sys/memory.max": "max", "sys/service/memory.max": "1000000"})
    before = sorted(tmp_path.rglob("*"))
    assert make_group(2**28) is None
    assert sorted(tmp_path.rglob("*")) == before
