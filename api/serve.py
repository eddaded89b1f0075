"""`replaceme serve`: migrations, then the API and a worker as children, until a signal or until one of them dies.

Each child stands behind a guard (`api.guard`), so that nothing is left when this process goes, however it goes.
Standard output carries one line, `ready http://HOST:PORT`; what the children log goes to standard error.
"""

import queue
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import httpx2

from api.startup import check_broker, child_environment, claim_port, prepare_data, url_of
from replaceme_core.jobs.migrate import upgrade
from replaceme_core.settings import Settings

STARTUP_SECONDS = 120.0
WORKER_GRACE_SECONDS = 20.0  # to end its runner and to give its job back
API_GRACE_SECONDS = 8.0
_API_DRAIN_SECONDS = 5
_POLL_SECONDS = 0.2
# celery's own name for it: do not finish the task first, which may take hours; the job goes back to the queue
_GIVE_BACK_AT_SIGTERM = {"REMAP_SIGTERM": "SIGQUIT"}
_WORKER_READY = re.compile(rb"@\S+ ready\.")  # what celery logs once it consumes


class ServiceStopped(Exception):
    """The service ended without being asked to; the message says which part and how."""


@dataclass(frozen=True, kw_only=True)
class _Ready:
    name: str


@dataclass(frozen=True, kw_only=True)
class _Ended:
    name: str
    status: int


@dataclass(frozen=True, kw_only=True)
class _Signalled:
    number: int


_Happening = _Ready | _Ended | _Signalled


class _Part:
    """A child process, its log and its life line."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        environment: Mapping[str, str],
        grace_seconds: float,
        tell: Callable[[_Happening], None],
        ready_line: re.Pattern[bytes] | None = None,
    ) -> None:
        self.name = name
        self._grace_seconds = grace_seconds
        self._tell = tell
        self._ready_line = ready_line
        self._process = subprocess.Popen(
            [sys.executable, "-m", "api.guard", str(grace_seconds), *command],
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
        self._tell(_Ended(name=self.name, status=self._process.wait()))

    def _relay(self) -> None:
        assert self._process.stdout is not None
        prefix = f"{self.name:>6} | ".encode()
        with self._process.stdout as log:
            for line in log:
                if self._ready_line is not None and self._ready_line.search(line):
                    self._ready_line = None
                    self._tell(_Ready(name=self.name))
                sys.stderr.buffer.write(prefix + line)
                sys.stderr.buffer.flush()


def serve(*, host: str, port: int, settings: Settings, environ: Mapping[str, str], say: Callable[[str], None]) -> None:
    """Run until SIGTERM or SIGINT. `say` writes one line on standard output.

    Raises `InvalidInput` (address, data directory), `DatabaseUnreachable`, `QueueUnreachable`, and `ServiceStopped`
    when a part ends by itself or does not come up.
    """
    prepare_data(settings.resolved_data)
    port = claim_port(host, port)
    upgrade(settings.resolved_database_url)
    check_broker(settings)
    environment = child_environment(settings, environ)
    happenings: queue.SimpleQueue[_Happening] = queue.SimpleQueue()  # its put() may be called from a signal handler
    with _signals_to(happenings):
        parts: list[_Part] = []
        try:
            parts.append(
                _Part(
                    "worker",
                    _worker_command(),
                    environment={**environment, **_GIVE_BACK_AT_SIGTERM},
                    grace_seconds=WORKER_GRACE_SECONDS,
                    tell=happenings.put,
                    ready_line=_WORKER_READY,
                )
            )
            parts.append(
                _Part(
                    "api",
                    _api_command(host, port),
                    environment=environment,
                    grace_seconds=API_GRACE_SECONDS,
                    tell=happenings.put,
                )
            )
            _run(parts, host=host, port=port, happenings=happenings, say=say)
        finally:
            _stop(parts, happenings)


def _run(
    parts: list[_Part],
    *,
    host: str,
    port: int,
    happenings: "queue.SimpleQueue[_Happening]",
    say: Callable[[str], None],
) -> None:
    reachable_host = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(host, host)
    poll = threading.Thread(target=_poll_api, args=(url_of(reachable_host, port), parts, happenings.put), daemon=True)
    poll.start()
    waiting_for = {part.name for part in parts}
    deadline = time.monotonic() + STARTUP_SECONDS
    while True:
        try:
            happening = happenings.get(timeout=max(deadline - time.monotonic(), 0) if waiting_for else None)
        except queue.Empty:
            late = " and the ".join(sorted(waiting_for))
            raise ServiceStopped(
                f"the {late} did not come up within {STARTUP_SECONDS:.0f} seconds; the log above says more"
            ) from None
        match happening:
            case _Ready(name=name):
                waiting_for.discard(name)
                if not waiting_for:
                    say(f"ready {url_of(host, port)}")
            case _Ended(name=name, status=status):
                raise ServiceStopped(f"the {name} ended with exit status {status}, so the service stops")
            case _Signalled():
                return


def _stop(parts: list[_Part], happenings: "queue.SimpleQueue[_Happening]") -> None:
    """The worker first, so that the API still answers while a job is given back. A second signal ends the patience."""

    def end_them() -> None:
        for part in parts:
            part.stop()

    ending = threading.Thread(target=end_them)
    ending.start()
    while ending.is_alive():
        try:
            happening = happenings.get(timeout=_POLL_SECONDS)
        except queue.Empty:
            continue
        if isinstance(happening, _Signalled):
            for part in parts:
                if part.is_running():
                    part.hurry()
    ending.join()


def _poll_api(url: str, parts: list[_Part], tell: Callable[[_Happening], None]) -> None:
    pause = _POLL_SECONDS
    with httpx2.Client(timeout=5, trust_env=False) as client:
        while all(part.is_running() for part in parts):
            try:
                if client.get(f"{url}/ready").status_code == httpx2.codes.OK:
                    tell(_Ready(name="api"))
                    return
                pause = min(2 * pause, 5.0)  # it is up, and logs each refusal
            except httpx2.TransportError:
                pass  # not up yet
            time.sleep(pause)


@contextmanager
def _signals_to(happenings: "queue.SimpleQueue[_Happening]") -> Iterator[None]:
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    before = {
        number: signal.signal(number, lambda received, _: happenings.put(_Signalled(number=received)))
        for number in numbers
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _api_command(host: str, port: int) -> list[str]:
    return [
        *(sys.executable, "-m", "uvicorn", "api.main:app", "--host", host, "--port", str(port)),
        *("--no-access-log", "--timeout-graceful-shutdown", str(_API_DRAIN_SECONDS)),
    ]


def _worker_command() -> list[str]:
    return [
        *(sys.executable, "-m", "celery", "--quiet", "-A", "worker.app", "worker"),
        *("--pool", "prefork", "--concurrency", "1", "--loglevel", "INFO"),
    ]
