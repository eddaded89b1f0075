"""A runner does not outlive its parent, and nothing that a runner started outlives the runner.

A small process beside the runner watches two pipes and touches neither: the runner's standard input, whose other end
the parent holds as a life line, and one that the runner holds. When either breaks it ends the whole process group with
SIGKILL. It is a process and not a thread, because a library that holds the interpreter's lock would hold up a thread,
and because the kernel, where it ends the runner by itself, ends the runner alone.
"""

import ctypes
import os
import select
import signal
import sys
from typing import Final, NoReturn

_PR_SET_PDEATHSIG: Final = 1


def stand_guard() -> None:
    """Call first, while there is one thread only. Returns in the runner."""
    parent = os.getppid()
    if os.getpgrp() != os.getpid():
        os.setpgid(0, 0)  # started by hand: the group that is ended must be its own
    watched, _held = os.pipe()
    runner = os.getpid()
    if os.fork() == 0:
        _watch(runner, watched, _held)
    os.close(watched)
    _die_with(parent)


def _watch(runner: int, watched: int, held: int) -> NoReturn:
    """The life of the guard."""
    try:
        os.close(held)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        nowhere = os.open(os.devnull, os.O_RDWR)
        os.dup2(nowhere, 1)  # its end is the end of messages
        os.dup2(nowhere, 2)
        poll = select.poll()
        poll.register(0, 0)  # no events asked for: a hang-up is always told
        poll.register(watched, 0)
        poll.poll()
    finally:
        if os.getpgrp() == runner:
            os.killpg(runner, signal.SIGKILL)
        os._exit(0)


def _die_with(parent: int) -> None:
    """On Linux the kernel ends this process with the thread that started it: sooner than a guard can."""
    if sys.platform != "linux":
        return
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it ended before the kernel was asked
        os.kill(os.getpid(), signal.SIGKILL)
