"""The only module that commits. Messages and other side effects follow the commit, never precede it."""

import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from sqlalchemy import Engine, select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from replaceme_core.errors import Unavailable
from replaceme_core.ledger.engine import READ_ONLY, explain, make_engine

_log = logging.getLogger(__name__)


class LedgerSession(Session):
    """A transaction of the ledger. It commits when its `with` block ends without an error."""

    def after_commit(self, action: Callable[[], None]) -> None:
        """Run `action` once the transaction is committed; drop it if the transaction is rolled back.

        If an action raises `Unavailable`, the error is logged and the next action runs: the change is committed, and
        the sweep will send its message. Any other error is raised after all actions have run.
        """
        self._actions().append(action)

    def _actions(self) -> list[Callable[[], None]]:
        actions: list[Callable[[], None]] = self.info.setdefault("after_commit", [])
        return actions


def _run_all(actions: list[Callable[[], None]]) -> None:
    failure: Exception | None = None
    for action in actions:
        try:
            action()
        except Unavailable as error:
            _log.warning("an action after the commit failed: %s", error)
        except Exception as error:
            failure = failure or error
    if failure is not None:
        raise failure


class Database:
    """A pool of connections, opened on first use. Raises `InvalidInput` for an unknown kind of url."""

    def __init__(self, url: str) -> None:
        self._engine = make_engine(url)
        self._read_only = self._engine.execution_options(**{READ_ONLY: True})
        self._autocommit: Engine = self._read_only
        if self._engine.dialect.name == "postgresql":
            self._read_only = self._read_only.execution_options(postgresql_readonly=True)
            self._autocommit = make_engine(url, autocommit=True)

    def session(self, *, read_only: bool = False) -> AbstractContextManager[LedgerSession]:
        """One transaction; the commit is at the end of the block.

        `read_only` refuses writes, and on SQLite never waits for a writer. Raises `DatabaseUnreachable`, or its
        subclass `DatabaseFull`, if the driver fails for that reason.
        """
        return self._session(self._read_only if read_only else self._engine)

    def autocommit_session(self) -> AbstractContextManager[LedgerSession]:
        """A session for frequent reads: read-only and, on PostgreSQL, without a transaction; see `make_engine`.

        Retry once after `DatabaseUnreachable`: the server may only have closed the connection since its last use.
        """
        return self._session(self._autocommit)

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
            _log.warning("%s", known.explained)  # the reason is in no answer
            raise known from error
        _run_all(session._actions())

    def ping(self) -> None:
        """Raises `DatabaseUnreachable`."""
        with self.session(read_only=True) as session:
            session.execute(select(1))

    def close(self) -> None:
        """Close all pooled connections."""
        for engine in (self._engine, self._autocommit):
            engine.dispose()
