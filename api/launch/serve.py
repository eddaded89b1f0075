"""`replaceme serve`: migrations, then the API and a worker as child processes, until a signal or until one ends.

Standard output has one line, `ready http://HOST:PORT`. The logs of the child processes go to standard error.
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
    ChildProcess,
    Ended,
    ProcessEvent,
    Ready,
    ServiceStopped,
    Signalled,
    signals_to,
    worker_command,
)
from api.launch.local_key import provide_api_key
from api.launch.startup import (
    answered_hosts,
    check_broker,
    check_directory,
    check_exposure,
    child_environment,
    claim_port,
    prepare_data,
    url_of,
)
from replaceme_core.hardware import local_worker_kinds
from replaceme_core.ledger.migrate import upgrade
from replaceme_core.settings import Settings

STARTUP_SECONDS = 120.0
API_GRACE_SECONDS = 8.0
_POLL_SECONDS = 0.2


def serve(
    *, host: str, port: int, settings: Settings, environ: Mapping[str, str], announce: Callable[[str], None]
) -> None:
    """Run until SIGTERM, SIGINT or SIGHUP. `announce` prints one line on standard output.

    Raises `InvalidInput` (address, directories, no torch), `DatabaseUnreachable`, `QueueUnreachable`, and
    `ServiceStopped` if a child process ends by itself or does not start.
    """
    check_directory(Path.cwd())
    prepare_data(settings.resolved_data)
    port = claim_port(host, port)
    upgrade(settings.resolved_database_url)
    check_exposure(host, settings)
    if settings.uses_embedded_default:
        provide_api_key(settings)
    check_broker(settings)
    environment = {**child_environment(settings, environ), "REPLACEME_ALLOWED_HOSTS": answered_hosts(settings, host)}
    served = local_worker_kinds(environ, runner_command=settings.runner_command)
    if settings.uses_embedded_default and settings.worker_kinds is None:
        # no other worker will join: the API refuses jobs that this one cannot run, which would wait forever
        environment["REPLACEME_ROUTES"] = json.dumps(served)
    events: queue.SimpleQueue[ProcessEvent] = queue.SimpleQueue()
    with signals_to(events):
        children: list[ChildProcess] = []
        try:
            children.append(
                ChildProcess(
                    "worker",
                    worker_command("--queues", ",".join(served)),
                    environment=environment,
                    grace_seconds=settings.drain_seconds + WORKER_GRACE_SECONDS,
                    report=events.put,
                    ready_line=WORKER_READY,
                )
            )
            children.append(
                ChildProcess(
                    "api",
                    _api_command(host, port),
                    environment=environment,
                    grace_seconds=API_GRACE_SECONDS,
                    report=events.put,
                )
            )
            _run(children, host=host, port=port, events=events, announce=announce)
        finally:
            _stop(children, events)


def _run(
    children: list[ChildProcess],
    *,
    host: str,
    port: int,
    events: "queue.SimpleQueue[ProcessEvent]",
    announce: Callable[[str], None],
) -> None:
    reachable_host = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(host, host)
    url = url_of(reachable_host, port)
    readiness = threading.Thread(target=_report_readiness, args=(url, children, events.put), daemon=True)
    readiness.start()
    waiting_for = {child.name for child in children}
    deadline = time.monotonic() + STARTUP_SECONDS
    while True:
        try:
            event = events.get(timeout=max(deadline - time.monotonic(), 0) if waiting_for else None)
        except queue.Empty:
            late = " and the ".join(sorted(waiting_for))
            raise ServiceStopped(
                f"the {late} did not start within {STARTUP_SECONDS:.0f} seconds; see the log above"
            ) from None
        match event:
            case Ready(name=name):
                waiting_for.discard(name)
                if not waiting_for:
                    announce(f"ready {url}")
            case Ended(name=name, status=status):
                raise ServiceStopped(f"the {name} process ended with exit status {status}; the service stops")
            case Signalled():
                return


def _stop(children: list[ChildProcess], events: "queue.SimpleQueue[ProcessEvent]") -> None:
    """Stop the worker first, so that the API still responds while a job is released. A second signal kills them."""

    def stop_all() -> None:
        for child in children:
            child.stop()

    stopping = threading.Thread(target=stop_all)
    stopping.start()
    while stopping.is_alive():
        try:
            event = events.get(timeout=_POLL_SECONDS)
        except queue.Empty:
            continue
        if isinstance(event, Signalled):
            for child in children:
                if child.is_running():
                    child.kill()
    stopping.join()


def _report_readiness(url: str, children: list[ChildProcess], report: Callable[[ProcessEvent], None]) -> None:
    pause = _POLL_SECONDS
    with httpx2.Client(timeout=5, trust_env=False) as client:
        while all(child.is_running() for child in children):
            try:
                if client.get(f"{url}/ready").status_code == httpx2.codes.OK:
                    report(Ready(name="api"))
                    return
                pause = min(2 * pause, 5.0)  # the API has started, and logs each of these requests
            except httpx2.TransportError:
                pass  # not started yet
            time.sleep(pause)


def _api_command(host: str, port: int) -> list[str]:
    return [sys.executable, "-m", "api.launch.http_server", "--host", host, "--port", str(port)]
