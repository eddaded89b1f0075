"""What was there before a publication: both sides of the port tell it and leave it alone."""

import json
from pathlib import Path

import pytest

from benchmarks.harness.fake_hub.faults import Fault
from replaceme_core.errors import InvalidInput
from replaceme_core.hub.port import ExistingOutput, Hub, Publication, RepositoryKind
from tests.fixtures.servers.hub import HubSide, SocketSide, anything, nothing

THEIRS = {"config.json": b'{"theirs": 1}', "model.safetensors": b"their weights", "LICENSE": b"theirs"}
MODEL = RepositoryKind.MODEL


@pytest.fixture
def result(hub: Hub, tmp_path: Path) -> Publication:
    folder = tmp_path / "result"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"our weights")
    return Publication(
        folder=folder, repo_id=f"{hub.namespace()}/out", private=True, title="t", trailer="ReplaceMe-Job: 1"
    )


def test_what_exists_is_left_byte_for_byte(hub: Hub, hub_side: HubSide, result: Publication) -> None:
    hub_side.add_model(result.repo_id, THEIRS)
    asked: list[str] = []
    with pytest.raises(InvalidInput, match="exists already"):
        hub.publish(result, before_commit=lambda: asked.append("commit"))
    assert hub_side.files(result.repo_id) == THEIRS
    assert hub_side.publications(result.repo_id) == 0
    assert asked == [], "nothing is uploaded for a commit that is not made"


def test_what_is_replaced_is_shown_first(hub: Hub, hub_side: HubSide, result: Publication) -> None:
    files = {**THEIRS, "replaceme.json": json.dumps({"job_id": "their job"}).encode()}
    hub_side.add_model(result.repo_id, files)
    shown: list[ExistingOutput] = []
    hub.publish(result, before_commit=nothing, may_replace=shown.append)
    (existing,) = shown
    assert (existing.repo_id, existing.is_empty, existing.job_id) == (result.repo_id, False, "their job")
    assert hub_side.files(result.repo_id).keys() == {"config.json", "model.safetensors"}


def test_a_repository_that_is_filled_meanwhile_is_left(hub: Hub, hub_side: HubSide, result: Publication) -> None:
    hub_side.add_model(result.repo_id, {"replaceme.json": b'{"job_id": "mine"}'})

    def filled(existing: ExistingOutput) -> None:
        assert existing.job_id == "mine"
        hub_side.add_model(result.repo_id, THEIRS)

    with pytest.raises(Exception, match="changed by another writer"):
        hub.publish(result, before_commit=nothing, may_replace=filled)
    assert hub_side.files(result.repo_id).items() >= THEIRS.items()


def test_find_output(hub: Hub, hub_side: HubSide, result: Publication) -> None:
    assert hub.find_output(result.repo_id) is None
    hub_side.add_dataset(result.repo_id, {"a.txt": b"a data set has a name of its own"})
    assert hub.find_output(result.repo_id) is None
    hub.publish(result, before_commit=nothing)
    found = hub.find_output(result.repo_id)
    assert found == ExistingOutput(repo_id=result.repo_id, is_empty=False, stays_public=False, job_id=None)


def test_the_publication_of_a_job_is_never_refused_to_itself(hub: Hub, hub_side: HubSide, result: Publication) -> None:
    """Also where its first try was cut off between the creation of the repository and the commit."""
    with pytest.raises(ZeroDivisionError):
        hub.publish(result, before_commit=lambda: divmod(1, 0))  # type: ignore[arg-type,return-value]
    revision = hub.publish(result, before_commit=nothing)
    assert hub.publish(result, before_commit=nothing) == revision
    assert hub_side.publications(result.repo_id) == 1


def test_a_source_says_whether_it_is_private(hub: Hub, hub_side: HubSide, result: Publication) -> None:
    hub_side.add_model("acme/open", THEIRS)
    hub_side.add_dataset("acme/text", {"a.txt": b"text"})
    assert not hub.resolve("acme/open", kind=MODEL).private
    assert not hub.resolve("acme/text", kind=RepositoryKind.DATASET).private
    hub.publish(result, before_commit=nothing)
    assert hub.resolve(result.repo_id, kind=MODEL).private


def test_an_existing_public_repository_stays_public(socket_side: SocketSide) -> None:
    hub, fake = socket_side.hub, socket_side.fake
    fake.add_model("tester/open", {"replaceme.json": b'{"job_id": "mine"}'})
    found = hub.find_output("tester/open")
    assert found == ExistingOutput(repo_id="tester/open", is_empty=False, stays_public=True, job_id="mine")
    assert hub.find_output("tester/none") is None


def test_the_hub_says_what_is_private(socket_side: SocketSide) -> None:
    hub, fake = socket_side.hub, socket_side.fake
    fake.add_model("acme/secret", THEIRS, private=True)
    fake.add_dataset("acme/words", {"a.txt": b"text"}, private=True)
    assert hub.resolve("acme/secret", kind=MODEL).private
    assert hub.resolve("acme/words", kind=RepositoryKind.DATASET).private


def test_a_lost_reply_is_still_found(socket_side: SocketSide, result_on_socket: Publication) -> None:
    hub, fake = socket_side.hub, socket_side.fake
    fake.add_model(result_on_socket.repo_id, {"replaceme.json": b'{"job_id": "mine"}'})
    fake.fail(Fault.LOSE_REPLY, r"/commit/main$")
    revision = hub.publish(result_on_socket, before_commit=nothing, may_replace=anything)
    assert revision == fake.commits(result_on_socket.repo_id)[-1].oid
    assert hub.publish(result_on_socket, before_commit=nothing) == revision


@pytest.fixture
def result_on_socket(tmp_path: Path) -> Publication:
    folder = tmp_path / "result"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    return Publication(folder=folder, repo_id="tester/out", private=True, title="t", trailer="ReplaceMe-Job: 1")
