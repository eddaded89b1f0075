"""How much memory is free, and which errors mean that it ran out."""

import os
from pathlib import Path

import psutil
import torch

from replaceme_core.hardware import CGROUP, PROC, free_group_memory

_NO_MEMORY = ("allocate memory", "not enough memory", "out of memory", "cublas_status_alloc_failed")


def free_bytes(device: torch.device, *, proc: Path = PROC, cgroup: Path = CGROUP) -> int:
    """Bytes that this process may still allocate: the least of machine, control groups and address space limit.

    `proc` and `cgroup` are where Linux shows the control groups.
    """
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    allowed = free_group_memory(proc=proc, cgroup=cgroup)
    available = int(psutil.virtual_memory().available)
    return min(available if allowed is None else min(available, allowed), _address_bytes())


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, on the host or on an accelerator; torch reports the former in the text alone."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _NO_MEMORY)


def _address_bytes() -> int:
    if os.name != "posix":
        return 2**63
    import resource

    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit == resource.RLIM_INFINITY:
        return 2**63
    return limit - int(psutil.Process().memory_info().vms)
