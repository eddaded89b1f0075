"""The limit of a runner's memory, and whether the kernel killed a process because memory ran out.

The limit is a control group of its own where one can be made, else a limit of the process. A group counts what is
really used, of all processes in it. The limit of a process counts address space that it may write to: mapped files of
weights among it, for which it gets an allowance. Drivers of accelerators reserve much of it, so on a machine that may
have one it holds only where a limit was asked for.

By default the limit follows from what a job is planned to take: a stranger's file that native code reads into
gigabytes, such as a tokenizer, ends its own job and takes no memory that others need.

The kernel's SIGKILL looks like any other, but it is counted: `oom_kill` grows before the signal is sent, per control
group and for the whole machine. A group's count includes all its members that were killed, whichever limit was hit
(Linux, Documentation/admin-guide/cgroup-v2.rst, mm/oom_kill.c).
"""

import contextlib
import os
import signal
import time
import uuid
from dataclasses import dataclass, replace
from pathlib import Path

from replaceme_core import hardware
from replaceme_core.hardware import MemoryGroup, accelerators, memory_groups, read_number, total_memory


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


def count_oom_kills() -> OomKills:
    """The present counts. The group is the nearest one that has a count."""
    counts = (read_count(group.directory / group.oom_counts) for group in memory_groups())
    of_group = next((count for count in counts if count is not None), None)
    return OomKills(group=of_group, machine=read_count(hardware.PROC / "vmstat"))


def _grew(before: int | None, after: int | None) -> bool:
    return before is not None and after is not None and after > before


def read_count(file: Path) -> int | None:
    try:
        lines = [line.split() for line in file.read_text().splitlines()]
    except OSError:
        return None
    return next((int(words[1]) for words in lines if len(words) == 2 and words[0] == "oom_kill"), None)


DEFAULT_SHARE = 0.9
"""Of the memory that this process may use: the machine's, or that of its control group. No job gets more by default."""
PLAN_FACTOR = 2
"""Of what a job is planned to take (`plan.resources.planned_host_bytes`), which tests hold within a quarter."""
LEAST_BYTES = 4 * 2**30
"""For the smallest job: libraries, a fork that tries the tokenizer, texts, plots."""
SETTING = "REPLACEME_RUNNER_MEMORY_BYTES"
_NAME = "replaceme-runner-"
_NO_LIMIT = 2**60  # version 1 writes a huge number in place of none
_REMOVE_SECONDS = 2.0


@dataclass(frozen=True, kw_only=True)
class MemoryLimit:
    """`size` in bytes, at most. `named`: by a setting, and the same for each job.

    `of_process`: it holds where no control group can be made, too.
    """

    size: int
    named: bool
    of_process: bool

    @classmethod
    def of_setting(cls, value: int | None) -> "MemoryLimit | None":
        """`None` for 0, which means no limit."""
        if value == 0:
            return None
        if value is not None:
            return cls(size=value, named=True, of_process=True)
        return cls(size=int(total_memory() * DEFAULT_SHARE), named=False, of_process=not accelerators())

    def for_plan(self, planned: int) -> "MemoryLimit":
        """The limit of a job that is planned to take `planned` bytes of the host's memory, where none is named."""
        return replace(self, size=min(self.size, max(LEAST_BYTES, PLAN_FACTOR * planned)))

    def describe(self) -> str:
        """In words, for the log: how a runner that starts now would be limited."""
        size = f"{self.size / 2**30:.1f} GiB" if self.named else f"by the plan, at most {self.size / 2**30:.1f} GiB"
        group = make_group(self.size)
        if group is not None:
            group.remove()
            return f"{size}, in a control group of its own"
        why = "as no control group can be made"
        return f"{size} of data, {why}" if self.of_process else f"none, {why}"


@dataclass(frozen=True, kw_only=True)
class RunnerGroup:
    """The control group of one runner."""

    directory: Path
    oom_counts: str

    @property
    def members(self) -> Path:
        return self.directory / "cgroup.procs"

    def ran_out(self) -> bool:
        """Whether the kernel has killed a process of it because its memory ran out."""
        return bool(read_count(self.directory / self.oom_counts))

    def remove(self) -> None:
        """Kill what is left in it, in other sessions too, and remove it."""
        deadline = time.monotonic() + _REMOVE_SECONDS
        while self.directory.exists() and time.monotonic() < deadline:
            with contextlib.suppress(OSError, ValueError):
                for member in self.members.read_text().split():
                    os.kill(int(member), signal.SIGKILL)
            with contextlib.suppress(OSError):
                self.directory.rmdir()
                return
            time.sleep(0.01)


def make_group(size: int) -> RunnerGroup | None:
    """A new group with this limit; `None` where this user can make none.

    It lies in this process's own group, or above it as long as no limit is left behind by that.
    """
    for parent in memory_groups():
        group = _make_in(parent, size)
        if group is not None:
            return group
        limit = read_number(parent.directory / parent.limit)
        if limit is not None and limit < _NO_LIMIT:
            return None
    return None


def _make_in(parent: MemoryGroup, size: int) -> RunnerGroup | None:
    _remove_abandoned(parent.directory)
    directory = parent.directory / f"{_NAME}{os.getpid()}-{uuid.uuid4().hex[:8]}"
    try:
        directory.mkdir()
    except OSError:
        return None
    try:
        limit, members = directory / parent.limit, directory / "cgroup.procs"
        if not (limit.exists() and os.access(members, os.W_OK)):
            raise PermissionError
        limit.write_text(str(size))
    except OSError:  # the controller is not there, or belongs to another user
        with contextlib.suppress(OSError):
            directory.rmdir()
        return None
    for no_swap in (("memory.swap.max", "0"), ("memory.memsw.limit_in_bytes", str(size))):
        with contextlib.suppress(OSError):
            if (directory / no_swap[0]).exists():
                (directory / no_swap[0]).write_text(no_swap[1])
    return RunnerGroup(directory=directory, oom_counts=parent.oom_counts)


def _remove_abandoned(place: Path) -> None:
    """Remove empty groups whose process is gone; the kernel keeps those with members."""
    for directory in place.glob(f"{_NAME}*"):
        owner = directory.name.removeprefix(_NAME).partition("-")[0]
        if owner.isdecimal() and not (hardware.PROC / owner).exists():
            with contextlib.suppress(OSError):
                directory.rmdir()


def mapped_bytes(model: Path) -> int:
    """What a runner may map of the files of weights at once: those of the model, and as many of the result."""
    with contextlib.suppress(OSError):
        return 2 * sum(path.stat().st_size for path in model.glob("*.safetensors"))
    return 0
