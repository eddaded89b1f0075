"""The commands that run the service until a signal: `replaceme serve` and `replaceme worker`.

`serve` runs migrations, then the API and a worker as child processes, until one of them ends. Standard output has one
line, `ready http://HOST:PORT`. `worker` runs a Celery worker for each GPU, or one for the CPU, and restarts one that
ends. Each worker and its runners see their own GPU only (`CUDA_VISIBLE_DEVICES`). Standard output has one line once all
of them have started, `ready NAME ...`. The logs of child processes go to standard error.
"""

import json
import os
import re
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NoReturn

from api.cli.child_processes import ChildProcess
from api.cli.exit_codes import handled
from api.cli.output.console import print_line, print_note
from api.queue import Queue
from replaceme_core.broker import FILES, REDIS
from replaceme_core.errors import InvalidInput, ReplaceMeError
from replaceme_core.hardware import WorkerKind, count_gpus, local_worker_kinds
from replaceme_core.hub.port import DIRECTORY_PREFIX
from replaceme_core.ledger.database import Database
from replaceme_core.ledger.keys import DEFAULT_OWNER, Keys, NewKey, Scope, hash_of
from replaceme_core.ledger.migrate import upgrade
from replaceme_core.settings import Settings
from replaceme_core.telemetry import LogFormat

STARTUP_SECONDS = 120.0
WORKER_GRACE_SECONDS = 20.0  # after the drain: to end the runner and to release the job
WORKER_READY = re.compile(rb"@\S+ ready\.")  # Celery logs this line once it consumes messages
API_GRACE_SECONDS = 8.0
LOOK_SECONDS = 0.1  # between two looks at the child processes
FIRST_PAUSE_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 60.0  # a worker that ran for longer than this is restarted after the first pause again
VISIBLE = "CUDA_VISIBLE_DEVICES"


class ServiceStopped(ReplaceMeError):
    """The service ended unexpectedly; the message names the process and its exit status."""


def serve(*, host: str, port: int, settings: Settings, environ: Mapping[str, str]) -> None:
    """Run until SIGTERM, SIGINT or SIGHUP.

    Raises `InvalidInput` (address, directories, no torch), `DatabaseUnreachable`, `QueueUnreachable`, and
    `ServiceStopped` if a child process ends by itself or does not start.
    """
    prepare(settings.resolved_data)
    port = claim_port(host, port)
    upgrade(settings.resolved_database_url)
    from api.http.callers import check_exposure  # needs the extra `api`, which `worker` and `doctor` do without

    check_exposure(host, settings)
    if settings.uses_embedded_default:
        provide_api_key(settings)
    check_broker(settings)
    environment = {**child_environment(settings, environ), "REPLACEME_ALLOWED_HOSTS": answered_hosts(settings, host)}
    served = local_worker_kinds(environ, runner_command=settings.runner_command)
    if settings.uses_embedded_default and settings.worker_kinds is None:
        # no other worker will join: the API refuses jobs that this one cannot run, which would wait forever
        environment["REPLACEME_ROUTES"] = json.dumps(served)
    reachable_host = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(host, host)
    url = f"http://[{reachable_host}]:{port}" if ":" in reachable_host else f"http://{reachable_host}:{port}"
    children: dict[str, Start] = {
        "worker": start_worker("worker", settings, environment, "--queues", ",".join(served)),
        "api": partial(
            ChildProcess,
            "api",
            api_command(host, port),
            environment=environment,
            grace_seconds=API_GRACE_SECONDS,
            ready_url=f"{url}/ready",
        ),
    }
    Supervisor(children).run(ready=f"ready {url}")


def work(*, gpus: str | None, settings: Settings, environ: Mapping[str, str]) -> None:
    """Run workers until a signal.

    Raises `InvalidInput`, `QueueUnreachable`, and `ServiceStopped` if a worker does not start.
    """
    prepare(settings.resolved_data)
    workers = plan_workers(gpus, environ, count=lambda: count_gpus(environ))
    kind = WorkerKind.CPU if gpus is None else WorkerKind.GPU
    check_broker(settings)
    environment = child_environment(settings, environ)
    children = {
        name: start_worker(
            name,
            settings,
            {**environment, VISIBLE: visible},
            *("--hostname", f"{name}-{os.getpid()}@%h", "--queues", kind.value),
        )
        for name, visible in workers.items()
    }
    Supervisor(children, restarts=True).run(ready=f"ready {' '.join(children)}")


def work_once(*, gpus: str | None, settings: Settings, environ: Mapping[str, str]) -> NoReturn:
    """Become a process that runs at most one job (`worker/once.py`). Raises `InvalidInput`, also for several GPUs."""
    prepare(settings.resolved_data)
    visible, *others = plan_workers(gpus, environ, count=lambda: count_gpus(environ)).values()
    if others:
        raise InvalidInput("one job needs one GPU: name it, such as --gpus 0", field="gpus", value=gpus)
    kind = WorkerKind.CPU if gpus is None else WorkerKind.GPU
    command = [sys.executable, "-m", "worker.once", "--queues", kind.value]
    os.execve(sys.executable, command, {**child_environment(settings, environ), VISIBLE: visible})


Start = Callable[[], ChildProcess]


def api_command(host: str, port: int) -> list[str]:
    return [sys.executable, "-m", "api.http.server", "--host", host, "--port", str(port)]


def worker_command(*options: str) -> list[str]:
    """The command of a Celery worker that runs one job at a time."""
    return [
        *(sys.executable, "-m", "celery", "--quiet", "-A", "worker.app", "worker"),
        *("--pool", "prefork", "--concurrency", "1", "--loglevel", "INFO"),
        *options,
    ]


def start_worker(name: str, settings: Settings, environment: Mapping[str, str], *options: str) -> Start:
    return partial(
        ChildProcess,
        name,
        worker_command(*options),
        environment=environment,
        grace_seconds=settings.drain_seconds + WORKER_GRACE_SECONDS,
        ready_line=WORKER_READY,
    )


@dataclass(kw_only=True)
class _Child:
    """A process that runs. `pause` is the delay before its next restart, in seconds."""

    process: ChildProcess
    started_at: float = field(default_factory=time.monotonic)
    pause: float = FIRST_PAUSE_SECONDS
    restart_at: float | None = None


class Supervisor:
    """Runs child processes until SIGTERM, SIGINT or SIGHUP, and prints a line once all of them accept work.

    With `restarts` one that ends is started again. Without it they belong together: the first that ends ends the
    others, and they are stopped one after the other, in their order.
    """

    def __init__(self, starts: Mapping[str, Start], *, restarts: bool = False) -> None:
        self._starts = starts
        self._restarts = restarts
        self._children: dict[str, _Child] = {}
        self._signals: list[int] = []

    def run(self, *, ready: str) -> None:
        """Raises `ServiceStopped` if a process does not start, or ends and is not restarted."""
        ends = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
        with handled(lambda number, _: self._signals.append(number), *ends):
            try:
                for name, start in self._starts.items():
                    self._children[name] = _Child(process=start())
                self._watch(ready)
            finally:
                self._stop()

    def _watch(self, ready: str) -> None:
        """Until a signal."""
        waiting_for = set(self._starts)
        deadline = time.monotonic() + STARTUP_SECONDS
        while not self._signals:
            for name, child in self._children.items():
                status = child.process.status()
                if name in waiting_for and child.process.is_ready:
                    waiting_for.discard(name)
                    if not waiting_for:
                        print_line(ready)
                if status is None:
                    continue
                if name in waiting_for or not self._restarts:
                    raise ServiceStopped(f"the {name} process ended with exit status {status}; see the log above")
                self._restart(name, child, status)
            if waiting_for and time.monotonic() >= deadline:
                late = " and the ".join(sorted(waiting_for))
                raise ServiceStopped(
                    f"the {late} did not start within {STARTUP_SECONDS:.0f} seconds; see the log above"
                )
            time.sleep(LOOK_SECONDS)
        self._signals.pop(0)

    def _restart(self, name: str, child: _Child, status: int) -> None:
        """Start one that has ended again, after a pause that grows."""
        now = time.monotonic()
        if child.restart_at is None:
            if now - child.started_at > LONGEST_PAUSE_SECONDS:
                child.pause = FIRST_PAUSE_SECONDS
            child.restart_at = now + child.pause
            with suppress(OSError):  # a full disk must not end the others
                print_note(f"the worker {name} ended with exit status {status}; restarting it in {child.pause:.0f} s")
            child.pause = min(2 * child.pause, LONGEST_PAUSE_SECONDS)
        elif now >= child.restart_at:
            child.process.stop()  # it has ended: this closes its pipe
            child.process, child.started_at, child.restart_at = self._starts[name](), now, None

    def _stop(self) -> None:
        """Stop all processes; a second signal other than SIGHUP kills them.

        Workers stop at the same time, since each may have a job to finish. The API stops after its worker, so that it
        still responds while a job is released.
        """
        processes = [child.process for child in self._children.values()]
        for group in [processes] if self._restarts else [[process] for process in processes]:
            for process in group:
                process.stop()
            while any(process.status() is None for process in group):
                if any(number != signal.SIGHUP for number in self._signals):  # a terminal that closes sends it twice
                    for each in processes:
                        each.kill()
                time.sleep(LOOK_SECONDS)


def plan_workers(gpus: str | None, environ: Mapping[str, str], *, count: Callable[[], int]) -> dict[str, str]:
    """Names of workers, each with the GPUs that it sees, a value of `CUDA_VISIBLE_DEVICES`.

    A worker for each GPU in `gpus` ("all", or numbers such as "0,1"); for `None`, one for the CPU.

    Numbers are CUDA's: they count the GPUs in CUDA_VISIBLE_DEVICES, if that is set. Raises `InvalidInput` for a number
    without a GPU.
    """
    if gpus is None:
        return {"cpu": ""}
    numbers = None if gpus.strip() == "all" else _numbers(gpus)
    found, seen = count(), [name.strip() for name in environ.get(VISIBLE, "").split(",") if name.strip()]
    if found and all(name.startswith("MIG-") for name in seen):  # of several CUDA shows one to each process
        found = max(found, len(seen))
    if not found:
        raise InvalidInput("torch sees no GPU on this machine; without --gpus, a worker uses the CPU", field="gpus")
    for number in numbers or ():
        if number >= found:
            present = "GPU 0" if found == 1 else f"GPUs 0 to {found - 1}"
            raise InvalidInput(f"there is no GPU {number}: this machine has {present}", field="gpus", value=gpus)
    names = seen[:found] if seen else [str(number) for number in range(found)]
    return {f"gpu{number}": names[number] for number in (range(found) if numbers is None else numbers)}


def _numbers(gpus: str) -> list[int]:
    parts = [part.strip() for part in gpus.split(",")]
    if not all(part.isascii() and part.isdecimal() and len(part) < 6 for part in parts):
        raise InvalidInput(f"expected all, or GPU numbers such as 0,1; got {gpus!r}", field="gpus", value=gpus)
    numbers = [int(part) for part in parts]
    if len(set(numbers)) != len(numbers):
        raise InvalidInput(f"a GPU appears twice in {gpus!r}", field="gpus", value=gpus)
    return numbers


# Checks and preparations before child processes start

LOCAL_KEY_NAME = "local"
_OWNER_ONLY = 0o600


def prepare(data: Path) -> None:
    """Create the data directory.

    Raises `InvalidInput` if it is not writable, or the working directory has modules named like the service's own:
    Uvicorn and Celery import from there first.
    """
    directory = Path.cwd().resolve()
    is_ours = directory == Path(__file__).parents[2]
    for name in () if is_ours else ("api", "worker", "replaceme_core"):
        for found in (directory / name / "__init__.py", directory / f"{name}.py"):
            if found.is_file():
                raise InvalidInput(
                    f"{found} would be imported in place of the service's own module; start the service in another "
                    "directory, and set --data",
                    field="directory",
                    value=str(directory),
                )
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


def check_broker(settings: Settings) -> None:
    """Raises `QueueUnreachable` or `InvalidInput`. A worker would wait for its broker forever, without an error."""
    try:
        if not settings.resolved_broker_url.startswith((*FILES, *REDIS)):
            raise LookupError  # what has no scheme is asked as AMQP, and does not answer
        with closing(Queue(settings)) as broker:
            broker.ping()
    except (LookupError, ImportError, TypeError, ValueError) as error:
        raise InvalidInput(
            "the broker's URL must be redis://HOST:PORT/NUMBER or filesystem://", field="broker_url"
        ) from error


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
    if (hub := settings.embedded_hub) is not None:
        hub.mkdir(exist_ok=True)
        environment["REPLACEME_HUB"] = f"{DIRECTORY_PREFIX}{hub}"
    return environment


# The API key of the embedded default, in a file of the data directory that only its owner can read


def provide_api_key(settings: Settings) -> None:
    """See that `DATA/api-key` has a key of this database, with all scopes. Makes one at the first start.

    Where the file is gone or its key has ended, the keys made before are revoked. Raises `InvalidInput` if the file
    cannot be read or written, and `DatabaseUnreachable`.
    """
    path = settings.api_key_file
    try:
        with closing(Database(settings.resolved_database_url)) as database, database.session() as session:
            keys, there = Keys(session), _read(path)
            if there and keys.find_live(hash_of(there)) is not None:
                return
            keys.revoke_local()
            new = NewKey(owner=DEFAULT_OWNER, name=LOCAL_KEY_NAME, scopes=frozenset(Scope), is_local=True)
            # before the commit: a key that nobody knows would be worse than a file with a key that is not known yet
            path.touch(mode=_OWNER_ONLY)
            path.write_text(f"{keys.create(new).key}\n", encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"{path} cannot be used: {error}", field="data", value=str(path)) from error


def _read(path: Path) -> str:
    """Empty if there is no such file."""
    try:
        text = path.read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return ""
    path.chmod(_OWNER_ONLY)
    return text
