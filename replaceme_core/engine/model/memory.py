"""How much memory is free, and whether a model fits into it."""

import os
from pathlib import Path

import psutil
import torch

from replaceme_core.cgroup import CGROUP, PROC, free_group_memory
from replaceme_core.plan.workload import fits_whole
from replaceme_core.request.spec import Loading

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


def choose_loading(wanted: Loading, *, weight_bytes: int, models: int, device: torch.device) -> Loading:
    """`wanted`, or for `AUTO`: whole if `models` times `weight_bytes` fit into free memory with a margin."""
    if wanted is not Loading.AUTO:
        return wanted
    whole = fits_whole(weight_bytes=weight_bytes, models=models, free_bytes=free_bytes(device))
    return Loading.WHOLE if whole else Loading.BLOCKWISE


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
