"""A parent process for one child of `replaceme serve` or `replaceme worker`, so that it never outlives the service.

Standard input is a pipe from the service that closes when the service ends, even with kill -9. The child then receives
SIGTERM and, after a grace period, its process group receives SIGKILL. If the child ends by itself, the rest of its
process group is killed as well. Standard library only, so that it starts fast and needs little memory.

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
    """Run the command; returns its exit status, or 128 + N if signal N ended it."""
    grace_seconds, command = float(arguments[0]), arguments[1:]
    # Ctrl-C in a terminal reaches the whole foreground group. The service handles it and closes the pipe.
    # A function, not SIG_IGN, which the child would inherit.
    signal.signal(signal.SIGINT, _ignore)
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True, preexec_fn=_die_with_parent())
    signal.signal(signal.SIGTERM, lambda *_: _signal_group(child, signal.SIGKILL))
    threading.Thread(target=_end_when_input_closes, args=(child, grace_seconds), daemon=True).start()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    _signal_group(child, signal.SIGKILL)  # before it is reaped: until then no other process can get its id
    status = child.wait()
    return status if status >= 0 else 128 - status


def _end_when_input_closes(child: subprocess.Popen[bytes], grace_seconds: float) -> None:
    while os.read(0, 4096):
        pass
    with contextlib.suppress(ProcessLookupError):
        child.send_signal(signal.SIGTERM)  # to the leader only: it ends its own children
    expired = threading.Timer(grace_seconds, _signal_group, (child, signal.SIGKILL))
    expired.daemon = True
    expired.start()


def _signal_group(child: subprocess.Popen[bytes], number: signal.Signals) -> None:
    if child.returncode is None:
        with contextlib.suppress(ProcessLookupError, PermissionError):  # macOS returns EPERM for a zombie
            os.killpg(child.pid, number)


def _ignore(number: int, frame: FrameType | None) -> None:
    """Do nothing."""


def _die_with_parent() -> Callable[[], None] | None:
    """Make the kernel end the child if the guard itself is killed. Linux only; `None` elsewhere."""
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None, use_errno=True)

    def set_parent_death_signal() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)

    return set_parent_death_signal


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
