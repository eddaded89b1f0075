"""Child processes of `replaceme serve` and `replaceme worker`.

Each child runs under a guard, so that none outlives this process, however it ends:

    python -m api.cli.child_processes GRACE_SECONDS COMMAND [ARGUMENT ...]

Its standard input is a pipe from the service that closes when the service ends, even with kill -9. The child then
receives SIGTERM and, after a grace period, its process group receives SIGKILL. If the child ends by itself, the rest of
its process group is killed as well. Standard library only, so that it starts fast and needs little memory.
"""

import contextlib
import ctypes
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence

_JSON = b"{"  # such a line says itself which process wrote it
_POLL_SECONDS, _LONGEST_POLL_SECONDS = 0.2, 5.0


class ChildProcess:
    """A child process whose log is copied to standard error. It ends when its standard input closes.

    `is_ready` once a line of its log matches `ready_line`, or `ready_url` answers with 200: it accepts work.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        environment: Mapping[str, str],
        grace_seconds: float,
        ready_line: re.Pattern[bytes] | None = None,
        ready_url: str | None = None,
    ) -> None:
        self.name = name
        self.is_ready = False
        self._ready_line = ready_line
        self._process = subprocess.Popen(
            [sys.executable, "-m", "api.cli.child_processes", str(grace_seconds), *command],
            stdin=subprocess.PIPE,  # never written to: the guard ends the child when it closes
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=dict(environment),
        )
        self._log = threading.Thread(target=self._copy_log, daemon=True)
        self._log.start()
        if ready_url is not None:
            threading.Thread(target=self._ask, args=(ready_url,), daemon=True).start()

    def status(self) -> int | None:
        """The exit status of the child, once it has ended with its process group; `None`: it runs."""
        status = self._process.poll()
        if status is not None:
            self._log.join(timeout=1)  # what outlives the process group may hold the pipe
        return status

    def stop(self) -> None:
        """Have the child end: with SIGTERM, and its process group with SIGKILL after the grace period."""
        assert self._process.stdin is not None
        self._process.stdin.close()

    def kill(self) -> None:
        """End the child and its process group with SIGKILL, without a grace period."""
        self._process.terminate()

    def _ask(self, url: str) -> None:
        from urllib.error import HTTPError
        from urllib.request import ProxyHandler, build_opener  # here: the guard needs neither

        opener, pause = build_opener(ProxyHandler({})), _POLL_SECONDS
        while self._process.poll() is None:
            try:
                opener.open(url, timeout=5).close()
                self.is_ready = True
                return
            except HTTPError:
                pause = min(2 * pause, _LONGEST_POLL_SECONDS)  # it has started, and logs each of these requests
            except OSError:
                pass  # not started yet
            time.sleep(pause)

    def _copy_log(self) -> None:
        assert self._process.stdout is not None
        prefix = f"{self.name:>6} | ".encode()
        with self._process.stdout as log:
            for line in log:
                if self._ready_line is not None and self._ready_line.search(line):
                    self.is_ready = True
                with contextlib.suppress(OSError):  # a full disk: the child would wait for who reads its log
                    sys.stderr.buffer.write(line if line.startswith(_JSON) else prefix + line)
                    sys.stderr.buffer.flush()


# The guard: a parent process for one child

_PR_SET_PDEATHSIG = 1


def guard(arguments: list[str]) -> int:
    """Run the command; returns its exit status, or 128 + N if signal N ended it."""
    grace_seconds, command = float(arguments[0]), arguments[1:]
    # Ctrl-C in a terminal, and its end, reach the whole foreground group. The service handles them and closes the pipe.
    # A function, not SIG_IGN, which the child would inherit.
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: None)
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


def _die_with_parent() -> Callable[[], None] | None:
    """Make the kernel end the child if the guard itself is killed. Linux only; `None` elsewhere."""
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None)  # loaded here: between fork and exec little is safe
    return lambda: libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(guard(sys.argv[1:]))
