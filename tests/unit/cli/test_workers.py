"""Which workers `replaceme worker` starts."""

import pytest

from api.launch.workers import Post, posts
from replaceme_core.admission.worker_kind import WorkerKind
from replaceme_core.errors import InvalidInput


def gpu(number: int, visible: str) -> Post:
    return Post(name=f"gpu{number}", worker_kind=WorkerKind.GPU, visible=visible)


def test_without_gpus_one_for_the_cpu_that_sees_none() -> None:
    def count() -> int:
        raise AssertionError("nobody asks for GPUs")

    assert posts(None, {"CUDA_VISIBLE_DEVICES": "3"}, count=count) == [
        Post(name="cpu", worker_kind=WorkerKind.CPU, visible="")
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
def test_one_for_each_gpu(gpus: str, visible: str | None, expected: list[Post]) -> None:
    environ = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    assert posts(gpus, environ, count=lambda: 3) == expected


@pytest.mark.parametrize(
    ("gpus", "count", "words"),
    [
        ("all", 0, "torch sees no GPU"),
        ("0", 0, "torch sees no GPU"),
        ("2", 2, "there is no GPU 2: this machine has GPUs 0 to 1"),
        ("0,1", 1, "there is no GPU 1: this machine has GPU 0"),
        ("0,0", 2, "named twice"),
        ("-1", 2, "expected all, or numbers"),
        ("", 2, "expected all, or numbers"),
        ("cuda:0", 2, "expected all, or numbers"),
    ],
)
def test_what_is_not_there_is_an_error(gpus: str, count: int, words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        posts(gpus, {}, count=lambda: count)
