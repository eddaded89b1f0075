"""A database and its transactions: SQLite or PostgreSQL, the clock of the database, locks on names.

`Database.session` is the only place that commits. Messages and other side effects follow the commit, never precede it.
The errors of the drivers become errors of the product here.
"""

import logging
import os
import re
import sqlite3
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import psycopg
from sqlalchemy import (
    Connection,
    DateTime,
    Dialect,
    Engine,
    Float,
    create_engine,
    delete,
    event,
    func,
    literal,
    select,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import DeclarativeBase, InstrumentedAttribute, Session
from sqlalchemy.pool import ConnectionPoolEntry, NullPool
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.types import TypeDecorator

from replaceme_core.errors import (
    DatabaseFull,
    DatabaseOutdated,
    DatabaseUnreachable,
    InvalidInput,
    ReplaceMeError,
)
from replaceme_core.settings import check_server

_log = logging.getLogger(__name__)

T = TypeVar("T")
Row = TypeVar("Row", bound=DeclarativeBase)
Column = InstrumentedAttribute[datetime] | InstrumentedAttribute[datetime | None]


class UtcDateTime(TypeDecorator[datetime]):
    """An aware UTC datetime on every database."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"a datetime without a time zone: {value!r}")
        utc = value.astimezone(UTC)
        return utc.replace(tzinfo=None) if dialect.name == "sqlite" else utc

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class now(FunctionElement[datetime]):
    """The database's time at the start of the statement, plus `plus_seconds` (which may be negative)."""

    name = "now"
    type = UtcDateTime()
    inherit_cache = True

    def __init__(self, *, plus_seconds: float = 0.0) -> None:
        super().__init__(literal(float(plus_seconds), Float))


# the compiler's hooks are untyped in SQLAlchemy itself
@compiles(now, "postgresql")
def _postgresql_now(element: now, compiler: SQLCompiler, **options: Any) -> str:
    # The statement's time, not the transaction's: a transaction may have waited for a lock. It is stable within the
    # statement, so that an index can be used.
    return f"(statement_timestamp() + make_interval(secs => {compiler.process(element.clauses, **options)}))"


@compiles(now, "sqlite")
def _sqlite_now(element: now, compiler: SQLCompiler, **options: Any) -> str:
    # six digits, as SQLAlchemy writes datetimes, so that the texts sort as the times do
    shift = f"printf('%+.3f seconds', {compiler.process(element.clauses, **options)})"
    return f"strftime('%Y-%m-%d %H:%M:%f000', 'now', {shift})"


def lock_until_commit(session: Session, name: str) -> None:
    """Let one transaction at a time go on that asks for this name. On SQLite one at a time writes anyway.

    What another one has committed meanwhile is seen by the next statement.
    """
    if session.get_bind().dialect.name == "postgresql":
        session.execute(select(func.pg_advisory_xact_lock(func.hashtextextended(literal(name), 0))))


def change_or_insert(
    session: Session,
    table: type[Row],
    key: Mapping[str, object],
    *,
    change: Mapping[str, object],
    new: Mapping[str, object],
) -> Row:
    """The row with this primary key, changed, or inserted with the values `new`: one statement."""
    insert = postgresql.insert if session.get_bind().dialect.name == "postgresql" else sqlite.insert
    columns = {getattr(table, name): value for name, value in change.items()}
    stored = insert(table).values({**key, **new}).on_conflict_do_update(index_elements=[*key], set_=columns)
    return session.scalars(stored.returning(table)).one()


def delete_oldest(session: Session, key: InstrumentedAttribute[T], end: Column, *, until: now, limit: int) -> int:
    """Delete up to `limit` rows whose `end` was `until` then, without waiting for other transactions; how many."""
    found = select(key).where(end <= until).order_by(end).limit(limit).with_for_update(skip_locked=True)
    keys = session.scalars(found).all()
    if keys:
        session.execute(delete(key.class_).where(key.in_(keys)))
    return len(keys)


READ_ONLY = "replaceme_read_only"
"""Execution option of read-only transactions. They do not wait for writers, and the database refuses writes."""

IDLE_SECONDS = 30
BUSY_SECONDS = 30
_POOL_SECONDS = 10
_QUIET = {"hide_parameters": True}  # in errors, and so in logs: some are addresses of webhooks
_SQLITE_DAMAGED = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}
_SQLITE_DENIED = {sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM}
_SQLITE_BUSY = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_IOERR}
# connection, resources, operator intervention, deadlock and serialisation, lock timeout, idle timeout, a server that is
# read-only, as after a failover: a retry may help
_TRANSIENT_SQLSTATES = ("08", "53", "57", "40", "55P03", "25P03", "25006")
_DISK_FULL_SQLSTATE = "53100"
_DENIED_SQLSTATE = "42501"
_NO_SUCH_SQLSTATES = ("42P01", "42703", "3F000")  # table, column, schema
_NO_SUCH = re.compile("no such (table|column)|.*has no column named")  # what SQLite says of them


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
        usual: dict[str, object] = {
            "target_session_attrs": "read-write",  # after a failover it may be the one that was replaced, or a standby
            **{"connect_timeout": 5, "tcp_user_timeout": 10_000, "keepalives_idle": 10, "keepalives_interval": 5},
        }
        arguments = {name: value for name, value in usual.items() if name not in parsed.query}
        mode = {"isolation_level": "AUTOCOMMIT"} if autocommit else {}
        engine = create_engine(parsed, connect_args=arguments, pool_pre_ping=not autocommit, **_QUIET, **pool, **mode)

        @event.listens_for(engine, "connect")
        def set_up(connection: psycopg.Connection, _: ConnectionPoolEntry) -> None:
            chosen = {
                # without it, a process that is frozen within a transaction would keep its rows locked forever
                "idle_in_transaction_session_timeout": f"{IDLE_SECONDS}s",
                # not what the server, the database or the role has: psycopg reads no times of another form, and a
                # statement that has waited for a row needs to see it as it is then
                "datestyle": "ISO",
                "default_transaction_isolation": "read committed",
                **({"default_transaction_read_only": "on"} if autocommit else {}),
            }
            connection.autocommit = True
            connection.execute("; ".join(f"SET {name} = '{value}'" for name, value in chosen.items()))
            connection.autocommit = autocommit

        return engine
    assert parsed.database is not None
    try:
        Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DatabaseUnreachable("the directory of the database cannot be made").because(error) from error
    _make_private(Path(os.path.realpath(parsed.database)))
    engine = create_engine(parsed, connect_args={"timeout": BUSY_SECONDS}, **_QUIET, **pool)

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
        with suppress(FileExistsError):  # never opened here: to close it ends all locks of this process on it
            os.close(os.open(file, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
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
    code = getattr(cause, "sqlite_errorcode", 0) & 0xFF  # 0 on PostgreSQL
    state = getattr(cause, "sqlstate", None) or ""  # empty on SQLite, and where the server says no more
    sentence = str(cause).strip().partition("\n")[0]
    is_lost = error.connection_invalidated or (isinstance(cause, psycopg.OperationalError) and not state)
    known: ReplaceMeError
    if code == sqlite3.SQLITE_FULL or state == _DISK_FULL_SQLSTATE:
        known = DatabaseFull("no space left on the device that holds the database")
    elif code in _SQLITE_DAMAGED:
        known = DatabaseUnreachable("the file of the database is damaged; restore it from a backup")
    elif code in _SQLITE_DENIED or state == _DENIED_SQLSTATE:
        known = DatabaseUnreachable("this process has too few rights in the database")
    elif code == sqlite3.SQLITE_CANTOPEN:  # that of another user, for one
        known = DatabaseUnreachable("the file of the database cannot be opened")
    elif state in _NO_SUCH_SQLSTATES or _NO_SUCH.match(sentence):
        known = DatabaseOutdated("the database lacks tables of this release; its operator must run the migrations")
    elif code in _SQLITE_BUSY or is_lost or state.startswith(_TRANSIENT_SQLSTATES):
        known = DatabaseUnreachable("the database does not answer")
    else:
        return None
    return known.because(sentence)


class LedgerSession(Session):
    """A transaction of the ledger. It commits when its `with` block ends without an error.

    `after_commit` is what to do then, when its connection is free again; after a rollback it is not done.
    """

    def __init__(self, engine: Engine) -> None:
        # a row that was read before is read again, with what this transaction and others have changed since
        fresh = {"populate_existing": True, "synchronize_session": False}
        super().__init__(engine, autoflush=False, expire_on_commit=False, execution_options=fresh)
        self.after_commit: list[Callable[[], None]] = []


class Database:
    """A pool of connections, opened on first use. Raises `InvalidInput` for an unknown kind of url."""

    def __init__(self, url: str) -> None:
        self._engine = make_engine(url)
        self._read_only = self._engine.execution_options(**{READ_ONLY: True})
        self._autocommit: Engine = self._read_only
        if self._engine.dialect.name == "postgresql":
            self._read_only = self._read_only.execution_options(postgresql_readonly=True)
            self._autocommit = make_engine(url, autocommit=True)

    @contextmanager
    def session(self, *, read_only: bool = False, autocommit: bool = False) -> Iterator[LedgerSession]:
        """One transaction; the commit is at the end of the block.

        `read_only` refuses writes, and on SQLite never waits for a writer. `autocommit` is for frequent reads: the same
        and, on PostgreSQL, without a transaction (see `make_engine`); retry once after `DatabaseUnreachable`, since the
        server may only have closed the connection since its last use. Raises `DatabaseUnreachable`, or its subclass
        `DatabaseFull`, if the driver fails for that reason.
        """
        session = LedgerSession(self._autocommit if autocommit else self._read_only if read_only else self._engine)
        try:
            with session:
                yield session
                session.commit()
        except SQLAlchemyError as error:
            known = explain(error)
            if known is None:
                raise
            _log.warning("%s", known.explained)  # the reason is in no answer
            raise known from error
        for action in session.after_commit:
            action()

    def close(self) -> None:
        """Close all pooled connections."""
        for engine in (self._engine, self._autocommit):
            engine.dispose()
