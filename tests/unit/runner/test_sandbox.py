"""What a runner sees in bubblewrap, by the arguments. `tests/integration/runner/test_sandbox.py` starts real ones."""

import sys
from itertools import pairwise
from pathlib import Path

from replaceme_core.runner.sandbox import accelerators, bubblewrap_arguments, places_of


def built(place: Path, *, reads: tuple[Path, ...] = (), **environment: str) -> list[str]:
    return bubblewrap_arguments(reads=reads, writes=[place], environment=environment, directory=place)


def mounted(words: list[str], how: str) -> list[str]:
    return [value for word, value in pairwise(words) if word == how]


def test_it_has_no_network_no_processes_and_ends_with_the_worker(tmp_path: Path) -> None:
    words = built(tmp_path)
    assert {"--unshare-user", "--unshare-pid", "--unshare-net", "--unshare-ipc", "--die-with-parent"} <= set(words)
    assert mounted(words, "--cap-drop") == ["ALL"]
    assert mounted(words, "--tmpfs") == ["/tmp"]
    assert mounted(words, "--chdir") == [str(tmp_path)]
    assert words[-1] == "--"


def test_only_its_own_directories_can_be_written_to(tmp_path: Path) -> None:
    model = tmp_path / "attempt" / "model"
    model.mkdir(parents=True)
    words = built(tmp_path / "attempt", reads=(model,))
    assert mounted(words, "--bind") == [str(tmp_path / "attempt")]
    assert words.index(str(model)) > words.index(str(tmp_path / "attempt")), "mounted later, it stays read only"


def test_of_the_machine_there_is_only_what_python_needs(tmp_path: Path) -> None:
    seen = set(mounted(built(tmp_path), "--ro-bind"))
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


def test_a_directory_is_itself(tmp_path: Path) -> None:
    assert list(places_of(tmp_path.resolve())) == [tmp_path.resolve()]


def test_gpus_stay_reachable(tmp_path: Path) -> None:
    for name in ("nvidia0", "nvidiactl", "nvidia-uvm", "kfd", "null", "sda"):
        (tmp_path / name).touch()
    (tmp_path / "dri").mkdir()
    names = [device.name for device in accelerators(tmp_path)]
    assert names == ["dri", "kfd", "nvidia-uvm", "nvidia0", "nvidiactl"]
