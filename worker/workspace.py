"""Directories of jobs: one for each attempt, locked by the process that works there, and one for checkpoints.

`ROOT/NAME.lock` is locked before `ROOT/NAME/` is created and removed after it is deleted. If the lock of a directory
can be taken, its process is gone and the directory is abandoned, because locks end with their process, also on
SIGKILL. A worker's main process locks a directory under `ROOT/tmp/` in the same way, for temporary files.

`ROOT/checkpoints/JOB/` is kept between attempts and removed with its job. Where ROOT is shared between machines, so are
the checkpoints. A result that has been computed and not yet published is in `result/` there. An attempt whose worker is
lost or shut down leaves it to the next attempt at the job, which publishes it and computes nothing. `result.json` is
written last: without it there is no result. Runners see no more of all this than their own `runner/`.
"""

import logging
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from replaceme_core.errors import AccessDenied
from replaceme_core.hub.files import locked, try_locked, walk, write_atomically
from replaceme_core.request.spec import CompressionSpec
from replaceme_core.runner.messages import Finished

CHECKPOINTS = "checkpoints"
RESULT = "result"
TEMPORARY = "tmp"
LOCK_SUFFIX = ".lock"

logger = logging.getLogger(__name__)


@contextmanager
def locked_directory(root: Path, *, name: str) -> Iterator[Path]:
    """A new directory under `root` whose name begins with `name`, removed at the end, after an error too.

    Processes that this one forks hold the lock too.
    """
    root.mkdir(parents=True, exist_ok=True)
    directory = root / f"{name}-{uuid.uuid4().hex[:8]}"
    with locked(directory.with_name(directory.name + LOCK_SUFFIX)):
        try:
            directory.mkdir()
            yield directory
        finally:
            _remove(directory)


def checkpoints_of(root: Path, job_id: str) -> Path:
    """What attempts at this job leave for later ones; need not exist."""
    return root / CHECKPOINTS / job_id


def checkpoints_of_runner(root: Path, job_id: str) -> Path:
    """The part of it that runners write to. The result that is published is not in it."""
    return checkpoints_of(root, job_id) / "runner"


def jobs_with_checkpoints(root: Path) -> set[str]:
    """Ids of the jobs that have a directory for checkpoints."""
    place = root / CHECKPOINTS
    return {entry.name for entry in place.iterdir()} if place.is_dir() else set()


def remove_checkpoints(root: Path, job_id: str) -> None:
    """Remove the checkpoints of this job. What cannot be removed now is left to the next sweep."""
    shutil.rmtree(checkpoints_of(root, job_id), ignore_errors=True)


def remove_abandoned(root: Path) -> list[str]:
    """Remove the directories under `root` whose process is gone; returns their names. Locked ones are left alone."""
    if not root.is_dir():
        return []
    names = {entry.name.removesuffix(LOCK_SUFFIX) for entry in root.iterdir()}
    return [name for name in sorted(names - {CHECKPOINTS, TEMPORARY}) if _remove_if_abandoned(root / name)]


def _remove_if_abandoned(directory: Path) -> bool:
    try:
        with try_locked(directory.with_name(directory.name + LOCK_SUFFIX), create=True) as is_free:
            return is_free and _remove(directory)
    except OSError as error:  # such as a lock of another user; what comes after it is removed all the same
        logger.warning("cannot remove %s; the next sweep retries: %s", directory, error.strerror)
        return False


def _remove(directory: Path) -> bool:
    """Remove the directory first and its lock last, so that the next sweep finds what could not be removed."""
    if directory.is_dir() and not directory.is_symlink():
        shutil.rmtree(directory, ignore_errors=True)
    else:
        directory.unlink(missing_ok=True)
    if directory.exists():
        logger.warning("cannot remove all of %s; the next sweep retries", directory)
        return False
    directory.with_name(directory.name + LOCK_SUFFIX).unlink(missing_ok=True)
    return True


_RECORD = "result.json"
_MODEL = "model"


class KeptResult(BaseModel):
    """What is published: the files in `folder`, made by `spec`, with the final message of the runner."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants")

    folder: Path = Field(default=Path(), exclude=True)  # known from where the record lies
    spec: CompressionSpec
    finished: Finished


def keep_result(root: Path, job_id: str, *, folder: Path, spec: CompressionSpec, finished: Finished) -> KeptResult:
    """Move the files in `folder`, which is under `root`, to where the next attempt finds them, and onto the disk.

    A runner has made `folder`, and it may be anything. Raises `AccessDenied` for a link, and as `walk` does.
    """
    place = _place(root, job_id)
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    folder.rename(place / _MODEL)
    if (place / _MODEL).is_symlink():
        raise AccessDenied("the runner left a link in place of its result")
    _take(place / _MODEL)
    for file in walk(place / _MODEL):
        with file.location.open("rb") as stream:
            os.fsync(stream.fileno())
    kept = KeptResult(folder=place / _MODEL, spec=spec, finished=finished)
    write_atomically(place / _RECORD, kept.model_dump_json())
    return kept


def _take(folder: Path) -> None:
    """Take a directory away from the user of the runner, of which a process may be left that would exchange files."""
    if os.getuid() != 0:  # the runner had this user
        return
    for _, _, files, descriptor in os.fwalk(folder):
        os.fchown(descriptor, 0, 0)
        os.fchmod(descriptor, 0o700)
        for name in files:
            os.chown(name, 0, 0, dir_fd=descriptor, follow_symlinks=False)


def find_result(root: Path, job_id: str) -> KeptResult | None:
    """The result that an earlier attempt at this job has left. One that cannot be read is none."""
    place = _place(root, job_id)
    try:
        kept = KeptResult.model_validate_json((place / _RECORD).read_bytes())
    except FileNotFoundError:
        return None
    except ValidationError as error:
        logger.warning("job %s: the result that was kept cannot be used: %s", job_id, error)
        return None
    return kept.model_copy(update={"folder": place / _MODEL})


def _place(root: Path, job_id: str) -> Path:
    return checkpoints_of(root, job_id) / RESULT
