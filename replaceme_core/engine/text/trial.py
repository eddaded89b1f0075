"""Tries in a process of its own what native code does with files that a stranger wrote.

A tokenizer's normaliser may turn one letter into a gigabyte, and no exception or signal handler of Python's interrupts
native code. So the first use happens in a fork, which has limits and which the system ends when it exceeds them.
"""

import faulthandler
import gc
import os
import resource
import signal
import time
import warnings
from collections.abc import Callable
from pathlib import Path

SECONDS = 30.0
"""Of processor time."""
WALL_SECONDS = 600.0
MOST_BYTES = 4 * 2**30
"""More than the process has."""
_POLL_SECONDS = 0.01
_STATM = Path("/proc/self/statm")


def ends_badly(call: Callable[[], object]) -> str | None:
    """How a process that does `call` is ended: "took more than 30 seconds"; `None` if it ends by itself.

    An exception is no bad end: it comes again where the call is made in earnest.
    """
    gc.collect()  # so that the fork has little to copy
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # threads: the fork uses none of them, and ends at once
        process = os.fork()
    if process == 0:
        try:
            _limit()
            call()
        finally:
            os._exit(0)  # whatever was raised
    status = _wait(process, until=time.monotonic() + WALL_SECONDS)
    if status is None or status == -signal.SIGPROF:
        return f"took more than {SECONDS:g} seconds"
    if status < 0:
        return f"needed more than {MOST_BYTES // 2**30} GiB of memory, or crashed (signal {-status})"
    return None


def _limit() -> None:
    faulthandler.disable()  # how it ends is said in one line
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the threads that a library had are not in the fork
    devnull = os.open(os.devnull, os.O_RDWR)
    for stream in (1, 2):
        os.dup2(devnull, stream)
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if _STATM.exists():
        size = int(_STATM.read_text().split()[0]) * resource.getpagesize() + MOST_BYTES
        bounds = [limit for limit in (size, *resource.getrlimit(resource.RLIMIT_AS)) if limit != resource.RLIM_INFINITY]
        resource.setrlimit(resource.RLIMIT_AS, (min(bounds), resource.getrlimit(resource.RLIMIT_AS)[1]))


def _wait(process: int, *, until: float) -> int | None:
    """The exit status, negative for a signal; `None` if it had to be killed."""
    while True:
        ended, status = os.waitpid(process, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > until:
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)
            return None
        time.sleep(_POLL_SECONDS)
