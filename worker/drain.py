"""The two steps in which a worker shuts down: it takes no new job, then it releases the job that is still running.

The signal arrives in the main process, and the work is done in its threads or in processes that it forked. They share
one byte of memory, whose value only grows.
"""

import mmap
import threading
from typing import Final

_WORKING: Final = 0
_DRAINING: Final = 1
_RELEASING: Final = 2


class Drain:
    """The state of a shutdown. Create it before the processes that share it are forked."""

    def __init__(self) -> None:
        self._level = mmap.mmap(-1, 1)  # zero at first, and shared with forked processes

    def begin(self, *, seconds: float) -> None:
        """Take no new job from now on, and release the running ones after `seconds`. May be called again."""
        self._raise_to(_DRAINING)
        if seconds <= 0:
            self._raise_to(_RELEASING)
            return
        timer = threading.Timer(seconds, self._raise_to, (_RELEASING,))
        timer.daemon = True  # a worker whose job is done earlier ends earlier
        timer.start()

    @property
    def has_begun(self) -> bool:
        """Whether no new job may be taken."""
        return self._level[0] >= _DRAINING

    @property
    def must_release(self) -> bool:
        """Whether running jobs must be released now."""
        return self._level[0] >= _RELEASING

    def _raise_to(self, level: int) -> None:
        if self._level[0] < level:
            self._level[0] = level
