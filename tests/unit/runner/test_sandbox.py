"""What a runner sees in bubblewrap, by the arguments. `tests/integration/runner/test_sandbox.py` starts real ones."""

import os
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from replaceme_core.hardware import accelerators
from replaceme_core.runner.messages import EvaluateRequest
from replaceme_core.runner.sandbox import Sandbox, SandboxMode, bubblewrap_arguments, places_of


def built(place: Path, *, reads: tuple[Path, ...] = (), **environment: str) -> list[str]:
    return bubblewrap_arguments(reads=reads, writes=[place], environment=environment, directory=place)


def mounted(words: list[str], how: str) -> list[str]:
    return [value for word, value in pairwise(words) if word == how]


def test_it_sees_what_python_needs_and_writes_to_its_own_directories(tmp_path: Path) -> None:
    """It has no network, no view of other processes, and ends with the worker."""
    place, model = tmp_path / "attempt", tmp_path / "attempt" / "model"
    model.mkdir(parents=True)
    words = built(place, reads=(model,))
    assert {"--unshare-user", "--unshare-pid", "--unshare-net", "--unshare-ipc", "--die-with-parent"} <= set(words)
    once = {"--cap-drop": "ALL", "--tmpfs": "/tmp", "--chdir": str(place), "--bind": str(place)}
    assert {how: mounted(words, how) for how in once} == {how: [value] for how, value in once.items()}
    assert words[-1] == "--"
    assert words.index(str(model)) > words.index(str(place)), "mounted later, it stays read only"
    seen = set(mounted(words, "--ro-bind"))
    assert {"/usr", sys.prefix, "/etc/passwd"} <= seen
    assert not {"/", "/etc", "/home", "/root", "/run", "/var", "/etc/shadow", str(Path.home())} & seen


def test_of_a_checkout_only_the_code_is_there(tmp_path: Path) -> None:
    """An `.env` with tokens, and the data, may lie beside it."""
    import replaceme_core

    root = Path(replaceme_core.__file__).parents[1]
    other = tmp_path / "other"
    other.mkdir()
    seen = set(mounted(built(tmp_path / "place", PYTHONPATH=f"{root}:{other}:{tmp_path / 'missing'}"), "--ro-bind"))
    assert {str(root / "replaceme_core"), str(root / "worker"), str(other)} <= seen
    assert str(root) not in seen


def test_of_a_cache_only_the_model_is_there(tmp_path: Path) -> None:
    cache = tmp_path.resolve()
    snapshot = cache / "models--org--one" / "snapshots" / ("0" * 40)
    for directory in (snapshot, cache / "models--org--two", cache / "blobs"):
        directory.mkdir(parents=True)
    assert list(places_of(snapshot)) == [snapshot, cache / "models--org--one", cache / "blobs"]
    link = cache / "link"
    link.symlink_to(snapshot)
    assert list(places_of(link)) == [link, snapshot, cache / "models--org--one", cache / "blobs"]


def test_gpus_stay_reachable(tmp_path: Path) -> None:
    for name in ("nvidia0", "nvidiactl", "nvidia-uvm", "kfd", "null", "sda"):
        (tmp_path / name).touch()
    (tmp_path / "dri").mkdir()
    names = [device.name for device in accelerators(tmp_path)]
    assert names == ["dri", "kfd", "nvidia-uvm", "nvidia0", "nvidiactl"]


def test_what_a_link_leads_to_is_not_given_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor where a runner that is left puts it in place of a directory while that is given to the next one."""
    scratch, outside = tmp_path / "scratch", tmp_path / "outside"
    for directory in (scratch / "inner", outside):
        directory.mkdir(parents=True)
        (directory / "file").touch()
    given, chown = set[int](), os.chown

    def exchanging(path: str | Path, *ids: int, dir_fd: int | None = None, follow_symlinks: bool = True) -> None:
        given.add(os.stat(path, dir_fd=dir_fd, follow_symlinks=follow_symlinks).st_ino)
        chown(path, *ids, dir_fd=dir_fd, follow_symlinks=follow_symlinks)
        if Path(path).name == "inner":
            (scratch / "inner").rename(tmp_path / "away")
            (scratch / "inner").symlink_to(outside)

    monkeypatch.setattr(os, "chown", exchanging)
    request = EvaluateRequest(model_directory=str(tmp_path), text_path=str(tmp_path))
    sandbox = Sandbox(mode=SandboxMode.USER, user=(os.getuid(), os.getgid()))
    launched = sandbox.command(["true"], request, scratch=scratch)
    assert launched[-4:] == ["--user", f"{os.getuid()}:{os.getgid()}", "--", "true"]
    assert {scratch.stat().st_ino, (tmp_path / "away").stat().st_ino} <= given
    assert not {outside.stat().st_ino, (outside / "file").stat().st_ino} & given
