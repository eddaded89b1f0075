"""One contract over both sides of the Hub port: the directory, and the real client against a Hub over a socket."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from replaceme_core.errors import BrokenModel, InvalidInput, LeaseLost, RepositoryNotFound, StaleParent
from replaceme_core.hub.port import (
    ExistingOutput,
    Hub,
    Publication,
    RepositoryFile,
    RepositoryKind,
    Snapshot,
    read_hub_json,
    replace_nothing,
)
from tests.fixtures.servers.hub import HubSide, SocketSide, anything, nothing, publication

MODEL, DATASET = RepositoryKind.MODEL, RepositoryKind.DATASET
CONFIG = b'{"model_type": "llama", "num_hidden_layers": 4}'
WEIGHTS = bytes(range(256)) * 700
FILES = {"config.json": CONFIG, "model.safetensors": WEIGHTS, "tokenizer.json": b"{}", "extra/notes.txt": b"notes"}
JOB = "6f1c"
THEIRS = {"config.json": b'{"theirs": 1}', "model.safetensors": b"their weights", "LICENSE": b"theirs"}

Publish = Callable[..., Publication]


@pytest.fixture
def tiny(hub: Hub, hub_side: HubSide) -> Snapshot:
    """A model."""
    hub_side.add_model("acme/tiny", FILES)
    return hub.resolve("acme/tiny", kind=MODEL)


@pytest.fixture
def result(hub: Hub, tmp_path: Path) -> Publish:
    """A publication of some files by a job."""

    def build(files: dict[str, bytes] | None = None, *, job_id: str = JOB) -> Publication:
        found = files or {"config.json": b"{}", "model.safetensors": WEIGHTS}
        made = publication(tmp_path / job_id, found, job_id=job_id)
        return replace(made, repo_id=f"{hub.namespace()}/small")

    return build


def test_resolve_pins_a_commit_and_lists_its_files(hub: Hub, tiny: Snapshot) -> None:
    assert len(tiny.revision) == 40
    assert set(tiny.revision) <= set("0123456789abcdef")
    assert not tiny.private
    assert {file for file in tiny.files if file.path != ".gitattributes"} == {
        RepositoryFile(path=path, size=len(content)) for path, content in FILES.items()
    }
    for revision in ("main", tiny.revision):
        assert hub.resolve("acme/tiny", kind=MODEL, revision=revision) == tiny


def test_models_and_data_sets_are_apart(hub: Hub, hub_side: HubSide) -> None:
    hub_side.add_dataset("acme/text", {"data/train.txt": b"once upon a time"})
    snapshot = hub.resolve("acme/text", kind=DATASET)
    assert not snapshot.private
    folder = hub.download(snapshot, ("data/train.txt",))
    assert (folder / "data/train.txt").read_bytes() == b"once upon a time"
    with pytest.raises(RepositoryNotFound, match="acme/text"):
        hub.resolve("acme/text", kind=MODEL)


@pytest.mark.parametrize("repo_id", ["acme/none", "nobody/none", "../../etc/passwd", "acme", "acme/a/b", ""])
@pytest.mark.usefixtures("tiny")
def test_a_repository_that_is_not_there(hub: Hub, repo_id: str) -> None:
    with pytest.raises(RepositoryNotFound):
        hub.resolve(repo_id, kind=MODEL)


@pytest.mark.parametrize("revision", ["dev", "0" * 40, "../main"])
@pytest.mark.usefixtures("tiny")
def test_a_revision_that_is_not_there(hub: Hub, revision: str) -> None:
    with pytest.raises(RepositoryNotFound):
        hub.resolve("acme/tiny", kind=MODEL, revision=revision)


@pytest.mark.parametrize("path", ["none.json", "../tiny/config.json", "/etc/passwd"])
def test_a_file_that_is_not_there(hub: Hub, tiny: Snapshot, path: str) -> None:
    with pytest.raises(RepositoryNotFound, match="has no file"):
        hub.download(tiny, ("config.json", path))
    with pytest.raises(RepositoryNotFound, match="has no file"):
        hub.read_range(tiny, path, start=0, end=8)


@pytest.mark.parametrize(("start", "end"), [(0, 8), (8, 300), (0, len(WEIGHTS)), (len(WEIGHTS) - 3, len(WEIGHTS) + 99)])
def test_a_part_of_a_file(hub: Hub, tiny: Snapshot, start: int, end: int) -> None:
    assert hub.read_range(tiny, "model.safetensors", start=start, end=end) == WEIGHTS[start:end]
    assert hub.read_range(tiny, "config.json", start=start, end=end) == CONFIG[start:end]


@pytest.mark.parametrize("content", [b"[1]", b"[" * 200_000, '{"a": 1}'.encode("utf-16")])
def test_what_is_not_a_json_object_is_a_broken_model(hub: Hub, hub_side: HubSide, content: bytes) -> None:
    hub_side.add_model("acme/tiny", {"config.json": content})
    snapshot = hub.resolve("acme/tiny", kind=MODEL)
    with pytest.raises(BrokenModel, match=r"config\.json"):
        read_hub_json(hub, snapshot, "config.json")


def test_json_may_be_nested_and_have_text_of_any_language(hub: Hub, hub_side: HubSide) -> None:
    content = b'{"a":' * 62 + '["é\\ud83d\\ude00"]'.encode() + b"}" * 62
    hub_side.add_model("acme/tiny", {"config.json": content})
    value: object = read_hub_json(hub, hub.resolve("acme/tiny", kind=MODEL), "config.json")
    while isinstance(value, dict):
        value = value["a"]
    assert value == ["é\N{GRINNING FACE}"]


def test_download_brings_named_files_and_tells_progress(hub: Hub, tiny: Snapshot) -> None:
    reported: list[float] = []
    folder = hub.download(tiny, ("model.safetensors", "extra/notes.txt"), advance=reported.append)
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    assert (folder / "extra/notes.txt").read_bytes() == b"notes"
    assert reported == sorted(reported)
    assert reported[-1] == 1.0


def test_progress_may_stop_a_download(hub: Hub, tiny: Snapshot) -> None:
    def stop(fraction: float) -> None:
        raise LeaseLost("another worker has this job")

    with pytest.raises(LeaseLost):
        hub.download(tiny, ("model.safetensors",), advance=stop)


def test_publish_makes_a_repository_with_one_commit(hub: Hub, hub_side: HubSide, result: Publish) -> None:
    calls: list[str] = []
    files = {"config.json": b"{}", "model.safetensors": WEIGHTS, "empty.txt": b"", "a/b.txt": b"x"}
    mine = result(files)
    assert hub.find_publication(mine.repo_id, JOB) is None
    assert hub.find_output(mine.repo_id) is None
    hub_side.add_dataset(mine.repo_id, {"a.txt": b"a data set has a name of its own"})
    assert hub.find_output(mine.repo_id) is None
    revision = hub.publish(mine, before_commit=lambda: calls.append("asked"))
    assert calls == ["asked"]
    snapshot = hub.resolve(mine.repo_id, kind=MODEL)
    assert snapshot.revision == hub.find_publication(mine.repo_id, JOB) == revision
    assert snapshot.private
    assert hub.find_publication(mine.repo_id, JOB[:-1]) is None
    assert hub.find_publication(f"{hub.namespace()}/other", JOB) is None
    assert hub_side.files(mine.repo_id) == files
    assert hub_side.publications(mine.repo_id) == 1
    found = ExistingOutput(repo_id=mine.repo_id, is_empty=False, stays_public=False, job_id="6f1c")
    assert hub.find_output(mine.repo_id) == found


def test_a_second_result_replaces_the_first_whole(hub: Hub, hub_side: HubSide, result: Publish) -> None:
    shards = {f"model-0000{n}-of-00002.safetensors": WEIGHTS + bytes([n]) for n in (1, 2)}
    first = hub.publish(result({"config.json": b"{}", **shards}), before_commit=nothing)
    one = result({"config.json": b'{"a": 1}', "model.safetensors": WEIGHTS}, job_id="77aa")
    second = hub.publish(one, before_commit=nothing, may_replace=anything)
    assert first != second
    assert hub_side.files(one.repo_id) == {"config.json": b'{"a": 1}', "model.safetensors": WEIGHTS}
    assert hub_side.publications(one.repo_id) == 2
    assert hub.find_publication(one.repo_id, JOB) == first
    assert hub.find_publication(one.repo_id, "77aa") == second


@pytest.mark.parametrize("there_before", [False, True])
def test_a_stopped_publication_leaves_nothing_to_see(
    hub: Hub, hub_side: HubSide, result: Publish, there_before: bool
) -> None:
    mine = result()
    if there_before:
        hub.publish(result({"old.txt": b"old"}, job_id="0000"), before_commit=nothing)

    def lost() -> None:
        raise LeaseLost("another worker has this job")

    with pytest.raises(LeaseLost):
        hub.publish(mine, before_commit=lost, may_replace=anything)
    assert hub_side.publications(mine.repo_id) == int(there_before)
    assert hub.find_publication(mine.repo_id, JOB) is None
    if there_before:
        assert hub_side.files(mine.repo_id) == {"old.txt": b"old"}
    (mine.folder / "config.json").write_bytes(b'{"tried": "again"}')
    may_replace = anything if there_before else replace_nothing
    revision = hub.publish(mine, before_commit=nothing, may_replace=may_replace)
    assert hub.publish(mine, before_commit=nothing) == revision, "it is never refused to itself, and made once"
    assert hub_side.publications(mine.repo_id) == 1 + there_before
    assert "model.safetensors" in hub_side.files(mine.repo_id)


def test_a_target_that_moved_on_is_not_overwritten(hub: Hub, hub_side: HubSide, result: Publish) -> None:
    """By another job where there was nothing, and by somebody after what was there had been shown."""
    mine, theirs = result(), result({"replaceme.json": b'{"job_id": "theirs"}'}, job_id="9999")

    def filled(existing: ExistingOutput) -> None:
        assert existing.job_id == "9999"
        hub_side.add_model(mine.repo_id, THEIRS)

    with pytest.raises(StaleParent):
        hub.publish(mine, before_commit=lambda: hub.publish(theirs, before_commit=nothing) and None)
    assert hub_side.files(mine.repo_id) == {"replaceme.json": b'{"job_id": "theirs"}'}
    with pytest.raises(StaleParent, match="changed by another writer"):
        hub.publish(mine, before_commit=nothing, may_replace=filled)
    assert hub_side.files(mine.repo_id).items() >= THEIRS.items()
    assert hub.find_publication(mine.repo_id, JOB) is None


def test_an_empty_result_is_refused(hub: Hub, result: Publish, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InvalidInput, match="no files"):
        hub.publish(replace(result(), folder=tmp_path / "empty"), before_commit=nothing)


def test_what_exists_is_shown_and_left_byte_for_byte(hub: Hub, hub_side: HubSide, result: Publish) -> None:
    """Unless it may be replaced."""
    mine = result()
    files = {**THEIRS, "replaceme.json": b'{"job_id": "their job"}'}
    hub_side.add_model(mine.repo_id, files)
    asked: list[str] = []
    with pytest.raises(InvalidInput, match="exists already"):
        hub.publish(mine, before_commit=lambda: asked.append("commit"))
    assert hub_side.files(mine.repo_id) == files
    assert hub_side.publications(mine.repo_id) == 0
    assert asked == [], "nothing is uploaded for a commit that is not made"
    shown: list[ExistingOutput] = []
    hub.publish(mine, before_commit=nothing, may_replace=shown.append)
    (existing,) = shown
    assert (existing.repo_id, existing.is_empty, existing.job_id) == (mine.repo_id, False, None), "a report is no proof"
    assert hub_side.files(mine.repo_id).keys() == {"config.json", "model.safetensors"}


def test_a_result_that_was_changed_since_is_no_jobs_own(hub: Hub, hub_side: HubSide, result: Publish) -> None:
    report = {"replaceme.json": b'{"job_id": "6f1c"}', "model.safetensors": WEIGHTS}
    mine, again = result(report), result(report, job_id="77aa")
    hub.publish(mine, before_commit=nothing)
    hub_side.add_model(mine.repo_id, {"notes.md": b"somebody's"})
    shown: list[ExistingOutput] = []
    hub.publish(again, before_commit=nothing, may_replace=shown.append)
    hub_side.add_model(mine.repo_id, {"notes.md": b"somebody's"})
    assert [existing and existing.job_id for existing in (*shown, hub.find_output(mine.repo_id))] == [None, None]


def test_the_owner_reads_what_was_published(hub: Hub, result: Publish) -> None:
    mine = result()
    revision = hub.publish(mine, before_commit=nothing)
    owner = hub.as_writer()
    snapshot = owner.resolve(mine.repo_id, kind=MODEL, revision=revision)
    assert read_hub_json(owner, snapshot, "config.json") == {}
    assert owner.read_range(snapshot, "model.safetensors", start=3, end=9) == WEIGHTS[3:9]


def test_an_existing_public_repository_stays_public(socket_side: SocketSide) -> None:
    hub, fake = socket_side.hub, socket_side.fake
    fake.add_model("tester/open", {"config.json": b"{}"})
    found = hub.find_output("tester/open")
    assert found == ExistingOutput(repo_id="tester/open", is_empty=False, stays_public=True, job_id=None)
    assert hub.find_output("tester/none") is None
