"""Where and how to compute: whatever the specification leaves open is decided here, by the device that is there."""

import os

import torch

from replaceme_core.errors import InvalidInput
from replaceme_core.modeling.load import DTYPES
from replaceme_core.modeling.memory import choose_loading
from replaceme_core.spec import CompressionSpec, ComputeSpec

CPU_CALIBRATION = (64, 512)
ACCELERATOR_CALIBRATION = (1024, 1024)
"""Samples and their length."""
BATCH_SIZE = 8


def resolve_spec(spec: CompressionSpec, *, weights: int) -> CompressionSpec:
    """`spec` with all of `compute` and the amount of calibration filled in, for a model of so many `weights`."""
    compute = resolve_compute(spec.compute)
    assert compute.device is not None
    assert compute.dtype is not None
    device = torch.device(compute.device)
    loading = choose_loading(
        compute.loading,
        weight_bytes=weights * DTYPES[compute.dtype].itemsize,
        models=2 if spec.evaluation.enabled else 1,  # dense and pruned are measured in turn
        device=device,
    )
    on_cpu = device.type == "cpu"
    samples, length = CPU_CALIBRATION if on_cpu else ACCELERATOR_CALIBRATION
    calibration = spec.calibration.model_copy(
        update={
            "samples": spec.calibration.samples or samples,
            "max_length": spec.calibration.max_length or length,
        }
    )
    return spec.model_copy(
        update={"compute": compute.model_copy(update={"loading": loading}), "calibration": calibration}
    )


def resolve_compute(compute: ComputeSpec) -> ComputeSpec:
    """Raises `InvalidInput` for a device that this machine does not have."""
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
    return ComputeSpec(
        device=name,
        dtype=compute.dtype or ("float32" if device.type == "cpu" else "bfloat16"),
        batch_size=compute.batch_size or BATCH_SIZE,
        threads=compute.threads or _processors(),
        loading=compute.loading,
    )


def default_device() -> str:
    """The accelerator if there is one, else the CPU."""
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return accelerator.type if accelerator is not None else "cpu"


def make_deterministic(compute: ComputeSpec) -> torch.dtype:
    """Fix what decides the rounding on this machine; returns the dtype to compute in."""
    assert compute.threads is not None and compute.dtype is not None, "the specification is not resolved"
    torch.set_num_threads(compute.threads)
    torch.manual_seed(0)
    return DTYPES[compute.dtype]


def _processors() -> int:
    """The processors that this process may use, not those of the machine."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
