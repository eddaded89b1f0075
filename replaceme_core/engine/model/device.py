"""Where and how to compute: fills what the specification leaves open, from the hardware of this machine."""

import os
import platform
from typing import Literal

import torch

from replaceme_core.engine.model.load import DTYPES
from replaceme_core.engine.model.memory import choose_loading
from replaceme_core.errors import InvalidInput
from replaceme_core.hardware import CPU_INFO, has_native_bfloat16
from replaceme_core.request.pattern import with_pattern_kept
from replaceme_core.request.resolved_spec import (
    BATCH_SIZE,
    ResolvedCompute,
    ResolvedSpec,
    resolve_method,
    resolve_text,
)
from replaceme_core.request.spec import CompressionSpec, ComputeSpec

CpuDtype = Literal["float32", "bfloat16"]


def resolve_spec(
    spec: CompressionSpec, *, weights: int, needs_accelerator: bool = False, keeps_pattern: bool = False
) -> ResolvedSpec:
    """`spec` with `compute` and the amount of calibration filled in, for a model of `weights` values.

    With `keeps_pattern` the method must choose a window (`admission.pattern`). Shards are as the request says, one by
    default. Raises `InvalidInput` for a device that is not on this machine, and where there is no accelerator but one
    is needed.
    """
    if keeps_pattern:
        spec = with_pattern_kept(spec)
    compute = resolve_compute(spec.compute, cpu_dtype=fast_cpu_dtype())
    if needs_accelerator and compute.device == "cpu":
        raise InvalidInput(
            "this job needs a GPU, and torch finds none on the machine of the worker that runs it; "
            "set compute.device to cpu to run it without one",
            field="compute.device",
            value=spec.compute.device,
        )
    device = torch.device(compute.device)
    loading = choose_loading(
        compute.loading,
        weight_bytes=weights * DTYPES[compute.dtype].itemsize,
        models=2 if spec.evaluation.enabled else 1,  # the dense and the pruned model are evaluated side by side
        device=device,
    )
    calibration = resolve_text(spec, on_cpu=device.type == "cpu", loading=loading)
    parts = {name: getattr(spec, name) for name in CompressionSpec.model_fields}
    return ResolvedSpec(
        **parts
        | {
            "compute": compute.model_copy(update={"loading": loading}),
            "calibration": calibration,
            "method": resolve_method(spec, loading=loading),
        }
    )


def resolve_compute(compute: ComputeSpec, *, cpu_dtype: CpuDtype = "float32") -> ResolvedCompute:
    """`compute` filled in; `cpu_dtype` is the default on a CPU. Raises `InvalidInput` for a missing device."""
    name = compute.device or default_device()
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InvalidInput(
            f"device {name!r} is not on this machine ({str(error).splitlines()[0]}); there is {default_device()!r}",
            field="compute.device",
            value=name,
        ) from None
    return ResolvedCompute(
        device=name,
        dtype=compute.dtype or (cpu_dtype if device.type == "cpu" else "bfloat16"),
        batch_size=compute.batch_size or BATCH_SIZE,
        threads=compute.threads or _processors(),
        loading=compute.loading,
        quantization=compute.quantization,
        shards=compute.shards or 1,
        pattern_safe=compute.pattern_safe,
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
    """Set the number of threads and the seed, which decide the rounding; returns the dtype to compute in."""
    torch.set_num_threads(compute.threads)
    torch.manual_seed(0)
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
