"""The real client against a Hub that refuses, hangs, breaks off and loses replies."""

import logging
import os
from pathlib import Path

import httpx2
import pytest
from huggingface_hub import close_session

from benchmarks.harness.fake_hub.access import READ_TOKEN, STRANGER_TOKEN, WRITE_TOKEN
from benchmarks.harness.fake_hub.faults import Fault
from benchmarks.harness.fake_hub.server import FakeHub
from replaceme_core.errors import (
    AccessDenied,
    DisabledRepository,
    GatedRepository,
    HubUnreachable,
    InvalidInput,
    OutOfSpace,
    ReplaceMeError,
    RepositoryNotFound,
)
from replaceme_core.hub import client, huggingface
from replaceme_core.hub.huggingface import HuggingFaceHub
from replaceme_core.hub.port import Publication, RepositoryFile, RepositoryKind, Snapshot
from tests.fixtures.hostile.replies import REPLIES
from tests.fixtures.servers.hub import SocketSide, nothing, publication

MODEL = RepositoryKind.MODEL
WEIGHTS = os.urandom(3_000_000)
FILES = {"config.json": b"{}", "model.safetensors": WEIGHTS, "tokenizer.json": b'{"a": 1}'}
TRAILER = "ReplaceMe-Job: 6f1c"


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


def with_tokens(fake: FakeHub, cache: Path, read: str | None = None, write: str | None = None) -> HuggingFaceHub:
    return HuggingFaceHub(fake.url, read_token=read, write_token=write, cache=cache)


# Reading


def test_resolve_is_one_request(hub: HuggingFaceHub, fake: FakeHub) -> None:
    commit = fake.add_model("acme/tiny", FILES)
    assert hub.resolve("acme/tiny", kind=MODEL).revision == commit.oid
    assert fake.count() == 1


def test_an_older_commit_can_be_read(hub: HuggingFaceHub, fake: FakeHub) -> None:
    old = fake.add_model("acme/tiny", {"config.json": b'{"old": true}'})
    fake.add_model("acme/tiny", {"config.json": b"{}"})
    snapshot = hub.resolve("acme/tiny", kind=MODEL, revision=old.oid)
    assert hub.read_json(snapshot, "config.json") == {"old": True}


def test_what_is_here_is_not_fetched_again(hub: HuggingFaceHub, fake: FakeHub) -> None:
    fake.add_model("acme/tiny", FILES)
    snapshot = hub.resolve("acme/tiny", kind=MODEL)
    folder = hub.download(snapshot, tuple(FILES))
    asked = fake.count()
    assert hub.download(snapshot, tuple(FILES)) == folder
    assert fake.count() == asked


def test_a_download_that_breaks_off_is_resumed(hub: HuggingFaceHub, fake: FakeHub) -> None:
    fake.add_model("acme/tiny", FILES)
    snapshot = hub.resolve("acme/tiny", kind=MODEL)
    fake.fail(Fault.TRUNCATE, "^/storage/", value=1_048_576)
    reported: list[float] = []
    folder = hub.download(snapshot, ("model.safetensors",), advance=reported.append)
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    assert [seen.range for seen in fake.seen if seen.path.startswith("/storage/")] == [None, "bytes=1048576-"]
    assert reported == sorted(reported)


def test_a_file_of_the_wrong_size_is_fetched_again(hub: HuggingFaceHub, fake: FakeHub) -> None:
    fake.add_model("acme/tiny", FILES)
    snapshot = hub.resolve("acme/tiny", kind=MODEL)
    folder = hub.download(snapshot, ("model.safetensors",))
    (folder / "model.safetensors").resolve().write_bytes(b"half")
    assert (hub.download(snapshot, ("model.safetensors",)) / "model.safetensors").read_bytes() == WEIGHTS


def test_a_file_that_never_has_its_size_is_an_error(hub: HuggingFaceHub, fake: FakeHub) -> None:
    fake.add_model("acme/tiny", FILES)
    listed = hub.resolve("acme/tiny", kind=MODEL)
    wrong = Snapshot(
        repo_id=listed.repo_id,
        kind=listed.kind,
        revision=listed.revision,
        files=(RepositoryFile(path="config.json", size=3, digest="0" * 40),),
        private=False,
    )
    with pytest.raises(HubUnreachable, match="has 2 bytes after the download, the Hub lists 3"):
        hub.download(wrong, ("config.json",))


@pytest.mark.parametrize("fault", [Fault.DROP, Fault.STATUS])
def test_a_hub_that_fails_is_unreachable(hub: HuggingFaceHub, fake: FakeHub, fault: Fault) -> None:
    fake.add_model("acme/tiny", FILES)
    fake.fail(fault, value=503, times=-1)
    with pytest.raises(HubUnreachable, match="looking up model acme/tiny"):
        hub.resolve("acme/tiny", kind=MODEL)


def test_no_hub_at_all(hub: HuggingFaceHub, fake: FakeHub, result: Publication) -> None:
    fake.stop()
    close_session()
    with pytest.raises(HubUnreachable, match="cannot be reached"):
        hub.resolve("acme/tiny", kind=MODEL)
    with pytest.raises(HubUnreachable, match="cannot be reached"):
        hub.publish(result, before_commit=nothing)
    with pytest.raises(HubUnreachable, match="cannot be reached"):
        hub.namespace()


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


def test_something_else_than_a_hub(hub: HuggingFaceHub, fake: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    fake.fail(Fault.STATUS, value=200)  # a page of some other kind
    with pytest.raises(HubUnreachable, match="answer cannot be used"):
        hub.resolve("acme/tiny", kind=MODEL)


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


@pytest.mark.parametrize("owner", ["../..", "a/b", "\ud800", "", 7, None])
def test_an_account_without_a_name_is_refused(hub: HuggingFaceHub, fake: FakeHub, owner: object) -> None:
    fake.fail(Fault.REWRITE, "/whoami").change = lambda reply: reply.update(name=owner)
    with pytest.raises(HubUnreachable):
        hub.namespace()


def test_no_space_for_a_download(hub: HuggingFaceHub, fake: FakeHub) -> None:
    fake.add_model("acme/tiny", FILES)
    listed = hub.resolve("acme/tiny", kind=MODEL)
    huge = Snapshot(
        repo_id=listed.repo_id,
        kind=listed.kind,
        revision=listed.revision,
        files=(RepositoryFile(path="config.json", size=1 << 60, digest="0" * 40),),
        private=False,
    )
    with pytest.raises(OutOfSpace, match="are free"):
        hub.download(huge, ("config.json",))


# Who may


def test_private_models_need_a_token_that_may(fake: FakeHub, tmp_path: Path) -> None:
    fake.add_model("acme/secret", FILES, private=True)
    for token in (None, STRANGER_TOKEN):
        with pytest.raises(RepositoryNotFound, match="acme/secret"):
            with_tokens(fake, tmp_path, token).resolve("acme/secret", kind=MODEL)
    hub = with_tokens(fake, tmp_path, READ_TOKEN)
    folder = hub.download(hub.resolve("acme/secret", kind=MODEL), ("config.json", "model.safetensors"))
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS


def test_a_wrong_token_is_denied(fake: FakeHub, tmp_path: Path) -> None:
    hub = with_tokens(fake, tmp_path, "hf_expired", "hf_expired")
    with pytest.raises(AccessDenied):
        hub.resolve("acme/tiny", kind=MODEL)
    with pytest.raises(AccessDenied):
        hub.namespace()


def test_gated_models_are_denied(fake: FakeHub, tmp_path: Path) -> None:
    fake.add_model("acme/gated", FILES)
    fake.store.repository("model", "acme/gated").gated = True
    fake.add_dataset("acme/gated", {"train.txt": b"text"})
    fake.store.repository("dataset", "acme/gated").gated = True
    for kind in RepositoryKind:  # the list of its files is open to all
        with pytest.raises(GatedRepository, match="accept its conditions"):
            with_tokens(fake, tmp_path, STRANGER_TOKEN).resolve("acme/gated", kind=kind)
        assert with_tokens(fake, tmp_path, READ_TOKEN).resolve("acme/gated", kind=kind).files


def test_disabled_models_are_denied(fake: FakeHub, hub: HuggingFaceHub) -> None:
    fake.add_model("acme/closed", FILES)
    fake.store.repository("model", "acme/closed").disabled = True
    with pytest.raises(DisabledRepository, match="disabled"):
        hub.resolve("acme/closed", kind=MODEL)


def test_publishing_needs_a_write_token(fake: FakeHub, tmp_path: Path, result: Publication) -> None:
    for write in (None, READ_TOKEN):
        with pytest.raises(AccessDenied, match="token"):
            with_tokens(fake, tmp_path / "cache", READ_TOKEN, write).publish(result, before_commit=nothing)
    with pytest.raises(AccessDenied, match="none is set"):
        with_tokens(fake, tmp_path / "cache").namespace()
    elsewhere = Publication(folder=result.folder, repo_id="nobody/x", private=True, title="t", trailer=TRAILER)
    with pytest.raises(AccessDenied):
        with_tokens(fake, tmp_path / "cache", write=WRITE_TOKEN).publish(elsewhere, before_commit=nothing)


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
