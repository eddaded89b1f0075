"""Streams beyond a fixed amount of memory lie on disk, or in memory after all where the disk takes no more."""

import logging
import resource
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from replaceme_core.engine.activations.tensor_store import SpillingStore

TENSORS = {
    name: [torch.full((16,), float(10 * list_ + index)) for index in range(4)] for list_, name in enumerate("ab")
}
BYTES = 16 * 4


def fill(streams: SpillingStore) -> None:
    """Batch by batch, as a pass does."""
    for index in range(4):
        for name, several in TENSORS.items():
            streams.put(name, several[index])


def check(streams: SpillingStore) -> None:
    assert streams.nbytes == 8 * BYTES
    for name, several in TENSORS.items():
        assert streams.count(name) == 4
        assert all(torch.equal(streams.get(name, index), one) for index, one in enumerate(several))
    assert streams.count("c") == 0


def directories(place: Path) -> list[Path]:
    return [entry for entry in place.iterdir() if entry.is_dir()]


@pytest.mark.parametrize("in_memory", [0, 1, 3, 8])
def test_tensors_beyond_the_limit_are_on_disk_until_the_end(tmp_path: Path, in_memory: int) -> None:
    with SpillingStore(beside=tmp_path / "out", limit=in_memory * BYTES) as streams:
        fill(streams)
        assert streams._memory.nbytes == in_memory * BYTES
        written = [path.stat().st_size for place in directories(tmp_path) for path in place.iterdir()]
        assert sum(written) == (8 - in_memory) * BYTES
        check(streams)
    assert directories(tmp_path) == []


@pytest.fixture
def small_files() -> Iterator[None]:
    """No file may have more than two and a half tensors: a write ends half-way, as on a full disk."""
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5 * BYTES // 2, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.usefixtures("small_files")
def test_when_writing_fails_everything_moves_back_to_memory(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with SpillingStore(beside=tmp_path / "out", limit=BYTES) as streams:
        fill(streams)
        assert directories(tmp_path) == [], "the output wants the room"
        check(streams)
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


def test_without_a_directory_for_files_everything_stays_in_memory(tmp_path: Path) -> None:
    with SpillingStore(beside=tmp_path / "missing" / "out", limit=BYTES) as streams:
        fill(streams)
        check(streams)
