"""Complete or not there, within its limit, and safe with several processes."""

import os
import signal
import sys
import warnings
from pathlib import Path

import pytest

import replaceme_core
import replaceme_core.engine.pipeline  # imports every module of the method
from replaceme_core.engine.activations import cache
from replaceme_core.engine.activations.cache import ENTRY, ActivationCache

KEYS = [letter * 64 for letter in "abcdef"]
PAYLOAD = 1000


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def fill(cache: ActivationCache, key: str, *, payload: int = PAYLOAD) -> bool:
    """Whether the entry was admitted."""
    draft = cache.draft()
    (draft.directory / "stream-0").write_bytes(bytes(payload))
    entry = draft.publish(key, {"of": key})
    draft.close()
    if entry is None:
        return False
    entry.close()
    return True


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir() if path.name != "lock")


def test_an_entry_is_found_by_later_processes(directory: Path) -> None:
    assert fill(ActivationCache(directory, limit=10_000), KEYS[0])
    entry = ActivationCache(directory, limit=10_000).find(KEYS[0])
    assert entry is not None
    assert entry.facts == {"of": KEYS[0]}
    assert (entry.directory / "stream-0").read_bytes() == bytes(PAYLOAD)
    entry.close()
    assert ActivationCache(directory, limit=10_000).find(KEYS[1]) is None


def test_an_abandoned_draft_leaves_nothing(directory: Path) -> None:
    cache = ActivationCache(directory, limit=10_000)
    draft = cache.draft()
    (draft.directory / "stream-0").write_bytes(b"half")
    assert cache.find(KEYS[0]) is None
    draft.close()
    assert names(directory) == []


def test_the_draft_of_a_killed_writer_is_ignored_and_removed(directory: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # threads: the fork uses none of them
        reader, writer = os.pipe()
        process = os.fork()
    if process == 0:
        draft = ActivationCache(directory, limit=10_000).draft()
        (draft.directory / "stream-0").write_bytes(b"half")
        os.write(writer, b"written")
        signal.pause()
    assert os.read(reader, 7) == b"written"
    cache = ActivationCache(directory, limit=10_000)
    cache.draft().close()
    assert len(names(directory)) == 1, "it lives, so what it writes stays"
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    os.close(reader)
    os.close(writer)
    assert fill(cache, KEYS[0])
    assert names(directory) == [KEYS[0]]


def test_least_recently_used_entries_are_evicted(directory: Path) -> None:
    cache = ActivationCache(directory, limit=3 * (PAYLOAD + 100))
    for key in KEYS[:3]:
        assert fill(cache, key)
    used = cache.find(KEYS[0])
    assert used is not None
    used.close()
    assert fill(cache, KEYS[3])
    assert names(directory) == [KEYS[0], KEYS[2], KEYS[3]]


def test_an_entry_in_use_is_not_evicted(directory: Path) -> None:
    cache = ActivationCache(directory, limit=PAYLOAD + 100)
    assert fill(cache, KEYS[0])
    reader = ActivationCache(directory, limit=PAYLOAD + 100).find(KEYS[0])
    assert reader is not None
    assert not fill(cache, KEYS[1]), "there is no room while it is read"
    assert (reader.directory / "stream-0").is_file()
    reader.close()
    assert fill(cache, KEYS[1])
    assert names(directory) == [KEYS[1]]


def test_an_entry_that_is_too_large_is_not_stored(directory: Path) -> None:
    cache = ActivationCache(directory, limit=PAYLOAD)
    assert not cache.has_room(PAYLOAD + 1)
    assert not fill(cache, KEYS[0], payload=2 * PAYLOAD)
    assert names(directory) == []


def test_of_two_writers_of_one_key_the_first_is_kept(directory: Path) -> None:
    cache = ActivationCache(directory, limit=10_000)
    first, second = cache.draft(), cache.draft()
    for draft, letter in ((first, b"1"), (second, b"2")):
        (draft.directory / "stream-0").write_bytes(letter)
    entry = first.publish(KEYS[0], {})
    assert entry is not None
    assert second.publish(KEYS[0], {}) is None
    assert (second.directory / "stream-0").read_bytes() == b"2", "it still serves its own job"
    assert (entry.directory / "stream-0").read_bytes() == b"1"
    second.close()
    entry.close()
    first.close()
    assert names(directory) == [KEYS[0]]


@pytest.mark.parametrize("content", ["", "{", "[]"])
def test_an_entry_that_cannot_be_read_is_removed(directory: Path, content: str) -> None:
    cache = ActivationCache(directory, limit=10_000)
    assert fill(cache, KEYS[0])
    (directory / KEYS[0] / ENTRY).write_text(content)
    assert cache.find(KEYS[0]) is None
    assert names(directory) == []
    assert fill(cache, KEYS[0]), "and its place is free"


def test_a_damaged_entry_is_discarded_though_others_hold_it(directory: Path) -> None:
    cache = ActivationCache(directory, limit=10_000)
    assert fill(cache, KEYS[0])
    mine, other = cache.find(KEYS[0]), cache.find(KEYS[0])
    assert mine is not None
    assert other is not None
    cache.discard(mine)
    assert cache.find(KEYS[0]) is None
    cache.discard(other)


def test_the_digest_covers_every_module_that_the_pipeline_imports() -> None:
    names = [name for name in sys.modules if name.startswith("replaceme_core.")]
    imported = {Path(str(sys.modules[name].__file__)).resolve() for name in names}
    assert len(imported) > 50
    assert imported <= {path.resolve() for path in cache.code_files()}


def test_a_module_in_a_package_within_a_package_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nested = tmp_path / "methods" / "new" / "solve.py"
    nested.parent.mkdir(parents=True)
    nested.write_text("RIDGE = 1")
    monkeypatch.setattr(replaceme_core, "__path__", [str(tmp_path)])
    before = cache.code_digest()
    nested.write_text("RIDGE = 2")
    assert cache.code_digest() != before


def test_the_name_of_a_file_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.py").write_text("")
    monkeypatch.setattr(replaceme_core, "__path__", [str(tmp_path)])
    before = cache.code_digest()
    (tmp_path / "a.py").rename(tmp_path / "b.py")
    assert cache.code_digest() != before
