"""The memory control groups of this process on Linux, versions 1 and 2. Imports the standard library only.

See Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/memory.rst of the kernel.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")
CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True, kw_only=True)
class MemoryGroup:
    """A control group's directory, and the names that its version gives to the files in it."""

    directory: Path
    limit: str
    usage: str
    oom_counts: str


def memory_groups(*, proc: Path = PROC, cgroup: Path = CGROUP) -> Iterator[MemoryGroup]:
    """The groups whose limits apply to this process: its own, then each parent up to the root.

    A container may report its group's path on the host while it sees that group as the root; then only the root is
    yielded. Nothing is yielded where there are no control groups.
    """
    try:
        lines = (proc / "self" / "cgroup").read_text().splitlines()
    except OSError:
        return
    for _, controllers, path in (line.split(":", 2) for line in lines):
        if not controllers:
            root, files = cgroup, ("memory.max", "memory.current", "memory.events")
        elif "memory" in controllers.split(","):
            root, files = cgroup / "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes", "memory.oom_control")
        else:
            continue
        own = root / path.lstrip("/")
        if ".." in own.parts or not own.is_dir():
            own = root
        limit, usage, oom_counts = files
        for directory in (own, *(parent for parent in own.parents if parent.is_relative_to(root))):
            yield MemoryGroup(directory=directory, limit=limit, usage=usage, oom_counts=oom_counts)


def free_group_memory(*, proc: Path = PROC, cgroup: Path = CGROUP) -> int | None:
    """Bytes that the strictest of this process's groups still allows; `None` where no group has a limit."""
    free = [
        limit - usage
        for group in memory_groups(proc=proc, cgroup=cgroup)
        if (limit := read_number(group.directory / group.limit)) is not None
        and (usage := read_number(group.directory / group.usage)) is not None
    ]
    return min(free, default=None)


def group_memory_limit(*, proc: Path = PROC, cgroup: Path = CGROUP) -> int | None:
    """Bytes that the strictest of this process's groups allows in all; `None` where no group has a limit."""
    limits = (read_number(group.directory / group.limit) for group in memory_groups(proc=proc, cgroup=cgroup))
    return min((limit for limit in limits if limit is not None), default=None)


def read_number(file: Path) -> int | None:
    """`None` for a missing file and for "max", which means no limit."""
    try:
        return int(file.read_text())
    except (OSError, ValueError):
        return None
