"""What the machine decides where the specification leaves it open."""

import os
from pathlib import Path

import pytest
import torch

from replaceme_core.engine.model import device
from replaceme_core.errors import InvalidInput


@pytest.mark.parametrize(
    ("capability", "flags", "expected"),
    [
        ("AVX512", "fma avx512f avx512_bf16", "bfloat16"),
        ("AVX512", "fma avx512f", "float32"),
        ("AVX2", "fma avx512_bf16", "float32"),  # torch is set not to use it
    ],
)
def test_bfloat16_where_the_processor_multiplies_it(
    capability: str, flags: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\nflags\t\t: {flags}\n\nprocessor\t: 1\n")
    monkeypatch.setattr(device, "CPU_INFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    if not torch.backends.mkldnn.is_available():
        expected = "float32"
    assert device.this_machine("cpu").cpu_dtype == expected


def test_float32_without_information_about_the_processor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "CPU_INFO", tmp_path / "missing")
    assert device.fast_cpu_dtype() == "float32"


@pytest.mark.parametrize(("value", "expected"), [("1", 1), ("1000", None), ("0", None), ("all", None)])
def test_as_many_threads_as_the_environment_allows(
    value: str, expected: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", value)
    usable = len(os.sched_getaffinity(0))
    assert device.this_machine("cpu").threads == (expected or usable)


def test_a_job_for_a_gpu_is_refused_on_a_cpu() -> None:
    with pytest.raises(InvalidInput, match="this job needs a GPU") as refused:
        device.this_machine("cpu", needs_accelerator=True)
    assert refused.value.field == "compute.device"


def test_the_processor_has_the_name_that_people_know(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "cpuinfo"
    monkeypatch.setattr(device, "CPU_INFO", path)
    assert device.hardware_name(torch.device("cpu")), "where the system does not say"
    path.write_text("processor\t: 0\nmodel name\t: A Processor @ 3 GHz\nflags\t: avx2\n")
    assert device.hardware_name(torch.device("cpu")) == "A Processor @ 3 GHz"
