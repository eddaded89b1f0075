"""How much memory a worker uses: all its processes together, runners included, and its GPU."""

from collections.abc import Iterator
from contextlib import suppress

import psutil

from replaceme_core.hardware import gpu_memory, total_memory
from replaceme_core.ledger.records import WorkerMemory


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
