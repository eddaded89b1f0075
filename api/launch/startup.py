"""Checks and preparations before `replaceme serve` and `replaceme worker` start child processes."""

import ipaddress
import os
import socket
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from api.queue import Queue
from replaceme_core.errors import InvalidInput
from replaceme_core.ledger.database import Database
from replaceme_core.ledger.keys import DEFAULT_OWNER, Keys, NewKey, Scope, hash_of
from replaceme_core.settings import Settings
from replaceme_core.telemetry import LogFormat

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


def check_exposure(host: str, settings: Settings) -> None:
    """Raises `InvalidInput` if other machines can reach `host` and nobody has a key, unless the operator agrees.

    The database is read only if they can. A name that has no address is no error here: `claim_port` says what is wrong
    with it. Raises `DatabaseUnreachable` too.
    """
    if settings.allow_unauthenticated or settings.require_key:
        return
    try:
        found = socket.getaddrinfo(host or None, 0, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError:
        return
    addresses = (ipaddress.ip_address(str(address[0]).partition("%")[0]) for *_, address in found)
    if not all(address.is_loopback for address in addresses) and not _has_live_key(settings):
        raise InvalidInput(
            f"nobody has an API key, and other machines can reach {host or 'every address'}; create one with "
            "`replaceme keys create`, or set REPLACEME_ALLOW_UNAUTHENTICATED=true if all who reach the address may use "
            "the service and its tokens",
            field="host",
            value=host,
        )


def _has_live_key(settings: Settings) -> bool:
    database = Database(settings.resolved_database_url)
    try:
        with database.session(read_only=True) as session:
            return Keys(session).is_any_live()
    finally:
        database.close()


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
            _write(path, keys.create(new).text)
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
