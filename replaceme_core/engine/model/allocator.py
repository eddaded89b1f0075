"""Memory of the C library's allocator: reused within a stage, returned to the system between stages.

By default glibc asks the system for every large block and returns it when it is freed, so that each activation is made
of new pages, which the system fills with zeros first. That took 18 % of a pass of SmolLM2 in float32, and 28 % in
bfloat16 (docs/explanation/text-and-memory.md#memory).
"""

import ctypes
import gc
import os
from contextlib import suppress

MOST_FREE = 1024 * 2**20
"""Bytes of freed memory that the allocator may keep for reuse: the logits of a batch, and what is made of them."""
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # of malloc.h
_VARIABLES = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")


def reuse_freed_memory() -> bool:
    """Let the allocator keep freed memory, for the rest of this process.

    Returns false, and changes nothing, with another C library or where the environment sets these thresholds.
    """
    if any(os.environ.get(name) for name in _VARIABLES):
        return False
    with suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        # no block is too large for reuse: the threshold for that ends at 32 MiB, logits are 200
        return bool(mallopt(_MMAP_MAX, 0)) and bool(mallopt(_TRIM_THRESHOLD, MOST_FREE))
    return False


def release_memory() -> None:
    """Return memory that is no longer used to the system."""
    gc.collect()
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)  # of glibc alone
