"""What a download leaves in the cache, where the Hub is interrupted, sends something else, or is too slow."""

import hashlib
import os
import threading
import time
from pathlib import Path

import pytest

from benchmarks.harness.fake_hub.access import READ_TOKEN
from benchmarks.harness.fake_hub.faults import Fault
from benchmarks.harness.fake_hub.server import FakeHub
from benchmarks.harness.processes import wait_until
from replaceme_core.errors import CorruptDownload, HubUnreachable, LeaseLost, RateLimited
from replaceme_core.hub import client
from replaceme_core.hub.huggingface import HuggingFaceHub
from replaceme_core.hub.port import RepositoryKind, Snapshot
from tests.fixtures.servers.hub import SocketSide

MODEL = RepositoryKind.MODEL
WEIGHTS = os.urandom(3_000_000)
FILES = {"config.json": b"{}", "model.safetensors": WEIGHTS, "tokenizer.json": b'{"a": 1}'}
STORAGE = "^/storage/"


@pytest.fixture
def fake(socket_side: SocketSide) -> FakeHub:
    socket_side.fake.add_model("acme/tiny", FILES)
    return socket_side.fake


@pytest.fixture
def hub(socket_side: SocketSide, fake: FakeHub) -> HuggingFaceHub:
    assert isinstance(socket_side.hub, HuggingFaceHub)
    return socket_side.hub


@pytest.fixture
def snapshot(hub: HuggingFaceHub) -> Snapshot:
    return hub.resolve("acme/tiny", kind=MODEL)


def blobs(cache: Path) -> set[str]:
    return {path.name for path in cache.glob("*/blobs/*")}


def test_the_next_call_goes_on_where_the_last_one_broke_off(
    hub: HuggingFaceHub, fake: FakeHub, snapshot: Snapshot, tmp_path: Path
) -> None:
    fake.fail(Fault.TRUNCATE, STORAGE, value=2 * client.CHUNK)
    fake.fail(Fault.STATUS, STORAGE, value=500, times=-1)
    with pytest.raises(HubUnreachable):
        hub.download(snapshot, ("model.safetensors",))
    fake.faults.clear()
    later = HuggingFaceHub(fake.url, read_token=READ_TOKEN, write_token=None, cache=tmp_path / "hub-cache")
    folder = later.download(snapshot, ("model.safetensors",))
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    ranges = [seen.range for seen in fake.seen if seen.path.startswith("/storage/")]
    assert (ranges[0], ranges[-1]) == (None, f"bytes={2 * client.CHUNK}-")
    assert blobs(tmp_path / "hub-cache") == {hashlib.sha256(WEIGHTS).hexdigest()}


@pytest.mark.parametrize("path", ["model.safetensors", "tokenizer.json"])
def test_a_file_that_is_not_what_the_hub_lists_is_fetched_again(
    hub: HuggingFaceHub, fake: FakeHub, snapshot: Snapshot, path: str
) -> None:
    """A large file has a SHA-256, a small one git's own hash; in both cases the size is right."""
    fake.fail(Fault.CORRUPT, f"{STORAGE}|/resolve/.*tokenizer", method="GET")
    if path == "model.safetensors":
        fake.faults.clear()
        fake.fail(Fault.CORRUPT, STORAGE)
    assert (hub.download(snapshot, (path,)) / path).read_bytes() == FILES[path]


def test_a_file_that_is_never_what_the_hub_lists_leaves_nothing(
    hub: HuggingFaceHub, fake: FakeHub, snapshot: Snapshot, tmp_path: Path
) -> None:
    fake.fail(Fault.CORRUPT, STORAGE, times=-1)
    with pytest.raises(CorruptDownload, match="another content"):
        hub.download(snapshot, ("model.safetensors",))
    assert blobs(tmp_path / "hub-cache") == set()
    fake.faults.clear()
    assert (hub.download(snapshot, ("model.safetensors",)) / "model.safetensors").read_bytes() == WEIGHTS


def test_a_wrong_etag_gives_no_wrong_file(hub: HuggingFaceHub, fake: FakeHub, snapshot: Snapshot) -> None:
    """The client library names blobs after it, so that one answer poisons the cache for another file."""
    fake.fail(Fault.WRONG_ETAG, times=-1)
    folder = hub.download(snapshot, ("model.safetensors", "tokenizer.json"))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
        name: FILES[name] for name in ("model.safetensors", "tokenizer.json")
    }


def test_more_than_the_hub_lists_is_not_written(hub: HuggingFaceHub, fake: FakeHub, tmp_path: Path) -> None:
    listed = hub.resolve("acme/tiny", kind=MODEL)
    large = fake.store.put(WEIGHTS * 4, lfs=True)
    fake.store.object(large.sha256).replace(fake.store.object(hashlib.sha256(WEIGHTS).hexdigest()))
    with pytest.raises(CorruptDownload, match="more bytes"):
        hub.download(listed, ("model.safetensors",))
    assert blobs(tmp_path / "hub-cache") == set()


@pytest.mark.parametrize("path", [STORAGE, "^/api/models/"])
def test_a_byte_now_and_then_is_given_up(
    hub: HuggingFaceHub, fake: FakeHub, snapshot: Snapshot, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "SLOW_SECONDS", 0.5)
    fake.fail(Fault.DRIP, path, value=0.05)
    began = time.monotonic()
    with pytest.raises(HubUnreachable, match="too slow"):
        hub.download(hub.resolve("acme/tiny", kind=MODEL), ("model.safetensors",))
    assert time.monotonic() - began < 5
    assert hub.download(hub.resolve("acme/tiny", kind=MODEL), ("model.safetensors",)).is_dir()


def test_a_limit_says_when_to_come_back(hub: HuggingFaceHub, fake: FakeHub, snapshot: Snapshot) -> None:
    """At once: the client library sleeps for as long as the Hub says, and a cancel would wait for it."""
    for path in (STORAGE, "^/api/models/"):
        fake.fail(Fault.LIMIT, path, value=300)
        began = time.monotonic()
        with pytest.raises(RateLimited, match="wait for 300 s") as caught:
            hub.download(hub.resolve("acme/tiny", kind=MODEL), ("model.safetensors",))
        assert caught.value.retry_after == 300
        assert time.monotonic() - began < 5


def test_a_branch_that_moves_on_does_not_change_the_download(
    hub: HuggingFaceHub, fake: FakeHub, snapshot: Snapshot
) -> None:
    held = fake.fail(Fault.HOLD, STORAGE)
    found: list[Path] = []
    work = threading.Thread(target=lambda: found.append(hub.download(snapshot, tuple(FILES))))
    work.start()
    wait_until(held.reached.is_set, seconds=10, what="the download")
    fake.add_model("acme/tiny", {"config.json": b'{"newer": 1}', "model.safetensors": b"newer"})
    held.release()
    work.join(timeout=20)
    assert {path.name: path.read_bytes() for path in found[0].iterdir()} == FILES


def test_a_stopped_download_is_continued_by_the_next(hub: HuggingFaceHub, fake: FakeHub, snapshot: Snapshot) -> None:
    held = fake.fail(Fault.HOLD, STORAGE)

    def stop(_: float) -> None:
        if held.reached.is_set():
            raise LeaseLost("another worker has this job")

    with pytest.raises(LeaseLost):
        hub.download(snapshot, ("model.safetensors",), advance=stop)
    held.release(carry_out=False)
    assert (hub.download(snapshot, ("model.safetensors",)) / "model.safetensors").read_bytes() == WEIGHTS
