"""What a runner sees in bubblewrap, by the arguments. `tests/integration/runner/test_sandbox.py` starts real ones."""

import sys
from itertools import pairwise
from pathlib import Path

from replaceme_core.hardware import accelerators
from replaceme_core.runner.sandbox import bubblewrap_arguments, places_of


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
