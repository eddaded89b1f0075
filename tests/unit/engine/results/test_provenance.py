"""The record of the code, the machine and its libraries, and which tensors differ between two models."""

from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from replaceme_core.engine.results import provenance
from replaceme_core.engine.results.provenance import compare_weights

COMMIT, OTHER = "a" * 40, "b" * 40


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "replaceme"\n')
    git = tmp_path / ".git"
    (git / "refs" / "heads").mkdir(parents=True)
    (git / "HEAD").write_text("ref: refs/heads/main\n")
    (git / "refs" / "heads" / "main").write_text(f"{COMMIT}\n")
    return tmp_path


def test_a_branch(checkout: Path) -> None:
    assert provenance._commit_of_checkout(checkout) == COMMIT


def test_a_packed_branch_and_a_detached_head(checkout: Path) -> None:
    (checkout / ".git" / "refs" / "heads" / "main").unlink()
    (checkout / ".git" / "packed-refs").write_text(f"# pack-refs\n{OTHER} refs/heads/x\n{COMMIT} refs/heads/main\n")
    assert provenance._commit_of_checkout(checkout) == COMMIT
    (checkout / ".git" / "HEAD").write_text(f"{OTHER}\n")
    assert provenance._commit_of_checkout(checkout) == OTHER


def test_a_second_work_tree(checkout: Path, tmp_path: Path) -> None:
    second = tmp_path / "second"
    second.mkdir()
    (second / "pyproject.toml").write_text('name = "replaceme"\n')
    own = checkout / ".git" / "worktrees" / "second"
    own.mkdir(parents=True)
    (second / ".git").write_text(f"gitdir: {own}\n")
    (own / "HEAD").write_text("ref: refs/heads/main\n")
    (own / "commondir").write_text("../..\n")
    assert provenance._commit_of_checkout(second) == COMMIT


def test_a_repository_of_somebody_else_says_nothing(checkout: Path) -> None:
    (checkout / "pyproject.toml").write_text('name = "another"\n')
    assert provenance._commit_of_checkout(checkout) is None
    assert provenance._commit_of_checkout(checkout / "missing") is None


def test_what_pip_installed_from_a_repository() -> None:
    url = f'{{"url": "https://example.org/x", "vcs_info": {{"vcs": "git", "commit_id": "{COMMIT}"}}}}'
    assert provenance._commit_of_url(url) == COMMIT
    assert provenance._commit_of_url('{"url": "file:///x", "dir_info": {"editable": true}}') is None
    assert provenance._commit_of_url(None) is None


def test_the_digest_is_always_known() -> None:
    assert len(str(provenance.code_version()["digest"])) == 64


def test_a_library_that_is_not_installed_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "PACKAGES", ("torch", "no-such-library"))
    assert provenance._versions().keys() == {"python", "torch"}
    assert provenance._versions()["torch"] == version("torch")


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
