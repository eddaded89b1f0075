"""Ends a runner when its parent is gone, and what the runner started when the runner is gone.

A small process beside the runner, the guard, watches two pipes and reads from neither. One is the runner's standard
input, which the parent holds open while it lives; the runner holds the other. When either closes, the guard sends
SIGKILL to the whole process group. The guard is a process and not a thread, because a library that holds the
interpreter's lock would block a thread, and because the kernel, where it kills the runner, kills only the runner.
"""

import ctypes
import os
import select
import signal
import sys
from typing import Final, NoReturn

_PR_SET_PDEATHSIG: Final = 1
_OUTSIDE: Final = 0
"""The process group in a sandbox that has its own process ids, where the group's leader has none."""


def start_orphan_guard() -> None:
    """Fork the guard; returns in the runner. Call it first, while there is only one thread."""
    parent = os.getppid()
    if os.getpgrp() not in (os.getpid(), _OUTSIDE):
        os.setpgid(0, 0)  # started by hand: the group that is killed must be the runner's own
    watched, _held = os.pipe()
    runner = os.getpid()
    if os.fork() == 0:
        _watch(runner, watched, _held)
    os.close(watched)
    _end_with_parent(parent)


def _watch(runner: int, watched: int, held: int) -> NoReturn:
    """The main function of the guard."""
    try:
        os.close(held)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        devnull = os.open(os.devnull, os.O_RDWR)
        os.dup2(devnull, 1)  # the parent takes the end of standard output for the end of messages
        os.dup2(devnull, 2)
        poll = select.poll()
        poll.register(0, 0)  # no events requested: a hang-up is always reported
        poll.register(watched, 0)
        poll.poll()
    finally:
        if os.getpgrp() == runner:
            os.killpg(runner, signal.SIGKILL)
        elif os.getpgrp() == _OUTSIDE:
            os.kill(-1, signal.SIGKILL)  # all processes of the sandbox
        os._exit(0)


def _end_with_parent(parent: int) -> None:
    """On Linux, have the kernel kill this process when the thread that started it ends: sooner than the guard can."""
    if sys.platform != "linux":
        return
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # the parent ended before the call
        os.kill(os.getpid(), signal.SIGKILL)
