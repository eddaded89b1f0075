"""This worker's row in the database: who it is, what it serves, how much memory it uses, when it was last there."""

import logging
import os
import platform
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress

import psutil

from replaceme_core.errors import Unavailable
from replaceme_core.hardware import Accelerator, WorkerKind, find_accelerator, gpu_memory, total_memory
from replaceme_core.ledger.database import Database
from replaceme_core.ledger.records import WorkerMemory, WorkerReport
from replaceme_core.ledger.watching import Workers
from replaceme_core.runner.sandbox import SandboxMode
from replaceme_core.wording import counted


def memory_of(process_id: int, *, gpu: str | None) -> WorkerMemory:
    """Memory of a process with all its descendants, and of the NVIDIA GPU with this UUID.

    Pages that several processes share count once for each. On the GPU the memory of all processes counts, those of
    others too.
    """
    used = None if gpu is None else gpu_memory(gpu)
    return WorkerMemory(
        total_bytes=total_memory(),
        used_bytes=sum(_resident_bytes(process_id)),
        gpu_total_bytes=None if used is None else used[0],
        gpu_used_bytes=None if used is None else used[1],
    )


def _resident_bytes(process_id: int) -> Iterator[int]:
    with suppress(psutil.Error):
        process = psutil.Process(process_id)
        for each in (process, *process.children(recursive=True)):
            with suppress(psutil.Error):  # it has ended meanwhile
                yield each.memory_info().rss


ALIVE_SWEEPS = 3.0
"""A worker that has missed this many sweeps counts as lost; those of a busy machine may be late."""

logger = logging.getLogger(__name__)


class Heartbeat:
    """Called at each sweep. `process_ids` returns the ids of the processes that run jobs.

    `worker_kinds` are the kinds of jobs that the worker serves; `None`: all. `sandbox` is what its
    runners are started in.
    """

    def __init__(
        self,
        *,
        sweep_seconds: float,
        worker_kinds: Sequence[WorkerKind] | None,
        sandbox: SandboxMode,
        process_ids: Callable[[], Sequence[int]],
    ) -> None:
        self._seconds = ALIVE_SWEEPS * sweep_seconds
        self._kinds = tuple(WorkerKind if worker_kinds is None else worker_kinds)
        self._sandbox = sandbox
        self._process_ids = process_ids
        self._host = socket.gethostname()
        self._name = f"{self._host}:{os.getpid()}"
        self._device = f"{platform.machine() or 'unknown'} CPU, {counted(os.cpu_count() or 1, 'cores')}"
        self._accelerator: Accelerator | None = None
        if WorkerKind.GPU in self._kinds:  # in a thread: it starts a process that imports torch
            threading.Thread(target=self._find_accelerator, name="find-accelerator", daemon=True).start()

    def __call__(self, database: Database) -> None:
        """Raises `DatabaseUnreachable`."""
        report = WorkerReport(
            name=self._name,
            host=self._host,
            kinds=self._kinds,
            device=self._accelerator.name if self._accelerator is not None else self._device,
            sandbox=self._sandbox,
            processes=tuple(self._process_ids()),
            memory=memory_of(os.getpid(), gpu=None if self._accelerator is None else self._accelerator.uuid),
        )
        with database.session() as session:
            workers = Workers(session)
            workers.report(report, alive_seconds=self._seconds)
            workers.forget_lost()

    def end(self, database: Database) -> None:
        """Remove the row. Where the database cannot be reached the worker counts as lost for a while."""
        try:
            with database.session() as session:
                Workers(session).remove(self._name)
        except Unavailable as error:
            logger.warning("this worker could not be taken off the list of workers: %s", error)

    def _find_accelerator(self) -> None:
        self._accelerator = find_accelerator(os.environ)
