"""Which tensors differ between two models, and by how much."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from replaceme_core.engine.results.tensor_comparison import compare_weights

TENSORS = {
    "a": torch.tensor([1.0, -2.0, 4.0]),
    "b": torch.zeros(2, 2, dtype=torch.bfloat16),
    "c": torch.ones(3, dtype=torch.float16),
}


def write(directory: Path, tensors: dict[str, torch.Tensor]) -> Path:
    directory.mkdir(exist_ok=True)
    save_file(tensors, directory / "model.safetensors")
    return directory


def test_the_same_bytes(tmp_path: Path) -> None:
    one, other = write(tmp_path / "one", TENSORS), write(tmp_path / "other", TENSORS)
    assert compare_weights(one, other) == {"same": True, "tensors": 3, "differing_tensors": 0, "differing": []}


def test_every_kind_of_difference(tmp_path: Path) -> None:
    one = write(tmp_path / "one", {**TENSORS, "gone": torch.ones(4)})
    changed = {
        "a": torch.tensor([1.0, -2.5, 4.0]),
        "b": torch.zeros(2, 2),
        "c": torch.ones(4, dtype=torch.float16),
        "new": torch.ones(5),
    }
    found = compare_weights(one, write(tmp_path / "other", changed))
    assert (found["same"], found["tensors"], found["differing_tensors"]) == (False, 4, 5)
    rows = {row["name"]: row for row in found["differing"]}  # type: ignore[attr-defined]
    assert {name: row["what"] for name, row in rows.items()} == {
        "a": "values",
        "b": "dtype",
        "c": "shape",
        "gone": "missing",
        "new": "added",
    }
    assert (rows["a"]["differing"], rows["a"]["values"], rows["a"]["largest"]) == (1, 3, 0.5)
    assert rows["a"]["relative"] == pytest.approx(0.5 / 21**0.5)


def test_signs_of_zero_are_bytes(tmp_path: Path) -> None:
    one = write(tmp_path / "one", {"a": torch.tensor([0.0])})
    other = write(tmp_path / "other", {"a": torch.tensor([-0.0])})
    assert compare_weights(one, other)["same"] is False


def test_the_greatest_difference_comes_first(tmp_path: Path) -> None:
    names = [f"tensor{number}" for number in range(5)]
    one = write(tmp_path / "one", {name: torch.ones(2) for name in names})
    other = write(tmp_path / "other", {name: torch.full((2,), 1.0 + place) for place, name in enumerate(names)})
    found = compare_weights(one, other)["differing"]
    assert [row["name"] for row in found] == ["tensor4", "tensor3", "tensor2", "tensor1"]  # type: ignore[attr-defined]
    assert load_file(one / "model.safetensors").keys() == set(names)
