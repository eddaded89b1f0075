"""The commands that run the service until a signal: `replaceme serve` and `replaceme worker`.

`serve` runs migrations, then the API and a worker as child processes, until one of them ends. Standard output has one
line, `ready http://HOST:PORT`. `worker` runs a Celery worker for each GPU, or one for the CPU, and restarts one that
ends. Each worker and its runners see their own GPU only (`CUDA_VISIBLE_DEVICES`). Standard output has one line once all
of them have started, `ready NAME ...`. The logs of child processes go to standard error.
"""

import json
import os
import queue
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import httpx2

from api.cli.child_processes import (
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
from api.http.callers import check_exposure
from api.queue import Queue
from replaceme_core.errors import InvalidInput
from replaceme_core.hardware import WorkerKind, count_gpus, local_worker_kinds
from replaceme_core.ledger.database import Database
from replaceme_core.ledger.keys import DEFAULT_OWNER, Keys, NewKey, Scope, hash_of
from replaceme_core.ledger.migrate import upgrade
from replaceme_core.settings import Settings
from replaceme_core.telemetry import LogFormat

# `replaceme serve`

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
    return [sys.executable, "-m", "api.http.server", "--host", host, "--port", str(port)]


# `replaceme worker`

FIRST_PAUSE_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 60.0  # a worker that ran for longer than this is restarted after the first pause again
VISIBLE = "CUDA_VISIBLE_DEVICES"


@dataclass(frozen=True, kw_only=True)
class WorkerSpec:
    """A worker to start: its name, its kind, and the GPUs that it sees (a value of `CUDA_VISIBLE_DEVICES`)."""

    name: str
    worker_kind: WorkerKind
    visible: str


def plan_workers(gpus: str | None, environ: Mapping[str, str], *, count: Callable[[], int]) -> list[WorkerSpec]:
    """A worker for each GPU in `gpus` ("all", or numbers such as "0,1"); for `None`, one for the CPU.

    Numbers are CUDA's: they count the GPUs in CUDA_VISIBLE_DEVICES, if that is set. Raises `InvalidInput` for a number
    without a GPU.
    """
    if gpus is None:
        return [WorkerSpec(name="cpu", worker_kind=WorkerKind.CPU, visible="")]
    numbers = None if gpus.strip() == "all" else _numbers(gpus)
    found = count()
    if not found:
        raise InvalidInput("torch sees no GPU on this machine; without --gpus, a worker uses the CPU", field="gpus")
    for number in numbers or ():
        if number >= found:
            present = "GPU 0" if found == 1 else f"GPUs 0 to {found - 1}"
            raise InvalidInput(f"there is no GPU {number}: this machine has {present}", field="gpus", value=gpus)
    seen = [name.strip() for name in environ.get(VISIBLE, "").split(",") if name.strip()]
    names = seen[:found] if seen else [str(number) for number in range(found)]
    return [
        WorkerSpec(name=f"gpu{number}", worker_kind=WorkerKind.GPU, visible=names[number])
        for number in (range(found) if numbers is None else numbers)
    ]


def _numbers(gpus: str) -> list[int]:
    parts = [part.strip() for part in gpus.split(",")]
    if not all(part.isascii() and part.isdecimal() and len(part) < 6 for part in parts):
        raise InvalidInput(f"expected all, or GPU numbers such as 0,1; got {gpus!r}", field="gpus", value=gpus)
    numbers = [int(part) for part in parts]
    if len(set(numbers)) != len(numbers):
        raise InvalidInput(f"a GPU appears twice in {gpus!r}", field="gpus", value=gpus)
    return numbers


@dataclass
class _Running:
    """A worker and its process. `pause` is the delay before its next restart, in seconds."""

    spec: WorkerSpec
    process: ChildProcess
    started_at: float = field(default_factory=time.monotonic)
    pause: float = FIRST_PAUSE_SECONDS
    restart_at: float | None = None


class Workers:
    """Runs the workers in `specs`."""

    def __init__(self, specs: Sequence[WorkerSpec], *, settings: Settings, environ: Mapping[str, str]) -> None:
        self._settings = settings
        self._environment = child_environment(settings, environ)
        self._events: queue.SimpleQueue[ProcessEvent] = queue.SimpleQueue()
        self._specs = specs
        self._running: dict[str, _Running] = {}

    def run(self, *, announce: Callable[[str], None], warn: Callable[[str], None]) -> None:
        """Run until SIGTERM, SIGINT or SIGHUP, which the workers receive as SIGTERM.

        `announce` prints a line on standard output, `warn` on standard error. Raises `ServiceStopped` if a worker does
        not start.
        """
        with signals_to(self._events):
            try:
                for spec in self._specs:
                    self._running[spec.name] = _Running(spec=spec, process=self._start(spec))
                self._handle_events(announce, warn)
            finally:
                self._stop()

    def _handle_events(self, announce: Callable[[str], None], warn: Callable[[str], None]) -> None:
        waiting_for = {spec.name for spec in self._specs}
        deadline = time.monotonic() + STARTUP_SECONDS
        while True:
            try:
                event = self._events.get(timeout=self._seconds_until_due(deadline if waiting_for else None))
            except queue.Empty:
                if waiting_for and time.monotonic() >= deadline:
                    late = ", ".join(sorted(waiting_for))
                    raise ServiceStopped(
                        f"not started within {STARTUP_SECONDS:.0f} seconds: worker {late}; see the log above"
                    ) from None
                self._restart_due()
                continue
            match event:
                case Ready(name=name):
                    first_start = name in waiting_for
                    waiting_for.discard(name)
                    if first_start and not waiting_for:
                        announce(f"ready {' '.join(spec.name for spec in self._specs)}")
                case Ended(name=name, status=status) if name in waiting_for:
                    raise ServiceStopped(
                        f"the worker {name} ended with exit status {status} during its start; see the log above"
                    )
                case Ended(name=name, status=status):
                    self._schedule_restart(self._running[name], status, warn)
                case Signalled():
                    return

    def _seconds_until_due(self, deadline: float | None) -> float | None:
        """Seconds until the next restart or the deadline for startup; `None` if there is neither."""
        due = [running.restart_at for running in self._running.values() if running.restart_at is not None]
        due += [] if deadline is None else [deadline]
        return max(min(due) - time.monotonic(), 0) if due else None

    def _schedule_restart(self, running: _Running, status: int, warn: Callable[[str], None]) -> None:
        now = time.monotonic()
        if now - running.started_at > LONGEST_PAUSE_SECONDS:
            running.pause = FIRST_PAUSE_SECONDS
        running.restart_at = now + running.pause
        warn(f"the worker {running.spec.name} ended with exit status {status}; restarting it in {running.pause:.0f} s")
        running.pause = min(2 * running.pause, LONGEST_PAUSE_SECONDS)

    def _restart_due(self) -> None:
        for running in self._running.values():
            if running.restart_at is not None and running.restart_at <= time.monotonic():
                running.restart_at = None
                running.process.stop()  # it has ended: this closes its pipe and joins its threads
                running.process = self._start(running.spec)
                running.started_at = time.monotonic()

    def _start(self, spec: WorkerSpec) -> ChildProcess:
        return ChildProcess(
            spec.name,
            worker_command("--hostname", f"{spec.name}-{os.getpid()}@%h", "--queues", spec.worker_kind.value),
            environment={**self._environment, VISIBLE: spec.visible},
            grace_seconds=self._settings.drain_seconds + WORKER_GRACE_SECONDS,
            report=self._events.put,
            ready_line=WORKER_READY,
        )

    def _stop(self) -> None:
        """Stop all workers at the same time, since each may have a job to finish. A second signal kills them."""
        processes = [running.process for running in self._running.values()]
        threads = [threading.Thread(target=process.stop) for process in processes]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            try:
                event = self._events.get(timeout=_POLL_SECONDS)
            except queue.Empty:
                continue
            if isinstance(event, Signalled):
                for process in processes:
                    if process.is_running():
                        process.kill()
        for thread in threads:
            thread.join()


def work(
    *,
    gpus: str | None,
    settings: Settings,
    environ: Mapping[str, str],
    announce: Callable[[str], None],
    warn: Callable[[str], None],
) -> None:
    """Run workers until a signal. Raises `InvalidInput`, `QueueUnreachable`, and as `Workers.run` does."""
    specs = plan_workers(gpus, environ, count=lambda: count_gpus(environ))
    prepare_data(settings.resolved_data)
    check_broker(settings)
    Workers(specs, settings=settings, environ=environ).run(announce=announce, warn=warn)


# Checks and preparations before child processes start

LOCAL_KEY_NAME = "local"
_OWNER_ONLY = 0o600


def prepare_data(data: Path) -> None:
    """Create the data directory. Raises `InvalidInput` if it is not writable."""
    try:
        data.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=data):
            pass
    except OSError as error:
        raise InvalidInput(
            f"the data directory {data} cannot be written: {error.strerror}; choose another with --data",
            field="data",
            value=str(data),
        ) from error


def check_directory(directory: Path) -> None:
    """Raises `InvalidInput` if the working `directory` has modules named like the service's own.

    Uvicorn and Celery import from the working directory first.
    """
    if directory.resolve() == Path(__file__).parents[2]:
        return
    for name in ("api", "worker", "replaceme_core"):
        for found in (directory / name / "__init__.py", directory / f"{name}.py"):
            if found.is_file():
                raise InvalidInput(
                    f"{found} would be imported in place of the service's own module; start the service in another "
                    "directory, and set --data",
                    field="directory",
                    value=str(directory),
                )


def check_broker(settings: Settings) -> None:
    """Raises `QueueUnreachable` or `InvalidInput`. A worker would wait for its broker forever, without an error."""
    broker = Queue(settings)
    try:
        broker.ping()
    except (KeyError, ImportError) as error:
        raise InvalidInput("the broker's URL must begin with redis:// or filesystem://", field="broker_url") from error
    finally:
        broker.close()


def claim_port(host: str, port: int) -> int:
    """The port to listen on; a free one for 0. Raises `InvalidInput` if it is in use or not allowed."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            chosen: int = probe.getsockname()[1]
    except OSError as error:
        raise InvalidInput(
            f"cannot listen on {host}, port {port}: {error.strerror or error}; choose another with --host and --port",
            field="port",
            value=port,
        ) from error
    return chosen


def answered_hosts(settings: Settings, host: str) -> str:
    """The value of `REPLACEME_ALLOWED_HOSTS` for an API that listens on `host`."""
    every_address = host in ("", "0.0.0.0", "::")  # clients know the service by another name
    return ",".join([*(settings.allowed_hosts or ()), *([] if every_address else [host.partition("%")[0]])])


def child_environment(settings: Settings, environ: Mapping[str, str]) -> dict[str, str]:
    """The environment of child processes: the data directory and, on the embedded default, a local Hub.

    Their logs come through this process: they are text if that has a terminal, unless a setting names the form.
    """
    environment = {**environ, "REPLACEME_DATA": str(settings.resolved_data), "PYTHONUNBUFFERED": "1"}
    if "log_format" not in settings.model_fields_set and sys.stderr.isatty():
        environment["REPLACEME_LOG_FORMAT"] = LogFormat.TEXT
    if settings.uses_embedded_default and "hub" not in settings.model_fields_set:
        hub = settings.resolved_data / "hub"
        hub.mkdir(exist_ok=True)
        environment["REPLACEME_HUB"] = f"dir:{hub}"
    return environment


def url_of(host: str, port: int) -> str:
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


# The API key of the embedded default, in a file of the data directory that only its owner can read


def provide_api_key(settings: Settings) -> None:
    """See that `DATA/api-key` has a key of this database, with all scopes. Makes one at the first start.

    Where the file is gone or its key has ended, the keys made before are revoked. Raises `InvalidInput` if the file
    cannot be read or written, and `DatabaseUnreachable`.
    """
    path = settings.api_key_file
    there = _read(path)
    database = Database(settings.resolved_database_url)
    try:
        with database.session() as session:
            keys = Keys(session)
            if there is not None and keys.find_live(hash_of(there)) is not None:
                return
            keys.revoke_local()
            new = NewKey(owner=DEFAULT_OWNER, name=LOCAL_KEY_NAME, scopes=frozenset(Scope), is_local=True)
            # before the commit: a key that nobody knows would be worse than a file with a key that is not known yet
            _write(path, keys.create(new).key)
    finally:
        database.close()


def _read(path: Path) -> str | None:
    try:
        text = path.read_text(encoding="utf-8").strip()
        path.chmod(_OWNER_ONLY)
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise _unusable(path, error) from error
    return text or None


def _write(path: Path, text: str) -> None:
    """Write the whole file at once."""
    try:
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")  # for its owner only
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(text + "\n")
            Path(temporary).replace(path)
        finally:
            Path(temporary).unlink(missing_ok=True)
    except OSError as error:
        raise _unusable(path, error) from error


def _unusable(path: Path, error: Exception) -> InvalidInput:
    return InvalidInput(f"{path} cannot be used: {error}", field="data", value=str(path))
