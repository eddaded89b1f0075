import subprocess
import sys
from pathlib import Path

from worker.workspace import (
    TEMPORARY,
    checkpoints_of,
    jobs_with_checkpoints,
    locked_directory,
    remove_abandoned,
    remove_checkpoints,
    workspace,
)

HOLD = """
import sys, pathlib
from worker.workspace import workspace
with workspace(pathlib.Path(sys.argv[1]), job_id="other", attempt=1) as directory:
    (directory / "file").write_text("content")
    print("held", flush=True)
    sys.stdin.read()
"""


def test_it_is_gone_after_use(tmp_path: Path) -> None:
    root = tmp_path / "workspace"
    with workspace(root, job_id="job", attempt=2) as directory:
        assert directory.name.startswith("job-2-")
        (directory / "deep").mkdir()
        (directory / "deep" / "file").write_text("content")
    assert list(root.iterdir()) == []


def test_two_attempts_at_once_do_not_meet(tmp_path: Path) -> None:
    with workspace(tmp_path, job_id="job", attempt=1) as one, workspace(tmp_path, job_id="job", attempt=1) as two:
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


def test_checkpoints_are_kept_between_attempts(tmp_path: Path) -> None:
    with workspace(tmp_path, job_id="job", attempt=1):
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
