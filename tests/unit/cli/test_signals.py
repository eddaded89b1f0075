"""Which signals end a command, and how `replaceme serve` and `worker` end."""

import os
import re
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from api.cli.child_processes import ChildProcess
from api.cli.exit_codes import handled
from api.cli.launch import Supervisor
from benchmarks.harness.processes import wait_until


@pytest.fixture(autouse=True)
def _a_terminal_that_may_close() -> Iterator[None]:
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("is_kept", [False, True])
def test_what_nohup_ignores_stays_ignored(is_kept: bool) -> None:
    before = signal.SIG_IGN if is_kept else signal.SIG_DFL
    signal.signal(signal.SIGHUP, before)
    received: list[int] = []
    with handled(lambda number, _: received.append(number), signal.SIGHUP, signal.SIGTERM):
        for number in (signal.SIGHUP, signal.SIGTERM):
            signal.raise_signal(number)
    assert received == ([signal.SIGTERM] if is_kept else [signal.SIGHUP, signal.SIGTERM])
    assert signal.getsignal(signal.SIGHUP) is before


def a_child(program: str) -> ChildProcess:
    """One that is ready once it has printed "up"."""
    command = [sys.executable, "-c", program]
    return ChildProcess("child", command, environment=os.environ, grace_seconds=5, ready_line=re.compile(b"up"))


def test_the_guard_of_a_child_outlives_its_terminal() -> None:
    others = psutil.Process().children()
    child = a_child("import time; print('up', flush=True); time.sleep(60)")
    try:
        wait_until(lambda: child.is_ready, seconds=30, what="a child that runs")
        (guard,) = set(psutil.Process().children()) - set(others)
        guard.send_signal(signal.SIGHUP)
    finally:
        child.stop()
    wait_until(lambda: child.status() is not None, seconds=10, what="the end of the child")
    assert child.status() == 128 + signal.SIGTERM, "the guard ended the child, as it is meant to"


def test_a_child_whose_log_cannot_be_copied_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    with Path("/dev/full").open("w") as full:
        monkeypatch.setattr(sys, "stderr", full)
        child = a_child("for _ in range(5000): print('x' * 50)\nprint('up', flush=True)")
        wait_until(lambda: child.status() is not None, seconds=30, what="the end of the child")
        child.stop()
        assert (child.status(), child.is_ready) == (0, True)
        monkeypatch.undo()
        with suppress(OSError):  # what is left in its buffer
            full.close()


class SlowToStop(ChildProcess):
    """A child without a process. While it stops, signals arrive: first one of a terminal, then one of a person."""

    def __init__(self) -> None:
        self.is_ready = True
        self.ended: int | None = None
        self.sent: list[int] = []
        signal.raise_signal(signal.SIGHUP)

    def status(self) -> int | None:
        return self.ended

    def stop(self) -> None:
        threading.Thread(target=self._send_signals).start()

    def _send_signals(self) -> None:
        for number in (signal.SIGHUP, signal.SIGTERM):
            self.sent.append(number)
            os.kill(os.getpid(), number)
            time.sleep(0.3)
            if self.ended is not None:
                return

    def kill(self) -> None:
        self.ended = 137


def test_a_second_sigterm_ends_a_stop_and_a_second_sighup_does_not() -> None:
    started: list[SlowToStop] = []

    def start() -> ChildProcess:
        started.append(SlowToStop())
        return started[-1]

    Supervisor({"api": start}).run(ready="ready")
    assert [one.sent for one in started] == [[signal.SIGHUP, signal.SIGTERM]], "the first did not kill it"
