"""Interpreter settings that keep response latency low while other threads work.

The interpreter runs one thread at a time. A waiting thread requests the lock only after the switch interval, and the
event loop needs the lock for each of its steps. With the default interval of 5 ms, a response that takes 1 ms waits for
tens of milliseconds while another request submits a job. Likewise, a full garbage collection stops all threads while it
visits every object that the imports created.
"""

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

SWITCH_SECONDS: Final = 0.0005


@contextmanager
def low_latency() -> Iterator[None]:
    """Shorten the switch interval and exempt the present objects from garbage collection. Use once per process."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH_SECONDS)
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        sys.setswitchinterval(before)
