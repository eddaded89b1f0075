"""The kinds of workers, and what this machine has: accelerators, memory, control groups.

For processes that must not load torch: they run torch in a child process. The driver's own tools are no substitute:
they number GPUs in another order and list some that torch cannot use. Control groups: Documentation/admin-guide/
cgroup-v2.rst and cgroup-v1/memory.rst of the kernel.
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from replaceme_core.errors import InvalidInput

PROC = Path("/proc")
CGROUP = Path("/sys/fs/cgroup")
CPU_INFO = Path("/proc/cpuinfo")
NATIVE_BFLOAT16 = frozenset({"avx512_bf16", "amx_bf16"})
TIMEOUT_SECONDS = 120.0
_ACCELERATORS = ("nvidia*", "kfd", "dri", "accel", "dxg")
"""Names under /dev."""
_GPUS = "import torch; print(torch.cuda.device_count())"
_ACCELERATOR = "import torch; print(int(torch.accelerator.is_available()))"
_DEVICE = """
import torch
a = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
is_cuda = a is not None and a.type == "cuda"
print("" if a is None else torch.cuda.get_device_name() if is_cuda else a.type)
print(getattr(torch.cuda.get_device_properties(0), "uuid", "") if is_cuda and torch.version.cuda else "")
"""
_TORCH = """
import json, torch
def look(number):
    at = torch.cuda.get_device_properties(number)
    free = torch.cuda.mem_get_info(number)[0]
    fast = torch.cuda.is_bf16_supported(including_emulation=False)
    return {"name": at.name, "memory": at.total_memory, "free": free, "bfloat16": fast}
devices = [look(number) for number in range(torch.cuda.device_count())]
versions = {"version": str(torch.__version__), "cuda": torch.version.cuda, "hip": torch.version.hip}
print(json.dumps({**versions, "devices": devices}))
"""
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_MEBIBYTE = 2**20
_QUERY_SECONDS = 5.0


class WorkerKind(StrEnum):
    """A job for one kind waits for a worker of that kind; one for no particular kind runs on the first free worker.

    Each kind has a queue of the same name, and there is one more for the other jobs (`broker.py`). The
    database and the settings call it `route`.
    """

    CPU = "cpu"
    GPU = "gpu"


def worker_kind_of(device: str | None) -> WorkerKind | None:
    """The kind of worker that has `device`; `None` if no device is named.

    >>> worker_kind_of("cpu"), worker_kind_of("cuda:0"), worker_kind_of(None)
    (<WorkerKind.CPU: 'cpu'>, <WorkerKind.GPU: 'gpu'>, None)
    """
    if device is None:
        return None
    return WorkerKind.CPU if device.partition(":")[0] == "cpu" else WorkerKind.GPU


@dataclass(frozen=True, kw_only=True)
class Accelerator:
    """The device that torch uses by default. `uuid`: by which the driver of an NVIDIA GPU knows it, else `None`."""

    name: str
    uuid: str | None


@dataclass(frozen=True, kw_only=True)
class TorchDevice:
    """A GPU, its memory in bytes. `bfloat16`: whether it multiplies these itself."""

    name: str
    memory: int
    free: int
    bfloat16: bool


@dataclass(frozen=True, kw_only=True)
class Torch:
    """The library, what it was built for, and the GPUs that it sees."""

    version: str
    cuda: str | None
    hip: str | None
    devices: tuple[TorchDevice, ...]


def look_at_torch(environ: Mapping[str, str]) -> Torch:
    """What torch is here. Raises `InvalidInput` if it cannot be imported."""
    found = json.loads(_output(_TORCH, environ).splitlines()[-1])
    return Torch(**{**found, "devices": tuple(TorchDevice(**one) for one in found["devices"])})


def accelerators(dev: Path = Path("/dev")) -> list[Path]:
    """The devices of GPUs and the like."""
    return sorted(place for pattern in _ACCELERATORS for place in dev.glob(pattern))


def _may_have_one() -> bool:
    """False on Linux without a device: then torch, which takes seconds to import, need not be asked."""
    return sys.platform != "linux" or bool(accelerators())


def count_gpus(environ: Mapping[str, str]) -> int:
    """The number of GPUs that torch sees in this environment. Raises `InvalidInput` if torch cannot be imported."""
    return int(_output(_GPUS, environ).split()[-1])


def find_accelerator(environ: Mapping[str, str]) -> Accelerator | None:
    """The accelerator that torch uses by default; `None` if there is none or torch cannot be asked."""
    if not _may_have_one():
        return None
    try:
        name, uuid = _output(_DEVICE, environ).splitlines()[-2:]
    except (InvalidInput, ValueError):
        return None
    return Accelerator(name=name, uuid=uuid if _UUID.fullmatch(uuid) else None) if name else None


def gpu_memory(uuid: str) -> tuple[int, int] | None:
    """Bytes of an NVIDIA GPU: all, and those in use; `None` where its driver cannot be asked."""
    query = ("--query-gpu=memory.total,memory.used", "--format=csv,noheader,nounits")
    command = ("nvidia-smi", f"--id=GPU-{uuid}", *query)
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_QUERY_SECONDS, check=True)
        total, used = (int(value) * _MEBIBYTE for value in done.stdout.split(","))
    except (subprocess.SubprocessError, OSError, ValueError):
        return None
    return total, used


def local_worker_kinds(environ: Mapping[str, str], *, runner_command: Sequence[str] | None) -> tuple[WorkerKind, ...]:
    """The kinds of worker that this machine can run. Raises as `count_gpus` does.

    All kinds if the operator set a runner command of their own: that runner may see other hardware than this process.
    """
    if runner_command is not None or (_may_have_one() and int(_output(_ACCELERATOR, environ).split()[-1])):
        return tuple(WorkerKind)
    return (WorkerKind.CPU,)


def total_memory() -> int:
    """Bytes of memory that processes may use at most: of the machine, or of the strictest of its control groups."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limits = (read_number(group.directory / group.limit) for group in memory_groups())
    return min([machine, *(limit for limit in limits if limit is not None)])


def has_native_bfloat16(cpu_info: Path = CPU_INFO) -> bool:
    """Whether the processor multiplies bfloat16 natively, by its flags."""
    with suppress(OSError):
        rows = cpu_info.read_text(encoding="utf-8", errors="replace").splitlines()
        flags = next((row.partition(":")[2].split() for row in rows if row.startswith("flags")), [])
        return bool(NATIVE_BFLOAT16.intersection(flags))
    return False


def _output(program: str, environ: Mapping[str, str]) -> str:
    """What a Python program prints. Raises `InvalidInput`."""
    command = (sys.executable, "-P", "-c", program)  # -P: nothing is imported from the working directory
    try:
        done = subprocess.run(
            command, env=dict(environ), capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=True
        )
    except (subprocess.SubprocessError, OSError) as error:
        said = error.stderr if isinstance(error, subprocess.CalledProcessError) else ""  # it has ended, and says why
        *_, reason = f"{error}\n{said}".strip().splitlines()
        raise InvalidInput(
            f"torch cannot list the GPUs of this machine ({reason}); install it with: pip install 'replaceme[worker]'",
            field="gpus",
        ) from error
    return done.stdout


@dataclass(frozen=True, kw_only=True)
class MemoryGroup:
    """A memory control group of this process on Linux: its directory, and the names of its files in version 1 or 2."""

    directory: Path
    limit: str
    usage: str
    oom_counts: str


def memory_groups() -> Iterator[MemoryGroup]:
    """The groups whose limits apply to this process: its own, then each parent up to the root.

    A container may report its group's path on the host while it sees that group as the root; then only the root is
    yielded. Nothing is yielded where there are no control groups.
    """
    try:
        lines = (PROC / "self" / "cgroup").read_text().splitlines()
    except OSError:
        return
    for _, controllers, path in (line.split(":", 2) for line in lines):
        if not controllers:
            root, files = CGROUP, ("memory.max", "memory.current", "memory.events")
        elif "memory" in controllers.split(","):
            root, files = CGROUP / "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes", "memory.oom_control")
        else:
            continue
        own = root / path.lstrip("/")
        if ".." in own.parts or not own.is_dir():
            own = root
        limit, usage, oom_counts = files
        for directory in (own, *(parent for parent in own.parents if parent.is_relative_to(root))):
            yield MemoryGroup(directory=directory, limit=limit, usage=usage, oom_counts=oom_counts)


def free_group_memory() -> int | None:
    """Bytes that the strictest of this process's groups still allows; `None` where no group has a limit.

    The page cache counts as free, as it does for the machine: it grows up to the limit, and gives way.
    """
    free = [
        limit - usage + _page_cache(group.directory)
        for group in memory_groups()
        if (limit := read_number(group.directory / group.limit)) is not None
        and (usage := read_number(group.directory / group.usage)) is not None
    ]
    return min(free, default=None)


def _page_cache(group: Path) -> int:
    """Bytes of files that a group has in memory, its children's included. Version 1 has totals beside its own."""
    try:
        words = (group / "memory.stat").read_text().split()
    except OSError:
        return 0
    facts = dict(zip(words[::2], map(int, words[1::2]), strict=True))
    return sum(facts.get(f"total_{name}", facts.get(name, 0)) for name in ("active_file", "inactive_file"))


def read_number(file: Path) -> int | None:
    """`None` for a missing file and for "max", which means no limit."""
    try:
        return int(file.read_text())
    except (OSError, ValueError):
        return None
