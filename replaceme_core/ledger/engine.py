"""Engines for SQLite and PostgreSQL, and the errors of the product that their drivers' failures become."""

import os
import sqlite3
import stat
import time
from contextlib import suppress
from pathlib import Path

import psycopg
from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.pool import ConnectionPoolEntry, NullPool

from replaceme_core.errors import DatabaseFull, DatabaseOutdated, DatabaseUnreachable, InvalidInput, ReplaceMeError
from replaceme_core.settings import check_server

READ_ONLY = "replaceme_read_only"
"""Execution option of read-only transactions. They do not wait for writers, and the database refuses writes."""

IDLE_SECONDS = 30
BUSY_SECONDS = 30
_POOL_SECONDS = 10
_SQLITE_DAMAGED = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}
_SQLITE_BUSY = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_IOERR}
# connection, resources, operator intervention, deadlock and serialisation, lock timeout, idle timeout: a retry may help
_TRANSIENT_SQLSTATES = ("08", "53", "57", "40", "55P03", "25P03")
_DISK_FULL_SQLSTATE = "53100"
_NO_SUCH_SQLSTATES = ("42P01", "42703", "3F000")  # table, column, schema
_NO_SUCH = ("no such table", "no such column")


def parse_url(url: str) -> URL:
    """The url with its driver. Raises `InvalidInput`, whose message omits the url since it may contain a password."""
    try:
        check_server(url)
        parsed = make_url(url)
    except ArgumentError:
        parsed = None
    except ValueError as error:
        raise InvalidInput(f"the database url: {error}", field="database_url") from None
    if parsed is not None:
        backend, driver = parsed.get_backend_name(), parsed.drivername.partition("+")[2]
        if parsed.drivername == "postgres" or (backend == "postgresql" and driver in ("", "psycopg")):
            return parsed.set(drivername="postgresql+psycopg")
        if backend == "sqlite" and driver in ("", "pysqlite") and parsed.database not in (None, "", ":memory:"):
            return parsed
    raise InvalidInput(
        "the database url must be sqlite:///PATH or postgresql+psycopg://USER@HOST/NAME", field="database_url"
    )


def make_engine(url: str, *, foreign_keys: bool = True, pooled: bool = True, autocommit: bool = False) -> Engine:
    """An engine for `sqlite:///PATH` or `postgresql+psycopg://...`; connects on first use.

    `foreign_keys=False` is for migrations on SQLite only: copying a table drops the old one, and with foreign keys
    on this would delete the rows that refer to it.

    `autocommit` is for frequent reads on PostgreSQL: each statement is one round trip, without a transaction around it
    or a ping before it, and the database refuses writes. Under READ COMMITTED each statement has a snapshot of its own
    in any case. But a connection that the server has closed is detected only by the next statement, which must be
    retried.
    """
    parsed = parse_url(url)
    pool = {"pool_timeout": _POOL_SECONDS} if pooled else {"poolclass": NullPool}
    if parsed.get_backend_name() == "postgresql":
        waits = {"connect_timeout": 5, "tcp_user_timeout": 10_000, "keepalives_idle": 10, "keepalives_interval": 5}
        arguments = {name: value for name, value in waits.items() if name not in parsed.query}
        mode = {"isolation_level": "AUTOCOMMIT"} if autocommit else {}
        engine = create_engine(parsed, connect_args=arguments, pool_pre_ping=not autocommit, **pool, **mode)

        @event.listens_for(engine, "connect")
        def limit(connection: psycopg.Connection, _: ConnectionPoolEntry) -> None:
            connection.autocommit = True
            # without it, a process that is frozen within a transaction would keep its rows locked forever
            connection.execute(f"SET idle_in_transaction_session_timeout = '{IDLE_SECONDS}s'")
            if autocommit:
                connection.execute("SET default_transaction_read_only = on")
            connection.autocommit = autocommit

        return engine
    assert parsed.database is not None
    Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
    _make_private(Path(parsed.database))
    engine = create_engine(parsed, connect_args={"timeout": BUSY_SECONDS}, **pool)

    @event.listens_for(engine, "connect")
    def prepare(connection: sqlite3.Connection, _: ConnectionPoolEntry) -> None:
        connection.isolation_level = None  # the driver must not begin transactions by itself; see `begin`
        _switch_to_wal(connection)
        connection.execute(f"PRAGMA foreign_keys = {'ON' if foreign_keys else 'OFF'}")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        # A writer takes the write lock at once. If it began as a reader and another process wrote meanwhile, its first
        # write would fail with "database is locked", and waiting would not help, since its snapshot is already old.
        read_only = connection.get_execution_options().get(READ_ONLY, False)
        connection.exec_driver_sql(f"PRAGMA query_only = {'ON' if read_only else 'OFF'}")
        connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")

    return engine


def _make_private(file: Path) -> None:
    """Leave a file of a database to its owner and group, a new one to its owner alone.

    SQLite creates the files beside it with the same mode. A file that cannot be made or changed is left to its error.
    """
    with suppress(OSError):
        os.close(os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        for one in (file, *(file.with_name(file.name + end) for end in ("-wal", "-shm"))):
            mode = one.stat().st_mode
            if mode & stat.S_IRWXO:
                one.chmod(0o600)


def _switch_to_wal(connection: sqlite3.Connection) -> None:
    """Set the journal mode, which is stored in the file.

    Retries for `BUSY_SECONDS`: SQLite ignores its busy timeout here, and several processes may start at once.
    """
    deadline = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF not in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
                raise
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)
        else:
            return


def explain(error: SQLAlchemyError) -> ReplaceMeError | None:
    """The product's error for a failure of the driver: `DatabaseFull`, an `Unavailable`, or `None` for a bug."""
    if isinstance(error, PoolTimeout):
        return DatabaseUnreachable("all connections to the database are in use")
    if not isinstance(error, DBAPIError):
        return None
    cause = error.orig
    sentence = str(cause).strip().partition("\n")[0]
    if isinstance(cause, sqlite3.Error):
        primary = getattr(cause, "sqlite_errorcode", 0) & 0xFF
        if primary == sqlite3.SQLITE_FULL:
            return DatabaseFull("no space left on the device that holds the database")
        if primary in _SQLITE_DAMAGED:
            damaged = "the file of the database is damaged; restore it from a backup"
            return DatabaseUnreachable(damaged).because(sentence)
        if primary in _SQLITE_BUSY:
            return DatabaseUnreachable("the database does not answer").because(sentence)
        if sentence.startswith(_NO_SUCH) or "has no column named" in sentence:
            return _outdated().because(sentence)
    elif isinstance(cause, psycopg.Error):
        if cause.sqlstate == _DISK_FULL_SQLSTATE:
            return DatabaseFull("no space left on the device that holds the database")
        if cause.sqlstate in _NO_SUCH_SQLSTATES:
            return _outdated().because(sentence)
        lost = cause.sqlstate is None and isinstance(cause, psycopg.OperationalError)
        if lost or error.connection_invalidated or (cause.sqlstate or "").startswith(_TRANSIENT_SQLSTATES):
            return DatabaseUnreachable("the database does not answer").because(sentence)
    return None


def _outdated() -> DatabaseOutdated:
    return DatabaseOutdated("the database lacks tables of this release; its operator must run the migrations")
