"""The kernel's counts of processes killed for memory, from files as it writes them."""

from pathlib import Path

import pytest

from replaceme_core.runner.memory_limit import OomKills, count_oom_kills

EVENTS = "low 0\nhigh 0\nmax 12\noom 3\noom_kill 2\noom_group_kill 0\n"
CONTROL = "oom_kill_disable 0\nunder_oom 0\noom_kill 5\n"
VMSTAT = "nr_free_pages 1234\noom_kill 9\n"


def write(root: Path, **files: str) -> None:
    for name, content in files.items():
        path = root / name.replace("__", "/").replace("_dot_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)


@pytest.mark.parametrize(
    ("files", "group", "machine"),
    [
        ({"proc__self__cgroup": "0::/a/b\n", "sys__a__b__memory_dot_events": EVENTS}, 2, None),
        ({"proc__self__cgroup": "0::/\n", "sys__memory_dot_events": EVENTS, "proc__vmstat": VMSTAT}, 2, 9),
        (
            {
                "proc__self__cgroup": "5:cpu,cpuacct:/x\n4:memory:/a\n0::/\n",
                "sys__memory__a__memory_dot_oom_control": CONTROL,
            },
            5,
            None,
        ),
        # a container that sees its path on the host, and its group mounted as the root
        ({"proc__self__cgroup": "4:memory:/docker/1\n", "sys__memory__memory_dot_oom_control": CONTROL}, 5, None),
        ({"proc__self__cgroup": "0::/\n", "proc__vmstat": VMSTAT}, None, 9),
        ({"proc__self__cgroup": "0::/\n", "proc__vmstat": "nr_free_pages 1\n"}, None, None),
        ({}, None, None),
    ],
)
def test_counts_are_found(tmp_path: Path, files: dict[str, str], group: int | None, machine: int | None) -> None:
    write(tmp_path, **files)
    found = count_oom_kills(proc=tmp_path / "proc", cgroup=tmp_path / "sys")
    assert found == OomKills(group=group, machine=machine)


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
