"""`replaceme serve`: migrations, then the API and a worker as children, until a signal or until one of them dies.

Standard output carries one line, `ready http://HOST:PORT`; what the children log goes to standard error.
"""

import json
import queue
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import httpx2

from api.launch.child_processes import (
    WORKER_GRACE_SECONDS,
    WORKER_READY,
    Ended,
    Happening,
    Part,
    Ready,
    ServiceStopped,
    Signalled,
    signals_to,
    worker_command,
)
from api.launch.startup import check_broker, check_directory, child_environment, claim_port, prepare_data, url_of
from replaceme_core.admission.hardware import has_accelerator
from replaceme_core.admission.worker_kind import WorkerKind
from replaceme_core.jobs.migrate import upgrade
from replaceme_core.settings import Settings

STARTUP_SECONDS = 120.0
API_GRACE_SECONDS = 8.0
_API_DRAIN_SECONDS = 5
_POLL_SECONDS = 0.2


def serve(*, host: str, port: int, settings: Settings, environ: Mapping[str, str], say: Callable[[str], None]) -> None:
    """Run until SIGTERM or SIGINT. `say` writes one line on standard output.

    Raises `InvalidInput` (address, directories, no torch), `DatabaseUnreachable`, `QueueUnreachable`, and
    `ServiceStopped` when a part ends by itself or does not come up.
    """
    check_directory(Path.cwd())
    prepare_data(settings.resolved_data)
    port = claim_port(host, port)
    upgrade(settings.resolved_database_url)
    check_broker(settings)
    environment = child_environment(settings, environ)
    served = local_worker_kinds(settings, environ)
    if settings.uses_embedded_default and settings.worker_kinds is None:
        # a job that nobody can do would wait for ever; at servers that others share, another worker may come for it
        environment["REPLACEME_ROUTES"] = json.dumps(served)
    happenings: queue.SimpleQueue[Happening] = queue.SimpleQueue()  # its put() may be called from a signal handler
    with signals_to(happenings):
        parts: list[Part] = []
        try:
            parts.append(
                Part(
                    "worker",
                    worker_command("--queues", ",".join(served)),
                    environment=environment,
                    grace_seconds=settings.drain_seconds + WORKER_GRACE_SECONDS,
                    tell=happenings.put,
                    ready_line=WORKER_READY,
                )
            )
            parts.append(
                Part(
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


def local_worker_kinds(settings: Settings, environ: Mapping[str, str]) -> list[WorkerKind]:
    """The jobs that a worker on this machine can do. A runner of the operator's own may see other hardware."""
    if settings.runner_command is not None or has_accelerator(environ):
        return list(WorkerKind)
    return [WorkerKind.CPU]


def _run(
    parts: list[Part],
    *,
    host: str,
    port: int,
    happenings: "queue.SimpleQueue[Happening]",
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
            case Ready(name=name):
                waiting_for.discard(name)
                if not waiting_for:
                    say(f"ready {url_of(host, port)}")
            case Ended(name=name, status=status):
                raise ServiceStopped(f"the {name} ended with exit status {status}, so the service stops")
            case Signalled():
                return


def _stop(parts: list[Part], happenings: "queue.SimpleQueue[Happening]") -> None:
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
        if isinstance(happening, Signalled):
            for part in parts:
                if part.is_running():
                    part.hurry()
    ending.join()


def _poll_api(url: str, parts: list[Part], tell: Callable[[Happening], None]) -> None:
    pause = _POLL_SECONDS
    with httpx2.Client(timeout=5, trust_env=False) as client:
        while all(part.is_running() for part in parts):
            try:
                if client.get(f"{url}/ready").status_code == httpx2.codes.OK:
                    tell(Ready(name="api"))
                    return
                pause = min(2 * pause, 5.0)  # it is up, and logs each refusal
            except httpx2.TransportError:
                pass  # not up yet
            time.sleep(pause)


def _api_command(host: str, port: int) -> list[str]:
    return [
        *(sys.executable, "-m", "uvicorn", "api.main:app", "--host", host, "--port", str(port)),
        *("--no-access-log", "--timeout-graceful-shutdown", str(_API_DRAIN_SECONDS)),
    ]
