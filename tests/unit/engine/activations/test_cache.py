"""What is kept on disk: entries of the cache, tensors beyond memory, and files that are what was written."""

import hashlib
import json
import logging
import os
import signal
import sys
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import replaceme_core
import replaceme_core.engine.pipeline  # imports every module of the method
from replaceme_core.engine.activations import cache
from replaceme_core.engine.activations.cache import ENTRY, ActivationCache
from replaceme_core.engine.activations.verified_file import (
    read_contents,
    write_verified,
)

KEYS = [letter * 64 for letter in "abcdef"]
PAYLOAD = 1000


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def fill(cache: ActivationCache, key: str, *, payload: int = PAYLOAD) -> bool:
    """Whether the entry was admitted."""
    with cache.draft() as draft:
        (draft / "stream-0").write_bytes(bytes(payload))
        entry = cache.publish(draft, key, {"of": key})
    if entry is None:
        return False
    entry.close()
    return True


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir() if path.name != "lock")


def test_the_draft_of_a_killed_writer_is_ignored_and_removed(directory: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # threads: the fork uses none of them
        reader, writer = os.pipe()
        process = os.fork()
    if process == 0:
        with ActivationCache(directory, limit=10_000).draft() as draft:
            (draft / "stream-0").write_bytes(b"half")
            os.write(writer, b"written")
            signal.pause()
    assert os.read(reader, 7) == b"written"
    cache = ActivationCache(directory, limit=10_000)
    with cache.draft():
        pass
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
    with cache.draft() as first, cache.draft() as second:
        for draft, letter in ((first, b"1"), (second, b"2")):
            (draft / "stream-0").write_bytes(letter)
        entry = cache.publish(first, KEYS[0], {})
        assert entry is not None
        assert cache.publish(second, KEYS[0], {}) is None
        assert (second / "stream-0").read_bytes() == b"2", "it still serves its own job"
        assert (entry.directory / "stream-0").read_bytes() == b"1"
    entry.close()
    assert names(directory) == [KEYS[0]]


@pytest.mark.parametrize("content", ["{", "[]"])
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
    mine.close()
    other.close()


def test_the_digest_covers_every_module_that_the_pipeline_imports() -> None:
    names = [name for name in sys.modules if name.startswith("replaceme_core.")]
    imported = {Path(str(sys.modules[name].__file__)).resolve() for name in names}
    assert len(imported) > 50
    assert imported <= {path.resolve() for path in cache.code_files()}


def test_names_and_contents_of_all_modules_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nested = tmp_path / "methods" / "new" / "solve.py"
    nested.parent.mkdir(parents=True)
    nested.write_text("RIDGE = 1")
    monkeypatch.setattr(replaceme_core, "__path__", [str(tmp_path)])
    digests = [cache.code_digest()]
    nested.write_text("RIDGE = 2")
    digests.append(cache.code_digest())
    nested.rename(nested.with_name("other.py"))
    assert len({*digests, cache.code_digest()}) == 3


WRITTEN = {"b": torch.arange(6.0).reshape(2, 3), "a": torch.arange(8.0, dtype=torch.float64).reshape(2, 4).T}
RECORD: dict[str, object] = {"name": "one", "values": [1, None, 0.5]}


def test_record_and_tensors_are_read_as_they_were_written(tmp_path: Path) -> None:
    path = tmp_path / "key.safetensors"
    contents = write_verified(path, WRITTEN, RECORD, read=read_contents)
    assert contents is not None
    assert contents.record == RECORD
    assert set(contents.tensors) == set(WRITTEN)
    assert all(torch.equal(contents.tensors[name], values) for name, values in WRITTEN.items())
    assert write_verified(tmp_path / "other", WRITTEN, RECORD, read=lambda _: None) is None
    assert [file.name for file in tmp_path.iterdir()] == ["key.safetensors"], "what cannot be read back has no name"
    with pytest.raises(OSError, match="No such file"):
        write_verified(tmp_path / "missing" / "key.safetensors", WRITTEN, RECORD, read=read_contents)


def test_the_format_is_a_record_and_a_digest_in_the_header(tmp_path: Path) -> None:
    """Written here without the module, as earlier releases did."""
    digest = hashlib.sha256(json.dumps(RECORD, sort_keys=True).encode())
    for name in sorted(WRITTEN):
        values = WRITTEN[name].contiguous()
        digest.update(f"{name} {values.dtype} {tuple(values.shape)}".encode() + values.numpy().tobytes())
    held = {name: values.contiguous() for name, values in WRITTEN.items()}
    save_file(held, tmp_path / "old.safetensors", metadata={"record": json.dumps(RECORD), "digest": digest.hexdigest()})
    contents = read_contents(tmp_path / "old.safetensors")
    assert contents is not None
    assert contents.record == RECORD


@pytest.mark.parametrize("harm", ["flip", "cut", "empty", "header", "missing"])
def test_a_damaged_file_is_not_used_and_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture, harm: str) -> None:
    path = tmp_path / "key.safetensors"
    write_verified(path, WRITTEN, RECORD, read=read_contents)
    content = bytearray(path.read_bytes())
    if harm == "flip":
        content[-5] ^= 1
    path.write_bytes({"cut": content[:-8], "empty": b""}.get(harm, content))
    if harm == "header":
        save_file(WRITTEN | {"a": torch.zeros(1)}, path)
    if harm == "missing":
        path.unlink()
    with caplog.at_level(logging.WARNING):
        assert read_contents(path) is None
    assert [record.getMessage().startswith("the file key.safetensors is not used") for record in caplog.records] == (
        [] if harm == "missing" else [True]
    )
