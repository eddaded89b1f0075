"""The cache of downloads: one download for many processes, a limit, and what may be removed."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import pytest

from benchmarks.harness.fake_hub.access import READ_TOKEN
from benchmarks.harness.fake_hub.server import FakeHub
from replaceme_core.errors import OutOfSpace
from replaceme_core.hub.cache import Cache
from replaceme_core.hub.huggingface import HuggingFaceHub
from replaceme_core.hub.port import RepositoryKind

MODEL = RepositoryKind.MODEL
SIZE = 2_000_000
NAMES = ("config.json", "model.safetensors")
WORKER = """
import pathlib, sys
from benchmarks.harness.fake_hub.access import READ_TOKEN
from replaceme_core.hub.huggingface import HuggingFaceHub
from replaceme_core.hub.port import RepositoryKind
url, cache, repo_id, limit = sys.argv[1:]
hub = HuggingFaceHub(url, read_token=READ_TOKEN, write_token=None, cache=pathlib.Path(cache), cache_bytes=int(limit))
sys.stdin.readline()
snapshot = hub.resolve(repo_id, kind=RepositoryKind.MODEL)
with hub.hold(snapshot):
    print(hub.download(snapshot, ("config.json", "model.safetensors")), flush=True)
    sys.stdin.read()
"""


@contextmanager
def workers(fake: FakeHub, cache: Path, repo_id: str, *, limit: int, count: int = 1) -> Iterator[set[Path]]:
    """Processes that download one model at once, and hold it in the `with` block; yields the folders, when all are
    done.
    """
    command = [sys.executable, "-c", WORKER, fake.url, str(cache), repo_id, str(limit)]
    start = partial(subprocess.Popen[str], command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with ExitStack() as ends:
        processes = [ends.enter_context(start()) for _ in range(count)]
        for process in processes:
            print("go", file=process.stdin, flush=True)
        yield {Path(process.stdout.readline().strip()) for process in processes if process.stdout is not None}
    assert {process.returncode for process in processes} == {0}


def add(fake: FakeHub, name: str) -> bytes:
    weights = os.urandom(SIZE)
    fake.add_model(f"acme/{name}", {"config.json": b"{}", "model.safetensors": weights})
    return weights


def hub_of(fake: FakeHub, cache: Path, *, limit: int = 10 * SIZE) -> HuggingFaceHub:
    return HuggingFaceHub(fake.url, read_token=READ_TOKEN, write_token=None, cache=cache, cache_bytes=limit)


def download(hub: HuggingFaceHub, name: str) -> Path:
    return hub.download(hub.resolve(f"acme/{name}", kind=MODEL), NAMES)


def used(cache: Path) -> int:
    return sum(path.stat().st_size for path in cache.rglob("*") if path.is_file() and not path.is_symlink())


def test_ten_workers_make_one_download(fake_hub: FakeHub, tmp_path: Path) -> None:
    """Beside an older model that has to go first: space for one new download is enough for all ten."""
    weights, cache, limit = add(fake_hub, "new"), tmp_path / "cache", int(1.5 * SIZE)
    add(fake_hub, "old")
    download(hub_of(fake_hub, cache, limit=limit), "old")
    before = fake_hub.count("GET", "^/storage/")
    with workers(fake_hub, cache, "acme/new", limit=limit, count=10) as folders:
        (folder,) = folders
        assert (folder / "model.safetensors").read_bytes() == weights
        assert fake_hub.count("GET", "^/storage/") - before == 1
        assert fake_hub.count("GET", "^/acme/new/resolve/.*config") == 1
        assert used(cache) <= limit
    assert list((cache / ".reserved").iterdir()) == []
    locks = [cache / ".lock", *(cache / ".held").iterdir()]
    assert {path.stat().st_mode & 0o777 for path in locks} == {0o600}, "no other user may hold them"


def test_what_was_used_last_stays(fake_hub: FakeHub, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    hub = hub_of(fake_hub, cache, limit=int(2.5 * SIZE))
    for name in ("one", "two", "three"):
        add(fake_hub, name)
    download(hub, "one")
    download(hub, "two")
    download(hub, "one")  # used again
    download(hub, "three")
    assert {path.name for path in cache.glob("models--*")} == {"models--acme--one", "models--acme--three"}
    assert used(cache) <= 2.5 * SIZE
    asked = fake_hub.count("GET", "^/storage/")
    download(hub, "one")
    download(hub, "two")  # comes back, whole
    assert fake_hub.count("GET", "^/storage/") == asked + 1
    assert {path.name for path in cache.glob("models--*")} == {"models--acme--one", "models--acme--two"}


def test_what_a_running_job_holds_is_not_removed(fake_hub: FakeHub, tmp_path: Path) -> None:
    cache, limit = tmp_path / "cache", int(1.5 * SIZE)
    weights = add(fake_hub, "held")
    add(fake_hub, "other")
    with workers(fake_hub, cache, "acme/held", limit=limit) as folders:
        (folder,) = folders
        with pytest.raises(OutOfSpace, match="REPLACEME_HUB_CACHE_BYTES"):
            download(hub_of(fake_hub, cache, limit=limit), "other")
        assert (folder / "model.safetensors").read_bytes() == weights
    download(hub_of(fake_hub, cache, limit=limit), "other")
    assert not folder.exists()


def test_of_a_repository_only_the_old_revision_is_removed(fake_hub: FakeHub, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    hub = hub_of(fake_hub, cache, limit=int(2.5 * SIZE))
    add(fake_hub, "tiny")
    old = download(hub, "tiny")
    weights = add(fake_hub, "tiny")
    new = download(hub, "tiny")
    with hub.hold(hub.resolve("acme/tiny", kind=MODEL)):
        add(fake_hub, "other")
        download(hub, "other")
        assert not old.exists()
        assert (new / "model.safetensors").read_bytes() == weights
        assert (new / "config.json").read_bytes() == b"{}", "both revisions shared this blob"


def test_more_than_the_cache_may_have_is_refused_before_a_byte_is_fetched(fake_hub: FakeHub, tmp_path: Path) -> None:
    """Nothing is removed for it: not even an empty cache would take it."""
    hub = hub_of(fake_hub, tmp_path / "cache", limit=SIZE)
    fake_hub.add_model("acme/small", dict.fromkeys(NAMES, b"{}"))
    small = download(hub, "small")
    add(fake_hub, "tiny")
    with pytest.raises(OutOfSpace, match="the download of acme/tiny takes 2,000,002 bytes"):
        download(hub, "tiny")
    assert fake_hub.count("GET", "/tiny/resolve/") == 0
    assert [(small / name).read_bytes() for name in NAMES] == [b"{}", b"{}"]


def test_what_others_have_reserved_is_not_given_twice(tmp_path: Path) -> None:
    cache = Cache(tmp_path, limit=100)
    one, two = cache.place("models--a--b", "1" * 40), cache.place("models--c--d", "2" * 40)
    with cache.reserve(one, {"aa": 60}, purpose="one"):
        with pytest.raises(OutOfSpace), cache.reserve(two, {"bb": 60}, purpose="two"):
            pass
        with cache.reserve(one, {"aa": 60}, purpose="the same"):
            pass
    with cache.reserve(two, {"bb": 60}, purpose="two"):
        pass


def test_a_download_that_goes_on_meanwhile_counts_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two readings it may be received and get its name: it takes the space that was reserved, no more."""
    cache = Cache(tmp_path, limit=100)
    place = cache.place("models--acme--one", "a" * 40)
    with cache.reserve(place, {"aa": 80}, purpose="one"):
        place.blob("aa").parent.mkdir(parents=True)
        place.blob("aa").write_bytes(bytes(80))
        monkeypatch.setattr("replaceme_core.hub.cache.received_bytes", lambda _: 0)  # as it was a moment before
        with cache.reserve(place, {"aa": 80}, purpose="the same"):
            pass


def test_a_link_that_another_process_renames_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Space is made by removing an old snapshot, while a worker links the files of a newer one."""
    cache = Cache(tmp_path, limit=100)
    old, new = (cache.place("models--acme--one", letter * 40) for letter in "ab")
    for place, digest in ((old, "aa"), (new, "bb")):
        place.snapshot.mkdir(parents=True)
        place.blob(digest).parent.mkdir(exist_ok=True)
        place.blob(digest).write_bytes(bytes(40))
        place.link("model.safetensors", digest)
    draft = new.snapshot / ".draft"
    draft.symlink_to("../../blobs/bb")
    read = Path.readlink

    def renamed(path: Path) -> Path:
        if path == draft:
            draft.replace(new.snapshot / "config.json")
        return read(path)

    monkeypatch.setattr(Path, "readlink", renamed)
    other = cache.place("models--acme--other", "c" * 40)
    with cache.hold(new), cache.reserve(other, {"cc": 50}, purpose="another"):
        assert not draft.exists()
        assert (old.blob("aa").exists(), new.blob("bb").exists()) == (False, True)


def test_a_reservation_ends_with_its_process(tmp_path: Path) -> None:
    script = (
        "import sys, pathlib, os, signal\n"
        "from replaceme_core.hub.cache import Cache\n"
        "cache = Cache(pathlib.Path(sys.argv[1]), limit=100)\n"
        "with cache.reserve(cache.place('models--a--b', '1' * 40), {'aa': 90}, purpose='x'):\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=False)
    assert len(list((tmp_path / ".reserved").iterdir())) == 1
    cache = Cache(tmp_path, limit=100)
    with cache.reserve(cache.place("models--c--d", "2" * 40), {"bb": 90}, purpose="y"):
        assert len(list((tmp_path / ".reserved").iterdir())) == 1
    assert list((tmp_path / ".reserved").iterdir()) == []
