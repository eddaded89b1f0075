"""What has to hold before `replaceme serve` starts its children: found out early, where a person can still be told."""

import socket
import tempfile
from collections.abc import Mapping
from pathlib import Path

from api.queue import Queue
from replaceme_core.errors import InvalidInput
from replaceme_core.settings import Settings


def prepare_data(data: Path) -> None:
    """Make the data directory. Raises `InvalidInput` unless it can be written."""
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
    """Uvicorn and Celery look for modules in the present `directory` first. Raises `InvalidInput` if it has others of
    our names.
    """
    if directory.resolve() == Path(__file__).parents[2]:
        return
    for name in ("api", "worker", "replaceme_core"):
        for found in (directory / name / "__init__.py", directory / f"{name}.py"):
            if found.is_file():
                raise InvalidInput(
                    f"{found} would be taken for a part of the service; start it in another directory, with --data for "
                    "the place of its files",
                    field="directory",
                    value=str(directory),
                )


def check_broker(settings: Settings) -> None:
    """A worker waits for its broker for ever; here a person is waiting. Raises `QueueUnreachable`, `InvalidInput`."""
    queue_to_worker = Queue(settings)
    try:
        queue_to_worker.ping()
    except (KeyError, ImportError) as error:
        raise InvalidInput("the broker's URL must begin with redis:// or filesystem://", field="broker_url") from error
    finally:
        queue_to_worker.close()


def claim_port(host: str, port: int) -> int:
    """The port to listen on; 0 stands for any free one. Raises `InvalidInput` where nobody can listen there."""
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


def child_environment(settings: Settings, environ: Mapping[str, str]) -> dict[str, str]:
    """The children's environment: the data directory, and on the embedded default a directory that acts as the Hub."""
    environment = {**environ, "REPLACEME_DATA": str(settings.resolved_data), "PYTHONUNBUFFERED": "1"}
    if settings.uses_embedded_default and "hub" not in settings.model_fields_set:
        hub = settings.resolved_data / "hub"
        hub.mkdir(exist_ok=True)
        environment["REPLACEME_HUB"] = f"dir:{hub}"
    return environment


def url_of(host: str, port: int) -> str:
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
