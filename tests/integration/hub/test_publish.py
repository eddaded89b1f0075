"""What the real client leaves on a Hub, also where replies are lost and others commit meanwhile."""

import hashlib
import os
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.harness.fake_hub.faults import Fault
from benchmarks.harness.fake_hub.server import FakeHub
from replaceme_core.errors import (
    AccessDenied,
    HubUnreachable,
    InvalidInput,
    RepositoryNotFound,
    StaleParent,
)
from replaceme_core.hub.huggingface import HuggingFaceHub
from replaceme_core.hub.port import Publication
from tests.fixtures.servers.hub import SocketSide, anything, nothing, publication

WEIGHTS = os.urandom(3_000_000)
FILES = {"config.json": b"{}", "model.safetensors": WEIGHTS, "tokenizer.json": b'{"a": 1}'}
TRAILER = "ReplaceMe-Job: 6f1c"
COMMIT = r"/commit/main$"


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


def test_a_result_is_private_unless_asked_otherwise(hub: HuggingFaceHub, fake: FakeHub, result: Publication) -> None:
    hub.publish(result, before_commit=nothing)
    assert fake.store.repository("model", "tester/out").private
    public = Publication(folder=result.folder, repo_id="tester/open", private=False, title="t", trailer=TRAILER)
    hub.publish(public, before_commit=nothing)
    assert not fake.store.repository("model", "tester/open").private


def test_what_the_commit_says(hub: HuggingFaceHub, fake: FakeHub, result: Publication) -> None:
    revision = hub.publish(result, before_commit=nothing)
    commit = fake.commits("tester/out")[-1]
    assert (commit.oid, commit.title, commit.message.splitlines()[-1]) == (revision, "Remove block 3", TRAILER)
    assert ".gitattributes" in commit.tree  # the Hub's own file stays


def test_uploads_are_done_when_before_commit_is_asked(hub: HuggingFaceHub, fake: FakeHub, result: Publication) -> None:
    seen: list[tuple[int, int]] = []
    hub.publish(result, before_commit=lambda: seen.append((fake.count("PUT"), fake.count("POST", COMMIT))))
    assert seen == [(1, 0)]
    assert (fake.count("PUT"), fake.count("POST", COMMIT)) == (1, 1)


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

    def land() -> None:
        revisions.append(hub.publish(result, before_commit=nothing))

    revisions: list[str] = []
    assert [hub.publish(result, before_commit=land)] == revisions
    assert len(fake.commits("tester/out")) == 2


def test_a_failed_look_after_a_failed_commit_tells_of_the_commit(
    hub: HuggingFaceHub, fake: FakeHub, result: Publication
) -> None:
    def then_all_fails() -> None:
        fake.fail(Fault.STATUS, COMMIT, value=412)
        fake.fail(Fault.STATUS, "/commits/", value=403, times=-1)

    with pytest.raises(StaleParent):
        hub.publish(result, before_commit=then_all_fails)


def test_a_commit_of_what_was_not_uploaded_is_refused(hub: HuggingFaceHub, fake: FakeHub, result: Publication) -> None:
    def lose() -> None:
        fake.store.object(hashlib.sha256(WEIGHTS).hexdigest()).unlink()

    with pytest.raises(InvalidInput, match="does not exist"):
        hub.publish(result, before_commit=lose)
    assert len(fake.commits("tester/out")) == 1


def test_an_upload_that_is_refused(hub: HuggingFaceHub, fake: FakeHub, result: Publication) -> None:
    fake.fail(Fault.STATUS, "^/upload/", value=403, times=-1)
    with pytest.raises(AccessDenied, match="publishing to tester/out"):
        hub.publish(result, before_commit=nothing)
    assert fake.count("POST", COMMIT) == 0


def test_the_same_content_under_a_new_job(
    hub: HuggingFaceHub, fake: FakeHub, result: Publication, tmp_path: Path
) -> None:
    first = hub.publish(result, before_commit=nothing)
    again = publication(tmp_path / "again", FILES, trailer="ReplaceMe-Job: 2222")
    assert hub.publish(again, before_commit=nothing, may_replace=anything) == first  # there is nothing to commit


def test_a_trailer_is_found_behind_many_later_commits(hub: HuggingFaceHub, fake: FakeHub, result: Publication) -> None:
    revision = hub.publish(result, before_commit=nothing)
    for number in range(60):
        fake.add_model("tester/out", {"README.md": str(number).encode()})
    assert hub.find_publication("tester/out", TRAILER) == revision


def test_a_model_card_with_a_broken_header_is_reported(hub: HuggingFaceHub, fake: FakeHub, tmp_path: Path) -> None:
    broken = publication(tmp_path / "broken", {"README.md": b"---\na: [\n---\n", "config.json": b"{}"})
    with pytest.raises(InvalidInput, match="flow node"):
        hub.publish(broken, before_commit=nothing)
    assert fake.count("POST", COMMIT) == 0


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
    assert proposed.message.splitlines()[-1] == TRAILER
    assert hub.find_publication("tester/out", TRAILER) is None
    assert hub.find_publication("tester/out", TRAILER, create_pr=True) == revision


def test_a_pull_request_needs_a_repository(hub: HuggingFaceHub, fake: FakeHub, result: Publication) -> None:
    with pytest.raises(RepositoryNotFound):
        hub.publish(replace(result, create_pr=True), before_commit=nothing)
    assert fake.count("POST", "/api/repos/create") == 0
