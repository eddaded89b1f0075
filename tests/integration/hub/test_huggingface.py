"""The real client against a Hub that refuses, hangs, breaks off and loses replies."""

import hashlib
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import pytest
from huggingface_hub import close_session, get_session

from benchmarks.harness.fake_hub.access import READ_TOKEN, STRANGER_TOKEN, WRITE_TOKEN
from benchmarks.harness.fake_hub.faults import Fault
from benchmarks.harness.fake_hub.server import FakeHub
from benchmarks.harness.processes import wait_until
from replaceme_core.errors import (
    AccessDenied,
    CorruptDownload,
    DisabledRepository,
    GatedRepository,
    HubUnreachable,
    InvalidInput,
    OutOfSpace,
    RateLimited,
    ReplaceMeError,
    RepositoryNotFound,
    StaleParent,
)
from replaceme_core.hub import client, huggingface
from replaceme_core.hub.huggingface import HuggingFaceHub
from replaceme_core.hub.port import Publication, RepositoryFile, RepositoryKind, Snapshot, read_hub_json
from tests.fixtures.servers.hub import SocketSide, anything, nothing, publication

MODEL = RepositoryKind.MODEL
WEIGHTS = os.urandom(3_000_000)
FILES = {"config.json": b"{}", "model.safetensors": WEIGHTS, "tokenizer.json": b'{"a": 1}'}
JOB = "6f1c"
STORAGE, COMMIT = "^/storage/", r"/commit/main$"


@pytest.fixture
def fake(socket_side: SocketSide) -> FakeHub:
    return socket_side.fake


@pytest.fixture
def hub(socket_side: SocketSide) -> HuggingFaceHub:
    assert isinstance(socket_side.hub, HuggingFaceHub)
    return socket_side.hub


@pytest.fixture
def result(tmp_path: Path) -> Publication:
    return publication(tmp_path / "result", FILES)


@pytest.fixture
def snapshot(hub: HuggingFaceHub, fake: FakeHub) -> Snapshot:
    fake.add_model("acme/tiny", FILES)
    return hub.resolve("acme/tiny", kind=MODEL)


def with_tokens(fake: FakeHub, cache: Path, read: str | None = None, write: str | None = None) -> HuggingFaceHub:
    return HuggingFaceHub(fake.url, read_token=read, write_token=write, cache=cache)


ASKED = """
import sys
from pathlib import Path
from replaceme_core.hub.huggingface import HuggingFaceHub
from replaceme_core.hub.port import RepositoryKind, read_hub_json

def note(event, arguments):
    if event == "socket.getaddrinfo":
        print(arguments[0])
        if arguments[0] != "127.0.0.1":
            raise OSError("another host")

sys.addaudithook(note)
hub = HuggingFaceHub(sys.argv[1], read_token=None, write_token=None, cache=Path(sys.argv[2]))
read_hub_json(hub, hub.resolve("acme/tiny", kind=RepositoryKind.MODEL), "config.json")
"""


# Reading


def test_no_other_host_is_asked(fake: FakeHub, tmp_path: Path) -> None:
    """Where it may send telemetry, the client library first asks huggingface.co, whichever Hub is set."""
    fake.add_model("acme/tiny", FILES)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    asked = subprocess.run(
        [sys.executable, "-c", ASKED, fake.url, str(tmp_path)],
        env=environment | {"HF_HOME": str(tmp_path / "home")},
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    assert set(asked.stdout.split()) == {"127.0.0.1"}


def test_an_older_commit_can_be_read(hub: HuggingFaceHub, fake: FakeHub) -> None:
    old = fake.add_model("acme/tiny", {"config.json": b'{"old": true}'})
    fake.add_model("acme/tiny", {"config.json": b"{}"})
    snapshot = hub.resolve("acme/tiny", kind=MODEL, revision=old.oid)
    assert read_hub_json(hub, snapshot, "config.json") == {"old": True}


@pytest.mark.parametrize(
    ("size", "error", "says"),
    [(3, CorruptDownload, "has 2 bytes after the download, the Hub lists 3"), (1 << 60, OutOfSpace, "are free")],
)
def test_a_file_that_is_not_of_the_listed_size(
    hub: HuggingFaceHub, snapshot: Snapshot, size: int, error: type[Exception], says: str
) -> None:
    wrong = replace(snapshot, files=(RepositoryFile(path="config.json", size=size, digest="0" * 40),))
    with pytest.raises(error, match=says):
        hub.download(wrong, ("config.json",))


def test_no_hub_at_all(hub: HuggingFaceHub, fake: FakeHub, result: Publication) -> None:
    fake.stop()
    close_session()
    calls = (lambda: hub.resolve("acme/tiny", kind=MODEL), lambda: hub.publish(result, before_commit=nothing))
    for call in (*calls, hub.namespace):
        with pytest.raises(HubUnreachable, match="cannot be reached"):
            call()


def test_a_silent_hub_is_not_waited_for(
    hub: HuggingFaceHub, fake: FakeHub, result: Publication, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client library itself sets no limit, neither on reads nor on writes."""
    monkeypatch.setattr(client, "TIMEOUT", httpx2.Timeout(0.3))
    monkeypatch.setattr(huggingface, "REQUEST_SECONDS", 0.3)
    fake.fail(Fault.DELAY, value=30, times=-1)
    with pytest.raises(HubUnreachable, match="ReadTimeout"):
        hub.resolve("acme/tiny", kind=MODEL)
    with pytest.raises(HubUnreachable, match="ReadTimeout"):
        hub.publish(result, before_commit=nothing)
    with pytest.raises(httpx2.ReadTimeout):
        get_session().get(f"{fake.url}/api/models/acme/tiny/commits/main", timeout=None)  # as it asks for lists


Change = Callable[[dict[str, Any]], object]
OUTSIDE = "../../../../escaped"


def _first(**changes: object) -> Change:
    return lambda reply: reply["siblings"][0].update(changes)


def _all(**changes: object) -> Change:
    return lambda reply: reply.update(changes)


REPLIES: Mapping[str, Change] = {
    **{
        f"commit {str(sha)[:20]!r}": _all(sha=sha)
        for sha in (OUTSIDE, "/tmp/escaped", "..", "", "main", "A" * 40, "a" * 41, "a" * 39 + "\n", 7, None, ["a" * 40])
    },
    **{
        f"file {str(name)[:20]!r}": _first(rfilename=name)
        for name in (
            *(OUTSIDE, "/tmp/escaped", "C:\\escaped", "C:escaped", "\\\\host\\escaped", "a\\..\\..\\escaped"),
            *("a/../../../../escaped", "a/./b", "a//b", "a/", "..", ".", "", "a\0b", "\ud800", "d/" * 70 + "a"),
            *(7, None, ["a"]),
        )
    },
    **{
        f"size {str(size)[:20]!r}": _first(size=size)
        for size in (-1, 2**51, 10**400, 1.5, True, "1", None, float("nan"), [1])
    },
    **{
        f"digest {str(digest)[:20]!r}": _first(blobId=digest, lfs=None)
        for digest in (OUTSIDE, "a" * 39, "A" * 40, 7, None, {})
    },
    "digest of a large file": _first(lfs={"size": 1, "sha256": OUTSIDE, "pointerSize": 134}),
    "large file of a list": _first(lfs=[1]),
    "no list of files": lambda reply: reply.pop("siblings"),
    "files of a number": _all(siblings=7),
    "files of numbers": _all(siblings=[7]),
    "too many files": lambda reply: reply["siblings"].extend({"rfilename": f"{n}"} for n in range(100_000)),
}
"""Of a Hub about a repository: each the sound one with one change."""


@pytest.mark.parametrize("name", REPLIES)
def test_a_hostile_reply_is_refused_and_nothing_is_written(
    hub: HuggingFaceHub, fake: FakeHub, tmp_path: Path, name: str
) -> None:
    fake.add_model("acme/tiny", FILES)
    fake.fail(Fault.REWRITE, "/api/models/acme/tiny").change = REPLIES[name]

    def download_all() -> None:
        snapshot = hub.resolve("acme/tiny", kind=MODEL)
        hub.download(snapshot, tuple(file.path for file in snapshot.files))

    with pytest.raises((HubUnreachable, InvalidInput)) as refused:
        download_all()
    assert len(refused.value.message.encode()) < 500
    assert [path.name for path in tmp_path.iterdir() if path.name != "fake-hub"] == []
    assert not Path("/tmp/escaped").exists()
    assert hub.download(hub.resolve("acme/tiny", kind=MODEL), tuple(FILES))


def test_an_account_without_a_name_is_refused(hub: HuggingFaceHub, fake: FakeHub) -> None:
    for owner in ("../..", "a/b", "\ud800", "", 7, None):
        fake.fail(Fault.REWRITE, "/whoami").change = _all(name=owner)
        with pytest.raises(HubUnreachable):
            hub.namespace()


# Who may


def test_a_write_token_that_may_only_read_is_refused(hub: HuggingFaceHub, fake: FakeHub) -> None:
    fake.fail(Fault.REWRITE, "/whoami").change = _all(auth={"accessToken": {"role": "read"}})
    with pytest.raises(AccessDenied, match="the write token for the Hub may only read"):
        hub.namespace()
    fake.fail(Fault.REWRITE, "/whoami").change = _all(auth={"accessToken": {"role": "write"}})
    assert hub.namespace() == "tester"


@pytest.mark.parametrize(
    ("token", "error"),
    [(None, RepositoryNotFound), (STRANGER_TOKEN, RepositoryNotFound), ("hf_expired", AccessDenied)],
)
def test_private_models_need_a_token_that_may(
    fake: FakeHub, tmp_path: Path, token: str | None, error: type[Exception]
) -> None:
    fake.add_model("acme/secret", FILES, private=True)
    with pytest.raises(error):
        with_tokens(fake, tmp_path, token).resolve("acme/secret", kind=MODEL)
    hub = with_tokens(fake, tmp_path, READ_TOKEN)
    assert hub.download(hub.resolve("acme/secret", kind=MODEL), ("config.json",)).is_dir()


def test_gated_and_disabled_models_are_denied(fake: FakeHub, tmp_path: Path) -> None:
    fake.add_model("acme/gated", FILES)
    fake.store.repository("model", "acme/gated").gated = True
    fake.add_dataset("acme/gated", {"train.txt": b"text"})
    fake.store.repository("dataset", "acme/gated").gated = True
    for kind in RepositoryKind:  # the list of its files is open to all
        with pytest.raises(GatedRepository, match="accept its conditions"):
            with_tokens(fake, tmp_path, STRANGER_TOKEN).resolve("acme/gated", kind=kind)
        assert with_tokens(fake, tmp_path, READ_TOKEN).resolve("acme/gated", kind=kind).files
    fake.store.repository("model", "acme/gated").disabled = True
    with pytest.raises(DisabledRepository, match="disabled"):
        with_tokens(fake, tmp_path, READ_TOKEN).resolve("acme/gated", kind=MODEL)


def test_publishing_needs_a_write_token(fake: FakeHub, tmp_path: Path, result: Publication) -> None:
    for write in (None, READ_TOKEN):
        with pytest.raises(AccessDenied, match="token"):
            with_tokens(fake, tmp_path / "cache", READ_TOKEN, write).publish(result, before_commit=nothing)
    for write, says in ((None, "none is set"), ("hf_expired", "refuses the token")):
        with pytest.raises(AccessDenied, match=says):
            with_tokens(fake, tmp_path / "cache", write=write).namespace()
    elsewhere = replace(result, repo_id="nobody/x")
    with pytest.raises(AccessDenied):
        with_tokens(fake, tmp_path / "cache", write=WRITE_TOKEN).publish(elsewhere, before_commit=nothing)


@pytest.mark.parametrize("path", ["^/upload/", STORAGE])
def test_a_storage_that_refuses_refuses_no_token(
    hub: HuggingFaceHub, fake: FakeHub, result: Publication, path: str
) -> None:
    """It gets none: the address is signed, for a while."""

    def there_and_back() -> None:
        hub.publish(result, before_commit=nothing)
        hub.download(hub.resolve("tester/out", kind=MODEL), ("model.safetensors",))

    fake.fail(Fault.STATUS, path, value=403)
    with pytest.raises(AccessDenied, match="was sent no token, while"):
        there_and_back()


def test_a_private_result_is_read_as_its_owner_only(fake: FakeHub, tmp_path: Path, result: Publication) -> None:
    hub = with_tokens(fake, tmp_path / "cache", write=WRITE_TOKEN)
    revision = hub.publish(result, before_commit=nothing)
    with pytest.raises(RepositoryNotFound):
        hub.resolve(result.repo_id, kind=MODEL)
    snapshot = hub.as_writer().resolve(result.repo_id, kind=MODEL, revision=revision)
    assert read_hub_json(hub.as_writer(), snapshot, "tokenizer.json") == {"a": 1}
    with pytest.raises(RepositoryNotFound):
        hub.resolve(result.repo_id, kind=MODEL, revision=revision)


def test_each_call_carries_its_own_token(
    fake: FakeHub, hub: HuggingFaceHub, tmp_path: Path, result: Publication, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Never one of the machine's, and none to where the files themselves are stored."""
    monkeypatch.setenv("HF_TOKEN", "hf_ofTheMachine")
    fake.add_model("acme/tiny", FILES)
    hub.download(hub.resolve("acme/tiny", kind=MODEL), tuple(FILES))
    assert {seen.authorization for seen in fake.seen if not seen.path.startswith("/storage/")} == {
        f"Bearer {READ_TOKEN}"
    }
    before = len(fake.seen)
    hub.publish(result, before_commit=nothing)
    assert {seen.authorization for seen in fake.seen[before:] if not seen.path.startswith("/upload/")} == {
        f"Bearer {WRITE_TOKEN}"
    }
    assert {seen.authorization for seen in fake.seen if seen.path.startswith(("/storage/", "/upload/"))} == {None}
    before = len(fake.seen)
    anonymous = with_tokens(fake, tmp_path / "other-cache")
    anonymous.download(anonymous.resolve("acme/tiny", kind=MODEL), tuple(FILES))
    assert {seen.authorization for seen in fake.seen[before:]} == {None}


def test_tokens_are_in_no_error_and_no_log(
    hub: HuggingFaceHub, fake: FakeHub, result: Publication, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    fake.add_model("acme/tiny", FILES)
    hub.resolve("acme/tiny", kind=MODEL)
    said: list[str] = []
    for value in (400, 401, 403, 404, 412, 500):
        fake.faults.clear()
        fake.fail(Fault.STATUS, value=value, times=-1, method="POST")
        with pytest.raises(ReplaceMeError) as caught:
            hub.publish(result, before_commit=nothing)
        said += [str(caught.value), repr(caught.value), str(caught.getrepr(chain=True, style="short"))]
    for text in (*said, caplog.text, repr(hub)):
        assert READ_TOKEN not in text
        assert WRITE_TOKEN not in text


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


def test_what_is_left_of_a_download_and_longer_than_the_file_is_fetched_again(
    hub: HuggingFaceHub, snapshot: Snapshot, tmp_path: Path
) -> None:
    left = tmp_path / "hub-cache/models--acme--tiny/blobs" / f"{hashlib.sha256(WEIGHTS).hexdigest()}.incomplete"
    left.parent.mkdir(parents=True)
    left.write_bytes(WEIGHTS + b"more")
    assert (hub.download(snapshot, ("model.safetensors",)) / "model.safetensors").read_bytes() == WEIGHTS


@pytest.mark.parametrize("path", [f"LICENSE-{'x' * 300}.txt", f"{'/'.join(['x' * 100] * 50)}/train.txt"])
def test_a_name_that_no_file_can_have_here_is_no_fault_of_the_machine(
    hub: HuggingFaceHub, fake: FakeHub, path: str
) -> None:
    """Another worker could not store it either."""
    fake.add_model("acme/long", {"config.json": b"{}", path: b"text"})
    with pytest.raises(InvalidInput, match=r"too long for this system while downloading \S+ of model acme/long"):
        hub.download(hub.resolve("acme/long", kind=MODEL), (path,))


@pytest.mark.parametrize(("path", "sent"), [("model.safetensors", STORAGE), ("tokenizer.json", "/resolve/.*tokenizer")])
def test_a_file_that_is_not_what_the_hub_lists_is_fetched_again(
    hub: HuggingFaceHub, fake: FakeHub, snapshot: Snapshot, tmp_path: Path, path: str, sent: str
) -> None:
    """A large file has a SHA-256, a small one git's own hash; in both cases the size is right. Once more, no more."""
    fake.fail(Fault.CORRUPT, sent, method="GET", times=-1)
    with pytest.raises(CorruptDownload, match="another content"):
        hub.download(snapshot, (path,))
    assert blobs(tmp_path / "hub-cache") == set()
    fake.faults.clear()
    fake.fail(Fault.CORRUPT, sent, method="GET")
    assert (hub.download(snapshot, (path,)) / path).read_bytes() == FILES[path]
    (tmp_path / "hub-cache/models--acme--tiny/snapshots" / snapshot.revision / path).resolve().write_bytes(b"half")
    assert (hub.download(snapshot, (path,)) / path).read_bytes() == FILES[path]


def test_a_wrong_etag_gives_no_wrong_file(hub: HuggingFaceHub, fake: FakeHub, snapshot: Snapshot) -> None:
    """The client library names blobs after it, so that one answer poisons the cache for another file."""
    fake.fail(Fault.WRONG_ETAG, times=-1)
    folder = hub.download(snapshot, ("model.safetensors", "tokenizer.json"))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
        name: FILES[name] for name in ("model.safetensors", "tokenizer.json")
    }


def test_more_than_the_hub_lists_is_not_written(
    hub: HuggingFaceHub, fake: FakeHub, snapshot: Snapshot, tmp_path: Path
) -> None:
    large = fake.store.put(WEIGHTS * 4, lfs=True)
    fake.store.object(large.sha256).replace(fake.store.object(hashlib.sha256(WEIGHTS).hexdigest()))
    with pytest.raises(CorruptDownload, match="more bytes"):
        hub.download(snapshot, ("model.safetensors",))
    assert blobs(tmp_path / "hub-cache") == set()


@pytest.mark.parametrize("path", [STORAGE, "^/api/models/"])
def test_a_byte_now_and_then_is_given_up(
    hub: HuggingFaceHub, fake: FakeHub, snapshot: Snapshot, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "SLOW_SECONDS", 0.5)
    fake.fail(Fault.DRIP, path, value=0.05)
    with pytest.raises(HubUnreachable, match="too slow"):
        hub.download(hub.resolve("acme/tiny", kind=MODEL), ("model.safetensors",))
    assert hub.download(hub.resolve("acme/tiny", kind=MODEL), ("model.safetensors",)).is_dir()


def test_a_reply_without_end_is_given_up(
    hub: HuggingFaceHub, fake: FakeHub, snapshot: Snapshot, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Packed, a few MB fill the memory of an API process. Files, which are received in parts, may be large."""
    fake.fail(Fault.INFLATE, "^/api/models/", value=client.LARGEST_REPLY)
    with pytest.raises(HubUnreachable, match="sent more than 67,108,864 bytes in a reply that is no file"):
        hub.resolve("acme/tiny", kind=MODEL)
    fake.fail(Fault.INFLATE, "^/api/models/", value=1_000_000)
    assert hub.resolve("acme/tiny", kind=MODEL) == snapshot
    monkeypatch.setattr(client, "LARGEST_REPLY", len(WEIGHTS) - 1)
    hub.download(snapshot, ("model.safetensors",))


def test_a_limit_says_when_to_come_back(hub: HuggingFaceHub, fake: FakeHub, snapshot: Snapshot) -> None:
    """At once: the client library sleeps for as long as the Hub says, and a cancel would wait for it."""
    for path in (STORAGE, "^/api/models/"):
        fake.fail(Fault.LIMIT, path, value=300)
        began = time.monotonic()
        with pytest.raises(RateLimited, match="wait for 300 s") as caught:
            hub.download(hub.resolve("acme/tiny", kind=MODEL), ("model.safetensors",))
        assert caught.value.retry_after == 300
        assert time.monotonic() - began < 300


@pytest.mark.parametrize("path", ["/commits/main$", "/preupload/main$", "^/upload/", COMMIT])
def test_a_hub_that_is_away_says_when_to_come_back(
    hub: HuggingFaceHub, fake: FakeHub, result: Publication, path: str
) -> None:
    """At once too."""
    fake.fail(Fault.AWAY, path, value=300)
    began = time.monotonic()
    with pytest.raises(HubUnreachable, match="wait for 300 s") as caught:
        hub.publish(result, before_commit=nothing)
    assert (caught.value.code, caught.value.retry_after) == ("hub_unreachable", 300)
    assert time.monotonic() - began < 300
    hub.publish(result, before_commit=nothing)
    assert len(fake.commits("tester/out")) == 2


@pytest.mark.parametrize("fault", [Fault.LIMIT, Fault.AWAY])
def test_a_time_to_wait_that_is_no_time(hub: HuggingFaceHub, fake: FakeHub, fault: Fault) -> None:
    fake.fail(fault, value=10**400)
    with pytest.raises(HubUnreachable) as caught:
        hub.resolve("acme/tiny", kind=MODEL)
    assert caught.value.retry_after == 10**9


def test_a_branch_that_moves_on_does_not_change_the_download(
    hub: HuggingFaceHub, fake: FakeHub, snapshot: Snapshot
) -> None:
    held = fake.fail(Fault.HOLD, STORAGE)
    found: list[Path] = []
    work = threading.Thread(target=lambda: found.append(hub.download(snapshot, tuple(FILES))))
    work.start()
    wait_until(held.reached.is_set, what="the download")
    fake.add_model("acme/tiny", {"config.json": b'{"newer": 1}', "model.safetensors": b"newer"})
    held.release()
    work.join(timeout=20)
    assert {path.name: path.read_bytes() for path in found[0].iterdir()} == FILES


def test_what_is_published(hub: HuggingFaceHub, fake: FakeHub, result: Publication) -> None:
    """Uploads are done when `before_commit` is called."""
    seen: list[tuple[int, int]] = []
    revision = hub.publish(result, before_commit=lambda: seen.append((fake.count("PUT"), fake.count("POST", COMMIT))))
    assert seen == [(1, 0)]
    assert (fake.count("PUT"), fake.count("POST", COMMIT)) == (1, 1)
    commit = fake.commits("tester/out")[-1]
    assert (commit.oid, commit.title, commit.message.splitlines()[-1]) == (
        revision,
        "Remove block 3",
        f"ReplaceMe-Job: {JOB}",
    )
    assert ".gitattributes" in commit.tree  # the Hub's own file stays
    hub.publish(replace(result, repo_id="tester/open", private=False), before_commit=nothing)
    assert [fake.store.repository("model", f"tester/{name}").private for name in ("out", "open")] == [True, False]


def test_a_gitignore_in_the_repository_leaves_nothing_out(
    hub: HuggingFaceHub, fake: FakeHub, result: Publication
) -> None:
    """The Hub names the files that it excludes, and the client library then leaves them out without an error."""
    fake.add_model("tester/out", {".gitignore": b"*.safetensors\ntokenizer.*\n", "config.json": b"theirs"})
    hub.publish(replace(result, create_pr=True), before_commit=nothing, may_replace=anything)
    (proposed,) = fake.store.repository("model", "tester/out").proposed
    assert FILES.keys() <= proposed.tree.keys()
    hub.publish(result, before_commit=nothing, may_replace=anything)
    assert proposed.tree.keys() - {".gitignore"} == fake.commits("tester/out")[-1].tree.keys()
    assert fake.content("tester/out", "model.safetensors") == WEIGHTS


CARD = """---
model-index:
- name: small
  results:
  - task: {type: text-generation}
    dataset: {type: %s, name: a text}
    metrics: [{type: perplexity, value: 2.5}]
---
"""


def test_a_card_that_the_hub_refuses_is_no_outage(hub: HuggingFaceHub, fake: FakeHub, tmp_path: Path) -> None:
    refused, taken = (
        publication(tmp_path / name, {**FILES, "README.md": (CARD % kind).encode()})
        for name, kind in (("refused", "file:text.txt"), ("taken", "file-text.txt"))
    )
    with pytest.raises(InvalidInput, match=r'"dataset\.type" .* fails to match'):
        hub.publish(refused, before_commit=nothing)
    assert fake.count("POST", COMMIT) == 0
    hub.publish(taken, before_commit=nothing)


@pytest.mark.parametrize("fault", [Fault.LOSE_REPLY, Fault.SPOIL_REPLY])
def test_a_lost_reply_does_not_commit_twice(
    hub: HuggingFaceHub, fake: FakeHub, result: Publication, fault: Fault
) -> None:
    """The connection breaks, or a proxy gives up on a commit that then stands."""
    fake.fail(fault, COMMIT, value=504)
    revision = hub.publish(result, before_commit=nothing)
    assert revision == fake.commits("tester/out")[-1].oid
    assert hub.publish(result, before_commit=nothing) == revision
    assert (fake.count("POST", COMMIT), len(fake.commits("tester/out"))) == (1, 2)


def test_a_commit_that_was_not_made_can_be_tried_again(hub: HuggingFaceHub, fake: FakeHub, result: Publication) -> None:
    fake.fail(Fault.DROP, COMMIT)
    with pytest.raises(HubUnreachable):
        hub.publish(result, before_commit=nothing)
    assert len(fake.commits("tester/out")) == 1
    hub.publish(result, before_commit=nothing)
    assert len(fake.commits("tester/out")) == 2
    assert fake.count("PUT") == 1  # the large file was there already


def test_a_commit_that_arrives_late_is_recognised(hub: HuggingFaceHub, fake: FakeHub, result: Publication) -> None:
    """An earlier try of this job lands between our look and our commit: 412, and the result is already there."""
    revisions: list[str] = []
    found = hub.publish(result, before_commit=lambda: revisions.append(hub.publish(result, before_commit=nothing)))
    assert [found] == revisions
    assert len(fake.commits("tester/out")) == 2


def test_a_failed_look_after_a_failed_commit_tells_of_the_commit(
    hub: HuggingFaceHub, fake: FakeHub, result: Publication
) -> None:
    def then_all_fails() -> None:
        fake.fail(Fault.STATUS, COMMIT, value=412)
        fake.fail(Fault.STATUS, "/commits/", value=403, times=-1)

    with pytest.raises(StaleParent):
        hub.publish(result, before_commit=then_all_fails)


def test_a_publication_is_found_behind_many_later_commits(
    hub: HuggingFaceHub, fake: FakeHub, result: Publication
) -> None:
    revision = hub.publish(result, before_commit=nothing)
    for number in range(60):
        fake.add_model("tester/out", {"README.md": str(number).encode()})
    assert hub.find_publication("tester/out", JOB) == revision


@pytest.mark.parametrize("fault", [None, Fault.LOSE_REPLY])
def test_a_pull_request_is_made_once_and_changes_nothing(
    hub: HuggingFaceHub, fake: FakeHub, result: Publication, fault: Fault | None
) -> None:
    fake.add_model("tester/out", {"config.json": b"theirs", "old.txt": b"old"})
    before = fake.commits("tester/out")
    if fault is not None:
        fake.fail(fault, COMMIT)
    asked = replace(result, create_pr=True)
    revision = hub.publish(asked, before_commit=nothing, may_replace=anything)
    assert hub.publish(asked, before_commit=nothing, may_replace=anything) == revision
    assert fake.commits("tester/out") == before
    (proposed,) = fake.store.repository("model", "tester/out").proposed
    assert (proposed.oid, proposed.tree.keys() - {".gitattributes"}) == (revision, FILES.keys())
    assert proposed.message.splitlines()[-1] == f"ReplaceMe-Job: {JOB}"
    assert hub.find_publication("tester/out", JOB) is None
    assert hub.find_publication("tester/out", JOB, create_pr=True) == revision
