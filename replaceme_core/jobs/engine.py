"""Engines for SQLite and PostgreSQL, and what their drivers' failures mean in the product's own errors."""

import sqlite3
import time
from pathlib import Path

import psycopg
from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.pool import ConnectionPoolEntry, NullPool

from replaceme_core.errors import DatabaseUnreachable, InvalidInput, OutOfSpace, ReplaceMeError

READ_ONLY = "replaceme_read_only"
"""Execution option: transactions that only read. They do not wait for writers, and the database refuses writes."""

IDLE_SECONDS = 30
BUSY_SECONDS = 30
_POOL_SECONDS = 10
_SQLITE_BUSY = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_IOERR}
# connection, resources, intervention, deadlock and serialisation, a lock, idleness: each may pass if tried again
_PASSING_SQLSTATES = ("08", "53", "57", "40", "55P03", "25P03")
_DISK_FULL_SQLSTATE = "53100"


def parse_url(url: str) -> URL:
    """The url with its driver named. Raises `InvalidInput`; never repeats the url, it may hold a password."""
    try:
        parsed = make_url(url)
    except ArgumentError:
        parsed = None
    if parsed is not None:
        backend, driver = parsed.get_backend_name(), parsed.drivername.partition("+")[2]
        if parsed.drivername == "postgres" or (backend == "postgresql" and driver in ("", "psycopg")):
            return parsed.set(drivername="postgresql+psycopg")
        if backend == "sqlite" and driver in ("", "pysqlite") and parsed.database not in (None, "", ":memory:"):
            return parsed
    raise InvalidInput(
        "the database url must be sqlite:///PATH or postgresql+psycopg://USER@HOST/NAME", field="database_url"
    )


def make_engine(url: str, *, foreign_keys: bool = True, pooled: bool = True, asking: bool = False) -> Engine:
    """An engine for `sqlite:///PATH` or `postgresql+psycopg://...`; connects on first use.

    `foreign_keys=False` is for migrations on SQLite only: copying a table drops the old one, and with foreign keys
    on this would delete the rows that point to it.

    `asking` is for questions that come all the time: on PostgreSQL each is one message there and one back, without a
    transaction around it and a ping before it, and the database refuses writes. Nothing is lost by that, as under READ
    COMMITTED each statement has a snapshot of its own anyhow; but a connection that was closed meanwhile is noticed by
    the question that meets it, and has to be asked again.
    """
    parsed = parse_url(url)
    pool = {"pool_timeout": _POOL_SECONDS} if pooled else {"poolclass": NullPool}
    if parsed.get_backend_name() == "postgresql":
        waits = {"connect_timeout": 5, "tcp_user_timeout": 10_000, "keepalives_idle": 10, "keepalives_interval": 5}
        arguments = {name: value for name, value in waits.items() if name not in parsed.query}
        mode = {"isolation_level": "AUTOCOMMIT"} if asking else {}
        engine = create_engine(parsed, connect_args=arguments, pool_pre_ping=not asking, **pool, **mode)

        @event.listens_for(engine, "connect")
        def limit(connection: psycopg.Connection, _: ConnectionPoolEntry) -> None:
            connection.autocommit = True
            # a process that is frozen inside a transaction would keep its rows from being taken back for ever
            connection.execute(f"SET idle_in_transaction_session_timeout = '{IDLE_SECONDS}s'")
            if asking:
                connection.execute("SET default_transaction_read_only = on")
            connection.autocommit = asking

        return engine
    assert parsed.database is not None
    Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
    engine = create_engine(parsed, connect_args={"timeout": BUSY_SECONDS}, **pool)

    @event.listens_for(engine, "connect")
    def prepare(connection: sqlite3.Connection, _: ConnectionPoolEntry) -> None:
        connection.isolation_level = None  # the driver must not begin transactions by itself; see below
        _switch_to_wal(connection)
        connection.execute(f"PRAGMA foreign_keys = {'ON' if foreign_keys else 'OFF'}")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        # A writer takes the write lock at once. If it began by reading, a second writer would make its first write
        # fail with "database is locked", and no waiting would help, since its snapshot is already old.
        read_only = connection.get_execution_options().get(READ_ONLY, False)
        connection.exec_driver_sql(f"PRAGMA query_only = {'ON' if read_only else 'OFF'}")
        connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")

    return engine


def _switch_to_wal(connection: sqlite3.Connection) -> None:
    """Set once and kept in the file. SQLite does not wait its busy timeout here when processes start at once."""
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
    """What a failure of the driver means: `OutOfSpace`, `DatabaseUnreachable`, or `None` for a mistake of ours."""
    if isinstance(error, PoolTimeout):
        return DatabaseUnreachable("all connections to the database are in use")
    if not isinstance(error, DBAPIError):
        return None
    cause = error.orig
    sentence = str(cause).strip().partition("\n")[0]
    if isinstance(cause, sqlite3.Error):
        primary = getattr(cause, "sqlite_errorcode", 0) & 0xFF
        if primary == sqlite3.SQLITE_FULL:
            return OutOfSpace("no space left on the device that holds the database")
        if primary in _SQLITE_BUSY:
            return DatabaseUnreachable(f"the database does not answer: {sentence}")
    elif isinstance(cause, psycopg.Error):
        if cause.sqlstate == _DISK_FULL_SQLSTATE:
            return OutOfSpace("no space left on the device that holds the database")
        lost = cause.sqlstate is None and isinstance(cause, psycopg.OperationalError)
        if lost or error.connection_invalidated or (cause.sqlstate or "").startswith(_PASSING_SQLSTATES):
            return DatabaseUnreachable(f"the database does not answer: {sentence}")
    return None
