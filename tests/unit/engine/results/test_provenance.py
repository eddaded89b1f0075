"""What the record says of the code, the machine and its libraries."""

from importlib.metadata import version
from pathlib import Path

import pytest

from replaceme_core.engine.results import provenance

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
