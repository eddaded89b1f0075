"""The only place that commits. Messages and other outside effects go after the commit, never before."""

import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from sqlalchemy import Engine, select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from replaceme_core.errors import Unavailable
from replaceme_core.jobs.engine import READ_ONLY, explain, make_engine

__all__ = ["Database", "LedgerSession", "make_engine"]

_log = logging.getLogger(__name__)


class LedgerSession(Session):
    """A transaction of the ledger. It commits when its `with` block ends without an error."""

    def after_commit(self, action: Callable[[], None]) -> None:
        """Run `action` once the transaction is committed; forget it if the transaction is rolled back.

        An action that raises `Unavailable` is logged and passed over: what it announces is committed, and the sweep
        announces it again. Any other error is raised after all actions have run.
        """
        self._actions().append(action)

    def _actions(self) -> list[Callable[[], None]]:
        actions: list[Callable[[], None]] = self.info.setdefault("after_commit", [])
        return actions


def _run(actions: list[Callable[[], None]]) -> None:
    failure: Exception | None = None
    for action in actions:
        try:
            action()
        except Unavailable as error:
            _log.warning("after the commit: %s", error)
        except Exception as error:
            failure = failure or error
    if failure is not None:
        raise failure


class Database:
    """A pool of connections, made on first use. Raises `InvalidInput` for a url it does not know."""

    def __init__(self, url: str) -> None:
        self._engine = make_engine(url)
        self._reading = self._engine.execution_options(**{READ_ONLY: True})
        self._asking: Engine = self._reading
        if self._engine.dialect.name == "postgresql":
            self._reading = self._reading.execution_options(postgresql_readonly=True)
            self._asking = make_engine(url, asking=True)

    def session(self, *, read_only: bool = False) -> AbstractContextManager[LedgerSession]:
        """One transaction; the commit is at the end of the block.

        `read_only` refuses writes, and on SQLite never waits for a writer. Raises `DatabaseUnreachable` or
        `OutOfSpace` where the driver fails for that reason.
        """
        return self._session(self._reading if read_only else self._engine)

    def questions(self) -> AbstractContextManager[LedgerSession]:
        """As `session(read_only=True)`, at the least cost; see `asking` of `make_engine`.

        `DatabaseUnreachable` may only mean that the server was away between two of these: to be tried once more.
        """
        return self._session(self._asking)

    @contextmanager
    def _session(self, engine: Engine) -> Iterator[LedgerSession]:
        session = LedgerSession(engine, autoflush=False, expire_on_commit=False)
        try:
            with session:
                yield session
                session.commit()
        except SQLAlchemyError as error:
            known = explain(error)
            if known is None:
                raise
            raise known from error
        _run(session._actions())

    def ping(self) -> None:
        """Raises `DatabaseUnreachable`."""
        with self.session(read_only=True) as session:
            session.execute(select(1))

    def close(self) -> None:
        """Close all pooled connections. In a forked child, call `forget` instead."""
        for engine in (self._engine, self._asking):
            engine.dispose()

    def forget(self) -> None:
        """After a fork: leave the parent's connections alone and open new ones."""
        for engine in (self._engine, self._asking):
            engine.dispose(close=False)
