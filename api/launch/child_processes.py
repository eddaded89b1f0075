"""The children of `replaceme serve` and `replaceme worker`, and what happens to them.

Each child stands behind a guard (`api.launch.guard`), so that nothing is left when this process goes, however it goes.
"""

import queue
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

WORKER_GRACE_SECONDS = 20.0  # once its job has had its time: to end the runner and to give the job back
WORKER_READY = re.compile(rb"@\S+ ready\.")  # what celery logs once it consumes


class ServiceStopped(Exception):
    """The service ended without being asked to; the message says which part and how."""


@dataclass(frozen=True, kw_only=True)
class Ready:
    name: str


@dataclass(frozen=True, kw_only=True)
class Ended:
    name: str
    status: int


@dataclass(frozen=True, kw_only=True)
class Signalled:
    number: int


Happening = Ready | Ended | Signalled


class Part:
    """A child process, its log and its life line."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        environment: Mapping[str, str],
        grace_seconds: float,
        tell: Callable[[Happening], None],
        ready_line: re.Pattern[bytes] | None = None,
    ) -> None:
        self.name = name
        self._grace_seconds = grace_seconds
        self._tell = tell
        self._ready_line = ready_line
        self._process = subprocess.Popen(
            [sys.executable, "-m", "api.launch.guard", str(grace_seconds), *command],
            stdin=subprocess.PIPE,  # the life line
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=dict(environment),
        )
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._relay, self._watch)]
        for thread in self._threads:
            thread.start()

    def is_running(self) -> bool:
        return self._process.poll() is None

    def stop(self) -> None:
        """Let go of the life line and wait until the child and all it started are gone."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(timeout=self._grace_seconds + 5)
        except subprocess.TimeoutExpired:
            self.hurry()
            self._process.wait()
        for thread in self._threads:
            thread.join(timeout=1)

    def hurry(self) -> None:
        """Do not wait for the grace period."""
        self._process.terminate()

    def _watch(self) -> None:
        self._tell(Ended(name=self.name, status=self._process.wait()))

    def _relay(self) -> None:
        assert self._process.stdout is not None
        prefix = f"{self.name:>6} | ".encode()
        with self._process.stdout as log:
            for line in log:
                if self._ready_line is not None and self._ready_line.search(line):
                    self._ready_line = None
                    self._tell(Ready(name=self.name))
                sys.stderr.buffer.write(prefix + line)
                sys.stderr.buffer.flush()


@contextmanager
def signals_to(happenings: "queue.SimpleQueue[Happening]") -> Iterator[None]:
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    before = {
        number: signal.signal(number, lambda received, _: happenings.put(Signalled(number=received)))
        for number in numbers
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def worker_command(*options: str) -> list[str]:
    """A Celery worker that takes one job at a time."""
    return [
        *(sys.executable, "-m", "celery", "--quiet", "-A", "worker.app", "worker"),
        *("--pool", "prefork", "--concurrency", "1", "--loglevel", "INFO"),
        *options,
    ]
