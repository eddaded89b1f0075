"""Memory that the C library's allocator has, kept while work goes on and given back between stages.

By default glibc asks the system for every large block and returns it when it is freed, so that each activation is made
of new pages, which the system fills with zeros first. That took 18 % of a pass of SmolLM2 in float32, and 28 % in
bfloat16 (docs/decisions/0013-one-block-at-a-time.md).
"""

import ctypes
import gc
import os
from contextlib import suppress

LARGEST_REUSED = 32 * 2**20
"""Bytes. Larger blocks come from the system each time, whatever is asked for (mallopt(3), M_MMAP_THRESHOLD)."""
KEPT = 512 * 2**20
"""Bytes that may lie free."""
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of malloc.h
_BY_HAND = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")


def reuse_freed_memory() -> bool:
    """For the rest of this process; false where the C library is another one, or its variables say otherwise."""
    if any(os.environ.get(name) for name in _BY_HAND):
        return False
    with suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        return bool(mallopt(_MMAP_THRESHOLD, LARGEST_REUSED)) and bool(mallopt(_TRIM_THRESHOLD, KEPT))
    return False


def release_memory() -> None:
    """What is no longer used goes back to the system."""
    gc.collect()
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)  # of glibc alone
