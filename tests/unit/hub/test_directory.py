"""What only the directory hub does: content hashes, links, crashes, space; and which Hub the settings name."""

import errno
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from replaceme_core.errors import (
    AccessDenied,
    HubUnreachable,
    InvalidInput,
    LeaseLost,
    OutOfSpace,
    RepositoryNotFound,
)
from replaceme_core.hub import directory as hub_journal
from replaceme_core.hub import files as hub_files
from replaceme_core.hub.directory import DirectoryHub
from replaceme_core.hub.huggingface import HuggingFaceHub
from replaceme_core.hub.port import Publication, RepositoryKind, read_hub_json
from replaceme_core.settings import Settings
from tests.fixtures.servers.hub import DirectorySide, anything, nothing, publication

MODEL = RepositoryKind.MODEL
CRASH = """
import os, pathlib, signal, sys
from replaceme_core.hub.directory import DirectoryHub
from replaceme_core.hub.port import Publication

def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

def before_commit():
    calls = 0
    what, number = sys.argv[3].split(":")
    if what == "before_commit":
        die()
    original = getattr(pathlib.Path, what)
    def counted(self, *args, **kwargs):
        nonlocal calls
        if self.suffix in (".new", ".old", ".json", "") and not self.name.endswith(".jsonl"):
            calls += 1
            if calls == int(number):
                die()
        return original(self, *args, **kwargs)
    setattr(pathlib.Path, what, counted)

hub = DirectoryHub(pathlib.Path(sys.argv[1]))
hub.publish(
    Publication(folder=pathlib.Path(sys.argv[2]), repo_id=sys.argv[4], private=True, title="t", job_id="new"),
    before_commit=before_commit,
    may_replace=lambda existing: None,
)
"""


RESULT = {"config.json": b"{}", "model.safetensors": b"w" * 1000}
OUT, NEW = "tester/out", "new"


@pytest.fixture
def result(tmp_path: Path) -> Publication:
    return publication(tmp_path / "result", RESULT, job_id=NEW)


def staged_directories(side: DirectorySide) -> list[str]:
    return [path.name for path in (side.root / OUT).parent.iterdir() if path.name.startswith(".")]


def test_the_revision_follows_the_content(directory_side: DirectorySide) -> None:
    contents = [{"a": b"1"}, {"a": b"2"}, {"b": b"1"}, {"a": b"1", "b": b""}, {"a": b"", "b": b"1"}, {"c/a": b"1"}]
    revisions: list[str] = []
    for owner in ("acme", "other"):
        for number, files in enumerate(contents):
            directory_side.add_model(f"{owner}/n{number}", files)
            revisions.append(directory_side.hub.resolve(f"{owner}/n{number}", kind=MODEL).revision)
    assert revisions[: len(contents)] == revisions[len(contents) :]
    assert len(set(revisions)) == len(contents)


def test_an_old_revision_is_gone(directory_side: DirectorySide) -> None:
    hub = directory_side.hub
    directory_side.add_model("acme/x", {"config.json": b"{}"})
    old = hub.resolve("acme/x", kind=MODEL)
    directory_side.add_model("acme/x", {"config.json": b"{1}"})
    with pytest.raises(RepositoryNotFound):
        hub.resolve("acme/x", kind=MODEL, revision=old.revision)
    with pytest.raises(RepositoryNotFound):
        hub.download(old, ("config.json",))


def test_what_is_read_costs_nothing_of_the_other_files(directory_side: DirectorySide) -> None:
    hub, place = directory_side.hub, directory_side.root / "acme/x"
    directory_side.add_model("acme/x", {"a": b"12", "b": b"1", **{f"more/{n}": b"" for n in range(2_000)}})
    began = time.process_time()
    snapshot = hub.resolve("acme/x", kind=MODEL)
    assert time.process_time() - began < 5
    began = time.process_time()
    assert [hub.read_range(snapshot, "a", start=1, end=9) for _ in range(100)] == [b"2"] * 100
    assert time.process_time() - began < 1
    (place / "b").write_bytes(b"2")
    assert hub.read_range(snapshot, "a", start=0, end=1) == b"1"
    with pytest.raises(RepositoryNotFound, match=f"no file 'b' at {snapshot.revision}"):
        hub.read_range(snapshot, "b", start=0, end=1)


def test_a_repository_of_too_many_files(directory_side: DirectorySide, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_files, "MOST_FILES", 4)
    directory_side.add_model("acme/x", {"a/b": b"1", "a/c": b"1", "d": b"1"})
    assert len(directory_side.hub.resolve("acme/x", kind=MODEL).files) == 3
    directory_side.add_model("acme/x", {"a/e": b"1"})
    with pytest.raises(InvalidInput, match="more than 4 files and folders"):
        directory_side.hub.resolve("acme/x", kind=MODEL)


def test_files_are_hashed_once(directory_side: DirectorySide, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also by another process: what is known lies on disk, outside of the repository."""
    monkeypatch.setattr(hub_journal, "_SETTLED_NS", -1)
    directory_side.add_model("acme/x", {"a": b"1", "b": b"2"})
    first = directory_side.hub.resolve("acme/x", kind=MODEL)
    hashed: list[str] = []

    def spy(path: Path) -> str:
        hashed.append(path.name)
        return hub_files.sha256_of(path)

    monkeypatch.setattr(hub_journal, "sha256_of", spy)
    assert directory_side.hub.resolve("acme/x", kind=MODEL) == first
    assert DirectoryHub(directory_side.root).resolve("acme/x", kind=MODEL) == first
    assert hashed == []
    directory_side.add_model("acme/x", {"b": b"3"})
    assert DirectoryHub(directory_side.root).resolve("acme/x", kind=MODEL) != first
    assert hashed == ["b"]
    assert sorted(path.name for path in (directory_side.root / "acme/x").iterdir()) == ["a", "b"]


def test_a_file_that_has_just_changed_is_not_trusted(directory_side: DirectorySide) -> None:
    """Same size, same time stamps as a clock of low resolution would give them."""
    directory_side.add_model("acme/x", {"a": b"1"})
    first = directory_side.hub.resolve("acme/x", kind=MODEL)
    path = directory_side.root / "acme/x/a"
    facts = path.stat()
    path.write_bytes(b"2")
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    assert directory_side.hub.resolve("acme/x", kind=MODEL) != first


def test_a_repository_that_is_a_link_out_is_refused(directory_side: DirectorySide, tmp_path: Path) -> None:
    """As are links in one: `tests/fixtures/hostile`."""
    (tmp_path / "outside").mkdir()
    (directory_side.root / "acme").mkdir()
    (directory_side.root / "acme/y").symlink_to(tmp_path / "outside")
    with pytest.raises(AccessDenied, match="link"):
        directory_side.hub.resolve("acme/y", kind=MODEL)


@pytest.mark.parametrize("is_link", [False, True])
def test_what_is_no_folder_is_not_replaced(directory_side: DirectorySide, result: Publication, is_link: bool) -> None:
    there = directory_side.root / OUT
    there.parent.mkdir()
    if is_link:
        there.symlink_to("nowhere")
    else:
        there.write_text("theirs")
    with pytest.raises(InvalidInput, match=f"{OUT} is a file"):
        directory_side.hub.find_output(OUT)
    with pytest.raises(InvalidInput, match=f"{OUT} is a file"):
        directory_side.hub.publish(result, before_commit=nothing)
    assert [path.name for path in there.parent.iterdir()] == [there.name]


def test_a_link_inside_the_repository_is_a_file(directory_side: DirectorySide) -> None:
    directory_side.add_model("acme/x", {"config.json": b"{}"})
    (directory_side.root / "acme/x/same.json").symlink_to("config.json")
    snapshot = directory_side.hub.resolve("acme/x", kind=MODEL)
    assert read_hub_json(directory_side.hub, snapshot, "same.json") == {}


def test_asking_for_what_is_not_there_leaves_no_trace(directory_side: DirectorySide) -> None:
    with pytest.raises(RepositoryNotFound):
        directory_side.hub.resolve("acme/none", kind=MODEL)
    assert directory_side.hub.find_publication("acme/none", "1") is None
    assert list(directory_side.root.iterdir()) == []


def test_a_deleted_result_may_be_published_again(directory_side: DirectorySide, result: Publication) -> None:
    revision = directory_side.hub.publish(result, before_commit=nothing)
    (directory_side.root / OUT).rename(directory_side.root / "moved-away")
    assert directory_side.hub.find_publication(OUT, NEW) is None
    assert directory_side.hub.publish(result, before_commit=nothing) == revision
    assert directory_side.hub.find_publication(OUT, NEW) == revision


def publish_and_crash(
    side: DirectorySide, result: Publication, crash: str, repo_id: str
) -> subprocess.CompletedProcess[bytes]:
    arguments = [sys.executable, "-c", CRASH, str(side.root), str(result.folder), crash, repo_id]
    return subprocess.run(arguments, check=False, timeout=60)


def test_what_a_killed_publisher_left_of_another_repository_is_not_removed(
    directory_side: DirectorySide, result: Publication
) -> None:
    longer = f"{OUT}.b"
    assert publish_and_crash(directory_side, result, "rename:1", longer).returncode == -signal.SIGKILL
    directory_side.hub.publish(result, before_commit=nothing)
    assert directory_side.hub.find_publication(longer, NEW) is not None
    assert directory_side.files(longer) == RESULT


@pytest.mark.parametrize("there_before", [False, True])
@pytest.mark.parametrize("crash", ["before_commit:0", "rename:1", "rename:2", "unlink:1"])
def test_a_killed_publisher_leaves_the_old_or_the_new(
    directory_side: DirectorySide, result: Publication, crash: str, there_before: bool, tmp_path: Path
) -> None:
    hub = directory_side.hub
    if there_before:
        hub.publish(publication(tmp_path / "old", {"old.txt": b"old"}, job_id="old"), before_commit=nothing)
    ended = publish_and_crash(directory_side, result, crash, OUT)
    if ended.returncode == 0:  # with nothing to move aside there is no second rename
        assert (crash, there_before) == ("rename:2", False)
    else:
        assert ended.returncode == -signal.SIGKILL
    committed = crash != "before_commit:0"
    found = hub.find_publication(OUT, NEW)
    assert (found is not None) == committed
    if committed:
        assert hub.resolve(OUT, kind=MODEL).revision == found
    elif there_before:
        assert hub.resolve(OUT, kind=MODEL).has("old.txt")
    again = hub.publish(result, before_commit=nothing, may_replace=anything)
    assert again == (found or hub.resolve(OUT, kind=MODEL).revision)
    assert directory_side.publications(OUT) == 1 + there_before
    assert directory_side.files(OUT) == RESULT
    hub.publish(replace(result, job_id="next"), before_commit=nothing, may_replace=anything)
    assert staged_directories(directory_side) == []


def test_a_line_of_the_log_that_was_cut_short(directory_side: DirectorySide, result: Publication) -> None:
    """By a full disk: the commit is still pending. By a power loss: it may be gone, and the others are not."""
    hub, records = directory_side.hub, directory_side.root / ".commits/models" / OUT
    first = hub.publish(result, before_commit=nothing)
    second = hub.publish(replace(result, job_id="next"), before_commit=nothing, may_replace=anything)
    log = records / "commits.jsonl"
    whole = log.read_text()
    log.write_text(whole[:-20])
    assert hub.resolve(OUT, kind=MODEL).revision == second
    assert [hub.find_publication(OUT, job) for job in (NEW, "next")] == [first, None]
    (records / "pending.json").write_text(whole.splitlines()[-1])
    assert [hub.find_publication(OUT, job) for job in (NEW, "next")] == [first, second]
    assert log.read_text() == whole


def test_a_living_publisher_keeps_what_it_prepares(directory_side: DirectorySide, result: Publication) -> None:
    other = replace(result, job_id="other")

    def lose() -> None:
        raise LeaseLost("another worker has this job")

    def meanwhile() -> None:
        (prepared,) = staged_directories(directory_side)
        with pytest.raises(LeaseLost):
            DirectoryHub(directory_side.root).publish(other, before_commit=lose)
        assert staged_directories(directory_side) == [prepared]

    directory_side.hub.publish(result, before_commit=meanwhile)
    assert staged_directories(directory_side) == []


def test_what_cannot_fit_is_refused_before_it_is_written(directory_side: DirectorySide, result: Publication) -> None:
    """A file with a hole of a petabyte takes no space itself."""
    with suppress(OSError):  # ext4 has no files above 16 TiB
        os.truncate(result.folder / "model.safetensors", 1 << 43)
        os.truncate(result.folder / "model.safetensors", 1 << 50)
    with pytest.raises(OutOfSpace, match=r"the publication takes at least .* bytes.*are free"):
        directory_side.hub.publish(result, before_commit=nothing)
    assert staged_directories(directory_side) == []
    assert directory_side.hub.find_publication(OUT, NEW) is None


@pytest.mark.parametrize(
    ("number", "expected", "says"),
    [
        (errno.ENOSPC, OutOfSpace, f"publishing {OUT}"),
        (errno.EDQUOT, OutOfSpace, f"publishing {OUT}"),
        (errno.EACCES, AccessDenied, "no access"),
    ],
)
def test_a_disk_that_fills_up_meanwhile(
    directory_side: DirectorySide,
    result: Publication,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    expected: type[Exception],
    says: str,
) -> None:
    def full(source: Path, to: Path) -> None:
        to.write_bytes(b"half")
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("replaceme_core.hub.directory.shutil.copyfile", full)
    with pytest.raises(expected, match=says):
        directory_side.hub.publish(result, before_commit=nothing)
    assert staged_directories(directory_side) == []
    with pytest.raises(RepositoryNotFound):
        directory_side.hub.resolve(OUT, kind=MODEL)


@pytest.mark.parametrize("number", [1, 2])
def test_a_folder_that_cannot_be_moved_stays_as_it_was(
    directory_side: DirectorySide, result: Publication, monkeypatch: pytest.MonkeyPatch, number: int, tmp_path: Path
) -> None:
    """As one on which another file system is mounted."""
    hub = directory_side.hub
    before = hub.publish(publication(tmp_path / "old", {"old.txt": b"old"}, job_id="old"), before_commit=nothing)
    rename, calls = Path.rename, iter(range(1, 10))

    def fail(self: Path, target: Path) -> Path:
        if next(calls) == number:
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
        return rename(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", fail)
        with pytest.raises(HubUnreachable):
            hub.publish(result, before_commit=nothing, may_replace=anything)
    assert hub.find_publication(OUT, NEW) is None
    assert hub.resolve(OUT, kind=MODEL).revision == before
    assert staged_directories(directory_side) == []
    hub.publish(result, before_commit=nothing, may_replace=anything)
    assert directory_side.files(OUT) == RESULT


def test_a_log_that_cannot_be_written_is_completed_later(
    directory_side: DirectorySide, result: Publication, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The result is there by then."""
    replace_file = hub_journal.write_atomically

    def full(path: Path, text: str) -> None:
        if path.suffix == ".jsonl":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace_file(path, text)

    with monkeypatch.context() as patch:
        patch.setattr(hub_journal, "write_atomically", full)
        revision = directory_side.hub.publish(result, before_commit=nothing)
    assert directory_side.files(OUT) == RESULT
    assert directory_side.hub.find_publication(OUT, NEW) == revision


def test_readers_see_whole_results_while_another_publishes(directory_side: DirectorySide, tmp_path: Path) -> None:
    """Each result holds one number in two files; a reader never finds two numbers, nor none."""
    contents = [{name: str(number).encode() for name in ("a", "b")} for number in range(12)]
    revisions = []
    for number, files in enumerate(contents):
        directory_side.add_model(f"acme/n{number}", files)
        revisions.append(directory_side.hub.resolve(f"acme/n{number}", kind=MODEL).revision)

    def publish(number: int) -> None:
        one = publication(tmp_path / f"r{number}", contents[number], job_id=f"{number}")
        DirectoryHub(directory_side.root).publish(one, before_commit=nothing, may_replace=anything)

    publish(0)
    seen: list[str] = []
    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(lambda: [publish(number) for number in range(1, 12)])
        while not writing.done():
            seen.append(directory_side.hub.resolve(OUT, kind=MODEL).revision)
        writing.result()
    seen.append(directory_side.hub.resolve(OUT, kind=MODEL).revision)
    numbers = [revisions.index(revision) for revision in seen]
    assert numbers == sorted(numbers)
    assert numbers[-1] == 11


def test_the_settings_name_the_hub(tmp_path: Path) -> None:
    """A directory under the data is made, and one elsewhere, which may be a mount, is not."""
    assert isinstance(Settings(data=tmp_path / "data", hub=f"dir:{tmp_path}/data/hub").open_hub(), DirectoryHub)
    assert (tmp_path / "data" / "hub").is_dir()
    Settings(data=tmp_path / "data", hub=f"dir:{tmp_path}/mount").open_hub()
    assert not (tmp_path / "mount").exists()
    endpoint = Settings(data=tmp_path, hub="http://127.0.0.1:9/", hub_read_token="hf_abc\n")  # type: ignore[arg-type]
    assert isinstance(endpoint.open_hub(), HuggingFaceHub), "files of secrets end with a line end"
    assert endpoint.hub_address == "http://127.0.0.1:9"
    assert Settings(data=tmp_path, hub=f"dir:{tmp_path}").hub_address is None, "it has no pages to link to"


@pytest.mark.parametrize("token", ["hf_Secret\nX-Evil: 1", "hf_Secret with space", "hf_Sécret"])
def test_a_token_that_cannot_be_one_is_refused_and_not_shown(tmp_path: Path, token: str) -> None:
    with pytest.raises(AccessDenied, match="token for the Hub has characters") as caught:
        Settings(data=tmp_path, hub="http://127.0.0.1:9").open_hub(token=token)
    assert "cret" not in str(caught.value)
