"""The hardware and the free memory of this machine, from which a specification is resolved."""

import os
import platform
import resource
from typing import Literal

import psutil
import torch

from replaceme_core.engine.model.attention import use_fast_attention
from replaceme_core.engine.model.load import DTYPES
from replaceme_core.errors import InvalidInput
from replaceme_core.hardware import CPU_INFO, WorkerKind, free_group_memory, has_native_bfloat16
from replaceme_core.request.resolve import Machine, ResolvedCompute


def free_bytes(device: torch.device) -> int:
    """Bytes that this process may still allocate: the least of machine, control groups and address space limit."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    free = [int(psutil.virtual_memory().available)]
    if (allowed := free_group_memory()) is not None:
        free.append(allowed)
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit != resource.RLIM_INFINITY:
        free.append(limit - int(psutil.Process().memory_info().vms))
    return min(free)


CpuDtype = Literal["float32", "bfloat16"]


def this_machine(device: str | None, *, cache_bytes: int = 0, needs_accelerator: bool = False) -> Machine:
    """This machine, for work on `device`, its accelerator by default. `cache_bytes`: of the activation cache.

    Raises `InvalidInput` for a device that is not on this machine, and where there is no accelerator but one is needed.
    """
    name = device or default_device()
    try:
        place = torch.device(name)
        torch.empty(1, device=place)
    except (RuntimeError, AssertionError) as error:
        raise InvalidInput(
            f"device {name!r} is not on this machine ({str(error).splitlines()[0]}); there is {default_device()!r}",
            field="compute.device",
            value=name,
        ) from None
    on_cpu = place.type == "cpu"
    if needs_accelerator and on_cpu:
        raise InvalidInput(
            "this job needs a GPU, and torch finds none on the machine of the worker that runs it; "
            "set compute.device to cpu to run it without one",
            field="compute.device",
            value=device,
        )
    return Machine(
        kind=WorkerKind.CPU if on_cpu else WorkerKind.GPU,
        device=name,
        memory_bytes=free_bytes(torch.device("cpu")),
        device_bytes=None if on_cpu else free_bytes(place),
        cpu_dtype=fast_cpu_dtype(),
        threads=_processors(),
        cache_bytes=cache_bytes,
    )


def default_device() -> str:
    """The accelerator if there is one, else the CPU."""
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return accelerator.type if accelerator is not None else "cpu"


def fast_cpu_dtype() -> CpuDtype:
    """`bfloat16` where the processor multiplies it natively, at about twice the rate of float32, else `float32`.

    Decided by the processor's flags, not by a trial run: the default must not depend on the load of the machine.
    """
    if not torch.backends.cpu.get_cpu_capability().startswith("AVX512") or not torch.backends.mkldnn.is_available():
        return "float32"
    return "bfloat16" if has_native_bfloat16(CPU_INFO) else "float32"


def make_deterministic(compute: ResolvedCompute) -> torch.dtype:
    """Set what decides the rounding: threads, seed and attention; returns the dtype to compute in."""
    torch.set_num_threads(compute.threads)
    torch.manual_seed(0)
    use_fast_attention()
    return DTYPES[compute.dtype]


def _processors() -> int:
    """How many processors this process may use: fewer than the machine has, where it is bound to some of them.

    `OMP_NUM_THREADS` says the same to every numerical library, and where several workers share a machine it must hold:
    threads that wait for each other on too few processors are many times slower than one.
    """
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    return min(usable, int(wanted)) if wanted.isdecimal() and int(wanted) > 0 else usable


def hardware_name(device: torch.device) -> str:
    """The name of the GPU or of the processor, as people know it."""
    if device.type != "cpu":
        return str(torch.get_device_module(device).get_device_name(device))
    try:
        rows = CPU_INFO.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        rows = []
    named = (row.partition(":")[2].strip() for row in rows if row.startswith("model name"))
    return next(named, platform.processor() or platform.machine())


def synchronise(device: torch.device) -> None:
    """Wait until an accelerator has done what it was given."""
    if device.type != "cpu":
        torch.get_device_module(device).synchronize(device)
