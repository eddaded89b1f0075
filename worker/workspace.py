"""A directory for one attempt at one job, held by a lock that ends with the process that works there; and one for what
the attempts at a job leave to each other.

`ROOT/NAME.lock` is locked before `ROOT/NAME/` exists and removed after it is gone. A directory whose lock can be had
therefore belongs to nobody any more, whatever became of its job: locks end with their process, at kill -9 too.

A worker's main process holds one in the same way, under `ROOT/tmp/`, for the temporary files of its own processes.

`ROOT/checkpoints/JOB/` outlives its attempts and goes with its job. Where ROOT is shared between machines, so is it.
"""

import fcntl
import json
import logging
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from replaceme_core.runner.messages import PLAN_FILE

LOCK_SUFFIX = ".lock"
CHECKPOINTS = "checkpoints"
SHARDS = "shards"
TEMPORARY = "tmp"

logger = logging.getLogger(__name__)


@contextmanager
def workspace(root: Path, *, job_id: str, attempt: int) -> Iterator[Path]:
    """A fresh directory under `root`, removed at the end whatever happened."""
    with held_directory(root, name=f"{job_id}-{attempt}") as directory:
        yield directory


@contextmanager
def held_directory(root: Path, *, name: str) -> Iterator[Path]:
    """A fresh directory under `root` whose name begins with `name`, removed at the end.

    Processes that this one forks hold it, too.
    """
    root.mkdir(parents=True, exist_ok=True)
    directory = root / f"{name}-{uuid.uuid4().hex[:8]}"
    descriptor = _take_new(directory.with_name(directory.name + LOCK_SUFFIX))
    try:
        directory.mkdir()
        yield directory
    finally:
        _remove(directory)
        os.close(descriptor)


def checkpoints_of(root: Path, job_id: str) -> Path:
    """Where attempts at this job leave what later ones go on from; need not exist."""
    return root / CHECKPOINTS / job_id


def shards_of(root: Path, job_id: str) -> Path:
    """Where workers leave what they have summed for this job; goes with what its attempts leave."""
    return checkpoints_of(root, job_id) / SHARDS


def sees_plan(root: Path, job_id: str, plan: str) -> bool:
    """Whether the job's own worker and this one write to the same place: there it has left the id of its plan."""
    try:
        found = json.loads((shards_of(root, job_id) / PLAN_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(found, dict) and found.get("plan") == plan


def checkpointed(root: Path) -> set[str]:
    """Ids of the jobs that have left something."""
    place = root / CHECKPOINTS
    return {entry.name for entry in place.iterdir()} if place.is_dir() else set()


def forget_checkpoints(root: Path, job_id: str) -> None:
    """Remove what the attempts at this job have left; what cannot be removed now is found by the next sweep."""
    shutil.rmtree(checkpoints_of(root, job_id), ignore_errors=True)


def collect_left_overs(root: Path) -> list[str]:
    """Remove what processes that are gone have left under `root`; returns the names. Never touches a held one."""
    if not root.is_dir():
        return []
    names = {entry.name.removesuffix(LOCK_SUFFIX) for entry in root.iterdir()}
    return [name for name in sorted(names - {CHECKPOINTS, TEMPORARY}) if _collect(root / name)]


def _collect(directory: Path) -> bool:
    lock = directory.with_name(directory.name + LOCK_SUFFIX)
    try:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except FileNotFoundError:  # the whole root has just been removed
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    else:
        return _remove(directory)
    finally:
        os.close(descriptor)


def _take_new(lock: Path) -> int:
    """Lock a file that is still the one at its path: a collector may have removed it between open and lock."""
    while True:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        if os.fstat(descriptor).st_nlink:
            return descriptor
        os.close(descriptor)


def _remove(directory: Path) -> bool:
    """The directory first, its lock last: what cannot be removed now is found again by the next sweep."""
    if directory.is_dir() and not directory.is_symlink():
        shutil.rmtree(directory, ignore_errors=True)
    else:
        directory.unlink(missing_ok=True)
    if directory.exists():
        logger.warning("cannot remove all of %s; trying again at the next sweep", directory)
        return False
    directory.with_name(directory.name + LOCK_SUFFIX).unlink(missing_ok=True)
    return True
