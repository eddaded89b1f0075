"""Engines, and the only place that commits (signatures first; the bodies follow)."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from sqlalchemy import Engine
from sqlalchemy.orm import Session


class LedgerSession(Session):
    """A transaction of the ledger. It commits when its `with` block ends without an error."""

    def after_commit(self, action: Callable[[], None]) -> None:
        """Run `action` once the transaction is committed; forget it if the transaction is rolled back."""
        raise NotImplementedError


def make_engine(url: str) -> Engine:
    """An engine for `sqlite:///PATH` or `postgresql+psycopg://...`."""
    raise NotImplementedError


class Database:
    """A pool of connections. Raises `DatabaseUnreachable` where the database does not answer."""

    def __init__(self, url: str) -> None:
        raise NotImplementedError

    @contextmanager
    def session(self, *, read_only: bool = False) -> Iterator[LedgerSession]:
        """One transaction. `read_only` refuses writes, and never waits for a writer on SQLite."""
        raise NotImplementedError

    def ping(self) -> None:
        """Raises `DatabaseUnreachable`."""
        raise NotImplementedError

    def close(self) -> None:
        """Close all pooled connections."""
        raise NotImplementedError
