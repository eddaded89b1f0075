"""Whether the kernel killed a process for want of memory. Its SIGKILL looks like anybody's; its counters tell.

`oom_kill` is counted before the signal is sent, by control group and for the whole machine; the group's count holds its
members that were killed, whichever limit was hit (Linux, Documentation/admin-guide/cgroup-v2.rst, mm/oom_kill.c).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_PROC, _CGROUP = Path("/proc"), Path("/sys/fs/cgroup")


@dataclass(frozen=True, kw_only=True)
class OomKills:
    """Counts that only grow: of this process's control group, of the machine. `None`: it does not tell."""

    group: int | None
    machine: int | None

    def explain_a_kill_since(self, before: "OomKills") -> bool | None:
        """Whether a process of this group that was killed since `before` was killed for memory; `None`: who knows.

        The group's count decides where it grew. Where only the machine's did, the victim may have been in another one.
        """
        if _grew(before.group, self.group):
            return True
        if _grew(before.machine, self.machine):
            return None if self.group is not None else True
        return None if self.group is None and self.machine is None else False


def count_oom_kills(*, proc: Path = _PROC, cgroup: Path = _CGROUP) -> OomKills:
    """The counts at present."""
    groups = (_read(file) for file in _group_files(proc, cgroup))
    return OomKills(group=next((count for count in groups if count is not None), None), machine=_read(proc / "vmstat"))


def _grew(before: int | None, after: int | None) -> bool:
    return before is not None and after is not None and after > before


def _group_files(proc: Path, cgroup: Path) -> Iterator[Path]:
    """Where this process's group may keep its count: version 2, then version 1."""
    try:
        lines = (proc / "self" / "cgroup").read_text().splitlines()
    except OSError:
        return
    paths = {controllers: path.lstrip("/") for _, controllers, path in (line.split(":", 2) for line in lines)}
    for name, path in paths.items():
        folder, file = (cgroup, "memory.events") if not name else (cgroup / "memory", "memory.oom_control")
        if not name or "memory" in name.split(","):
            yield folder / path / file
            yield folder / file  # a container may see its own group as the root, and be told the path outside


def _read(file: Path) -> int | None:
    try:
        lines = [line.split() for line in file.read_text().splitlines()]
    except OSError:
        return None
    return next((int(words[1]) for words in lines if len(words) == 2 and words[0] == "oom_kill"), None)
