import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.harness.specs import a_spec
from replaceme_core.errors import AccessDenied
from replaceme_core.runner.messages import Finished
from worker.workspace import (
    TEMPORARY,
    checkpoints_of,
    checkpoints_of_runner,
    find_result,
    jobs_with_checkpoints,
    keep_result,
    locked_directory,
    remove_abandoned,
    remove_checkpoints,
)

HOLD = """
import sys, pathlib
from worker.workspace import locked_directory
with locked_directory(pathlib.Path(sys.argv[1]), name="other-1") as directory:
    (directory / "file").write_text("content")
    print("held", flush=True)
    sys.stdin.read()
"""


def test_it_is_gone_after_use(tmp_path: Path) -> None:
    root = tmp_path / "workspace"
    with locked_directory(root, name="job-2") as directory:
        assert directory.name.startswith("job-2-")
        (directory / "deep").mkdir()
        (directory / "deep" / "file").write_text("content")
    assert list(root.iterdir()) == []


def test_two_attempts_at_once_do_not_meet(tmp_path: Path) -> None:
    with locked_directory(tmp_path, name="job-1") as one, locked_directory(tmp_path, name="job-1") as two:
        assert one != two


def test_one_whose_process_is_gone_is_removed(tmp_path: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        assert remove_abandoned(tmp_path) == []
        holder.kill()
    [removed] = remove_abandoned(tmp_path)
    assert removed.startswith("other-1-")
    assert list(tmp_path.iterdir()) == []


def test_locks_and_files_without_a_directory_are_removed(tmp_path: Path) -> None:
    (tmp_path / "old.lock").touch()
    (tmp_path / "stray").write_text("content")
    remove_abandoned(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_one_that_cannot_be_locked_keeps_no_other(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As one of another user, whose lock cannot be opened."""
    (tmp_path / "a.lock").mkdir()
    (tmp_path / "b").mkdir()
    assert remove_abandoned(tmp_path) == ["b"]
    assert f"cannot remove {tmp_path / 'a'}; the next sweep retries: Is a directory" in caplog.text


def test_checkpoints_are_kept_between_attempts(tmp_path: Path) -> None:
    with locked_directory(tmp_path, name="job-1"):
        checkpoints_of(tmp_path, "job").mkdir(parents=True)
        (checkpoints_of(tmp_path, "job") / "key.safetensors").touch()
    assert remove_abandoned(tmp_path) == []
    assert jobs_with_checkpoints(tmp_path) == {"job"}
    remove_checkpoints(tmp_path, "job")
    remove_checkpoints(tmp_path, "never-there")
    assert jobs_with_checkpoints(tmp_path) == set()
    assert jobs_with_checkpoints(tmp_path / "nowhere") == set()


def test_the_directory_for_temporary_files_is_not_removed(tmp_path: Path) -> None:
    with locked_directory(tmp_path / TEMPORARY, name="worker") as held:
        assert remove_abandoned(tmp_path) == []
        assert remove_abandoned(tmp_path / TEMPORARY) == []
        assert held.is_dir()


FINISHED = Finished(report={"removed_blocks": [2], "kept_blocks": [0, 1, 3]})


def test_a_kept_result_is_out_of_reach_of_the_next_runner(tmp_path: Path) -> None:
    """What is published without a runner was made by one that has ended."""
    output = tmp_path / "attempt" / "output"
    output.mkdir(parents=True)
    (output / "config.json").write_text("{}")
    kept = keep_result(tmp_path, "job", folder=output, spec=a_spec(), finished=FINISHED)
    assert find_result(tmp_path, "job") == kept
    assert [path.name for path in kept.folder.iterdir()] == ["config.json"]
    open_to_runners = checkpoints_of_runner(tmp_path, "job")
    assert open_to_runners.is_relative_to(checkpoints_of(tmp_path, "job")), "it is removed with the job"
    assert not kept.folder.is_relative_to(open_to_runners)
    assert not open_to_runners.is_relative_to(kept.folder.parent)


def test_a_kept_result_is_taken_away_from_the_user_of_the_runner(tmp_path: Path) -> None:
    """A process of that user that outlives the runner could exchange what is published."""
    output = tmp_path / "attempt" / "output"
    (output / "deep").mkdir(parents=True)
    (output / "deep" / "file").write_text("{}")
    for path in (output, *output.rglob("*")):
        path.chmod(0o777)
        if os.getuid() == 0:
            os.chown(path, 12345, 12345)
    folder = keep_result(tmp_path, "job", folder=output, spec=a_spec(), finished=FINISHED).folder
    kept = {path.relative_to(folder).as_posix(): path.stat() for path in (folder, *folder.rglob("*"))}
    assert {stat.st_uid for stat in kept.values()} == {os.getuid()}
    if os.getuid() == 0:  # another user than the runner had
        assert {kept[name].st_mode & 0o777 for name in (".", "deep")} == {0o700}


@pytest.mark.parametrize("place", ["output", "output/model.safetensors"])
def test_a_link_in_a_result_is_not_kept(tmp_path: Path, place: str) -> None:
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "key").write_text("secret")
    link = tmp_path / "attempt" / place
    link.parent.mkdir(parents=True)
    link.symlink_to(tmp_path / "secret")
    with pytest.raises(AccessDenied, match="link"):
        keep_result(tmp_path, "job", folder=tmp_path / "attempt" / "output", spec=a_spec(), finished=FINISHED)
    assert find_result(tmp_path, "job") is None
    remove_checkpoints(tmp_path, "job")
    assert (tmp_path / "secret" / "key").read_text() == "secret"
