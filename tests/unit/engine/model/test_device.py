"""What the machine decides where the specification leaves it open."""

import os
from pathlib import Path

import pytest
import torch

from replaceme_core.engine.model import device
from replaceme_core.engine.text.drawing import sequence_counts
from replaceme_core.errors import InvalidInput
from replaceme_core.request.calibration import CalibrationSpec
from replaceme_core.request.method import Method
from replaceme_core.request.spec import CompressionSpec, ComputeSpec, ModelRef

SPEC = CompressionSpec(
    model=ModelRef(repo_id="org/model"),
    ratio=0.25,
    calibration=CalibrationSpec(dataset="builtin:pydoc-topics"),
    compute=ComputeSpec(device="cpu"),
)


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
    assert device.resolve_on_this_machine(SPEC, values=1000).compute.dtype == expected


def test_float32_without_information_about_the_processor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "CPU_INFO", tmp_path / "missing")
    assert device.fast_cpu_dtype() == "float32"


@pytest.mark.parametrize(("value", "expected"), [("1", 1), ("1000", None), ("0", None), ("all", None)])
def test_as_many_threads_as_the_environment_allows(
    value: str, expected: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", value)
    usable = len(os.sched_getaffinity(0))
    assert device.resolve_on_this_machine(SPEC, values=1000).compute.threads == (expected or usable)


@pytest.mark.parametrize(
    "calibration",
    [
        {"dataset": "builtin:general"},
        {"dataset": "org/text"},
        {"sources": ["org/text", {"dataset": "org/other", "share": 0}], "judged_on": "none"},
        {"sources": ["org/text", {"dataset": "org/other", "share": 0}]},
    ],
)
def test_sequences_beside_the_samples_are_those_that_are_drawn(calibration: dict[str, object]) -> None:
    asked = SPEC.model_copy(update={"calibration": CalibrationSpec.model_validate(calibration)})
    found = device.resolve_on_this_machine(asked, values=1000).calibration
    drawn = sum(one.fit + one.held_out for one in sequence_counts(found, measure=0))
    repeating = found.repeating + found.repeating_held_out(Method.AUTO)
    assert found.samples + found.beside_samples(Method.AUTO) == drawn + repeating


@pytest.mark.parametrize(
    ("calibration", "judges"),
    [
        ({"dataset": "org/text"}, ["builtin:general"]),
        ({"dataset": "org/text", "self_generated": 0.0}, []),
        ({"dataset": "org/text", "self_generated": 0.0, "judged_on": "builtin:prose"}, ["builtin:prose"]),
        ({"dataset": "org/text", "judged_on": "none"}, []),
        ({"dataset": "builtin:general"}, []),
        ({"dataset": "org/text", "max_length": 16_384}, []),
    ],
)
def test_candidates_are_judged_on_a_text_that_no_fit_has_seen(
    calibration: dict[str, object], judges: list[str]
) -> None:
    asked = SPEC.model_copy(update={"calibration": CalibrationSpec.model_validate(calibration)})
    found = device.resolve_on_this_machine(asked, values=1000).calibration
    counts = zip(found.mix, sequence_counts(found, measure=0), strict=True)
    assert found.judging in {0, 4, 6}, "half as many as are held out of the samples"
    alone = [
        source.name for source, count in counts if source.name == found.judged_on and count.held_out == found.judging
    ]
    assert alone == judges
    assert found.judged_on is not None


def test_a_job_for_a_gpu_is_refused_on_a_cpu() -> None:
    with pytest.raises(InvalidInput, match="this job needs a GPU") as refused:
        device.resolve_on_this_machine(SPEC, values=1000, needs_accelerator=True)
    assert refused.value.field == "compute.device"


def test_the_processor_has_the_name_that_people_know(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "cpuinfo"
    monkeypatch.setattr(device, "CPU_INFO", path)
    assert device.hardware_name(torch.device("cpu")), "where the system does not say"
    path.write_text("processor\t: 0\nmodel name\t: A Processor @ 3 GHz\nflags\t: avx2\n")
    assert device.hardware_name(torch.device("cpu")) == "A Processor @ 3 GHz"
