"""What decides how long an answer waits for other work of this process.

One interpreter runs one thread at a time. A thread that waits for its turn asks for it only after the switch interval,
and the event loop needs a turn for each thing that it does. With the interval as it comes, 5 ms, an answer that takes
1 ms waits for tens of them while a job is taken in beside it. And a collection of all garbage goes through everything
that the imports have left; for as long nobody is answered.
"""

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

SWITCH_SECONDS: Final = 0.0005


@contextmanager
def quick_turns() -> Iterator[None]:
    """Threads change places soon, and what is there by now is taken for permanent. Once for a process."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH_SECONDS)
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        sys.setswitchinterval(before)
