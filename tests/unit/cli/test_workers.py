"""The workers that `replaceme worker` starts."""

import pytest

from api.launch.serve import WorkerSpec, plan_workers
from replaceme_core.errors import InvalidInput
from replaceme_core.hardware import WorkerKind


def gpu(number: int, visible: str) -> WorkerSpec:
    return WorkerSpec(name=f"gpu{number}", worker_kind=WorkerKind.GPU, visible=visible)


def test_without_gpus_one_worker_for_the_cpu_that_sees_no_gpu() -> None:
    def count() -> int:
        raise AssertionError("GPUs are not counted")

    assert plan_workers(None, {"CUDA_VISIBLE_DEVICES": "3"}, count=count) == [
        WorkerSpec(name="cpu", worker_kind=WorkerKind.CPU, visible="")
    ]


@pytest.mark.parametrize(
    ("gpus", "visible", "expected"),
    [
        ("all", None, [gpu(0, "0"), gpu(1, "1"), gpu(2, "2")]),
        ("2, 0", None, [gpu(2, "2"), gpu(0, "0")]),
        ("all", "5,7,1", [gpu(0, "5"), gpu(1, "7"), gpu(2, "1")]),
        ("1", "GPU-aa,GPU-bb,GPU-cc", [gpu(1, "GPU-bb")]),
        ("1", "", [gpu(1, "1")]),
    ],
)
def test_one_worker_for_each_gpu(gpus: str, visible: str | None, expected: list[WorkerSpec]) -> None:
    environ = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    assert plan_workers(gpus, environ, count=lambda: 3) == expected


@pytest.mark.parametrize(
    ("gpus", "count", "words"),
    [
        ("all", 0, "torch sees no GPU"),
        ("0", 0, "torch sees no GPU"),
        ("2", 2, "there is no GPU 2: this machine has GPUs 0 to 1"),
        ("0,1", 1, "there is no GPU 1: this machine has GPU 0"),
        ("0,0", 2, "appears twice"),
        ("-1", 2, "expected all, or GPU numbers"),
        ("", 2, "expected all, or GPU numbers"),
        ("cuda:0", 2, "expected all, or GPU numbers"),
    ],
)
def test_invalid_gpus_are_refused(gpus: str, count: int, words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        plan_workers(gpus, {}, count=lambda: count)
