"""A worker on its way down: it takes no new job, lets the running one go on for a while, and then gives it back.

The main process is told by a signal and the work is done in processes that it forked, or in its own threads: what they
share is one byte of memory, which only ever grows.
"""

import mmap
import threading
from typing import Final

_AT_WORK: Final = 0
_DRAINING: Final = 1
_OVER: Final = 2


class Drain:
    """To be made before the processes that share it are forked."""

    def __init__(self) -> None:
        self._level = mmap.mmap(-1, 1)  # zero at first, and shared with forked processes

    def begin(self, *, seconds: float) -> None:
        """No new job from now on; the running ones are to be given back after `seconds`. May be called again."""
        self._raise_to(_DRAINING)
        if seconds <= 0:
            self._raise_to(_OVER)
            return
        timer = threading.Timer(seconds, self._raise_to, (_OVER,))
        timer.daemon = True  # a worker whose job is done earlier ends earlier
        timer.start()

    @property
    def has_begun(self) -> bool:
        """No new job may be taken."""
        return self._level[0] >= _DRAINING

    @property
    def is_over(self) -> bool:
        """Running jobs are to be given back now."""
        return self._level[0] >= _OVER

    def _raise_to(self, level: int) -> None:
        if self._level[0] < level:
            self._level[0] = level
