"""Stands between `replaceme serve` and one of its children, so that the child never outlives the service.

Standard input is a life line. When it closes, which it does however the service ends, kill -9 included, the child gets
SIGTERM and, after a grace period, everything in its process group SIGKILL. Whatever the child leaves behind when it
ends by itself is killed as well. Knows the standard library only, so that it starts at once and stays small.

    python -m api.launch.guard GRACE_SECONDS COMMAND [ARGUMENT ...]
"""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from types import FrameType

_PR_SET_PDEATHSIG = 1


def main(arguments: list[str]) -> int:
    """Run the command to its end; returns its exit status, 128 + N when signal N ended it."""
    grace_seconds, command = float(arguments[0]), arguments[1:]
    # Ctrl-C in a terminal reaches the whole foreground group: it is for the service, which then closes the life line.
    # A function and not SIG_IGN, which the child would inherit.
    signal.signal(signal.SIGINT, _leave_it_to_the_service)
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True, preexec_fn=_die_with_parent())
    signal.signal(signal.SIGTERM, lambda *_: _signal_group(child, signal.SIGKILL))
    threading.Thread(target=_hold, args=(child, grace_seconds), daemon=True).start()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    _signal_group(child, signal.SIGKILL)  # before it is reaped: until then nobody else can get its id
    status = child.wait()
    return status if status >= 0 else 128 - status


def _hold(child: subprocess.Popen[bytes], grace_seconds: float) -> None:
    while os.read(0, 4096):
        pass
    with contextlib.suppress(ProcessLookupError):
        child.send_signal(signal.SIGTERM)  # to the leader alone: it knows how to end its own children
    expired = threading.Timer(grace_seconds, _signal_group, (child, signal.SIGKILL))
    expired.daemon = True
    expired.start()


def _signal_group(child: subprocess.Popen[bytes], number: signal.Signals) -> None:
    if child.returncode is None:
        with contextlib.suppress(ProcessLookupError, PermissionError):  # macOS says EPERM for a zombie
            os.killpg(child.pid, number)


def _leave_it_to_the_service(number: int, frame: FrameType | None) -> None:
    """Do nothing."""


def _die_with_parent() -> Callable[[], None] | None:
    """For the case that the guard itself is killed; other systems than Linux have no such thing."""
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None, use_errno=True)

    def ask_the_kernel() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)

    return ask_the_kernel


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
