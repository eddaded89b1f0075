"""Whether the kernel killed a process because memory ran out.

Its SIGKILL looks like any other, but it is counted: `oom_kill` grows before the signal is sent, per control group and
for the whole machine. A group's count includes all its members that were killed, whichever limit was hit (Linux,
Documentation/admin-guide/cgroup-v2.rst, mm/oom_kill.c).
"""

from dataclasses import dataclass
from pathlib import Path

from replaceme_core.hardware import CGROUP, PROC, memory_groups


@dataclass(frozen=True, kw_only=True)
class OomKills:
    """Counts that only grow: of this process's control group and of the machine. `None`: the count is not available."""

    group: int | None
    machine: int | None

    def explain_a_kill_since(self, before: "OomKills") -> bool | None:
        """Whether a process of this group that was killed since `before` was out of memory; `None`: unknown.

        The group's count decides where it grew. Where only the machine's did, the process that was killed for memory
        may have been in another group.
        """
        if _grew(before.group, self.group):
            return True
        if _grew(before.machine, self.machine):
            return None if self.group is not None else True
        return None if self.group is None and self.machine is None else False


def count_oom_kills(*, proc: Path = PROC, cgroup: Path = CGROUP) -> OomKills:
    """The present counts. The group is the nearest one that has a count."""
    counts = (read_count(group.directory / group.oom_counts) for group in memory_groups(proc=proc, cgroup=cgroup))
    return OomKills(
        group=next((count for count in counts if count is not None), None), machine=read_count(proc / "vmstat")
    )


def _grew(before: int | None, after: int | None) -> bool:
    return before is not None and after is not None and after > before


def read_count(file: Path) -> int | None:
    try:
        lines = [line.split() for line in file.read_text().splitlines()]
    except OSError:
        return None
    return next((int(words[1]) for words in lines if len(words) == 2 and words[0] == "oom_kill"), None)
