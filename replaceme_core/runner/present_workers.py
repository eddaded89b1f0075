"""Which workers run on the same data directory, and what they report, for processes that share it.

A worker holds a lock on `WORKSPACE/tmp/worker-ID.lock` for as long as it lives, and writes into
`WORKSPACE/tmp/worker-ID/`.
"""

import contextlib
import fcntl
import os
from pathlib import Path

from replaceme_core.runner.sandbox import SandboxMode

TEMPORARY = "tmp"
WORKER_PREFIX = "worker-"
LOCK_SUFFIX = ".lock"
_SANDBOX = "sandbox"


def report_sandbox(directory: Path, mode: SandboxMode) -> None:
    """Write the sandbox in force into the worker's directory."""
    (directory / _SANDBOX).write_text(mode, encoding="ascii")


def sandboxes_of_workers(workspace: Path) -> list[SandboxMode]:
    """The sandbox of each worker that lives and shares `workspace`."""
    found: list[SandboxMode] = []
    for report in sorted((workspace / TEMPORARY).glob(f"{WORKER_PREFIX}*/{_SANDBOX}")):
        with contextlib.suppress(OSError, ValueError):
            if _is_locked(report.parent.with_name(report.parent.name + LOCK_SUFFIX)):
                found.append(SandboxMode(report.read_text(encoding="ascii")))
    return found


def _is_locked(lock: Path) -> bool:
    descriptor = os.open(lock, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False
