"""Upgrade a database to the newest version, from a checkout or from an installed wheel; check that it was upgraded."""

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib import resources

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import ColumnClause, Connection, column, inspect, select, table, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from replaceme_core.errors import DatabaseOutdated, InvalidInput
from replaceme_core.ledger.database import explain, make_engine
from replaceme_core.ledger.tables import Base

URL_ATTRIBUTE = "database_url"
"""The attribute in which `upgrade` passes the url to `migrations/env.py`, which otherwise reads the settings."""

_ADVISORY_LOCK = 0x5265706C6163654D  # any number, the same in every version
logger = logging.getLogger(__name__)
_in_this_process = threading.Lock()  # alembic's context is global to a process


def alembic_config(url: str) -> Config:
    """Alembic's configuration; the migrations are found as a package."""
    config = Config()
    config.set_main_option("script_location", str(resources.files("migrations")).replace("%", "%%"))
    config.attributes[URL_ATTRIBUTE] = url
    return config


def upgrade(url: str, *, revision: str = "head") -> None:
    """Apply all missing migrations, up to `revision`; none to a database that a later release has migrated.

    Several processes may call it at once: the first migrates, the others wait and find nothing left to do. Raises
    `DatabaseUnreachable` or `DatabaseFull`, `DatabaseOutdated` where the steps from an old version are gone, and
    `InvalidInput` for a database of another program.
    """
    with _in_this_process:
        config = alembic_config(url)
        with migrating(url) as connection:
            applied = MigrationContext.configure(connection).get_current_heads()
            taken = set() if applied else {*inspect(connection).get_table_names()} & {*Base.metadata.tables}
        if taken:
            raise InvalidInput(
                f"the database has no record of migrations, but already the table {min(taken)}; name an empty one",
                field="database_url",
            )
        known = {one.revision for one in ScriptDirectory.from_config(config).walk_revisions()}
        if not known.issuperset(applied):
            _check_later(max(applied))
            return
        command.upgrade(config, revision)


def _check_later(applied: str) -> None:
    """Raise `DatabaseOutdated` unless `applied`, which this release does not know, is after all that it does.

    And `InvalidInput` where it is of another program that uses alembic: its names have letters.
    """
    if not applied.isdecimal():
        raise InvalidInput(
            f"the database has migrations of another program, such as {applied}; name an empty one",
            field="database_url",
        )
    if applied < _head():  # their names are numbers
        raise DatabaseOutdated(
            f"the database is at migration {applied}, from which this release has no steps; upgrade it with an earlier "
            "release first (the release notes name it)"
        )
    logger.warning("a later release has migrated the database, to %s: this one works on it as it is", applied)


def check_migrated(session: Session) -> None:
    """Raises `DatabaseOutdated`, and logs a line, unless all migrations of this release have been applied.

    A database that a later release has migrated is fine: this one works on it (docs/decisions/0016).
    """
    head = _head()
    version: ColumnClause[str] = column("version_num")
    applied = session.scalars(select(version).select_from(table("alembic_version"))).all()
    if not applied or max(applied) < head:
        at = " and ".join(applied) or "none"
        error = DatabaseOutdated(
            f"the database is at migration {at}, and this release needs {head}; its operator must run the migrations"
        )
        logger.warning("%s", error)
        raise error


@cache
def _head() -> str:
    """The newest migration of this release. Read once: it loads their files."""
    head = ScriptDirectory.from_config(alembic_config("")).get_current_head()
    assert head is not None
    return head


@contextmanager
def migrating(url: str) -> Iterator[Connection]:
    """A connection for migrations, in one transaction that locks out other migrations of this database."""
    engine = make_engine(url, foreign_keys=False, pooled=False)
    try:
        with engine.begin() as connection:
            # on SQLite the transaction itself is the lock, since it began with BEGIN IMMEDIATE
            if connection.dialect.name == "postgresql":
                connection.execute(text("SELECT pg_advisory_xact_lock(:number)"), {"number": _ADVISORY_LOCK})
            yield connection
            if connection.dialect.name == "sqlite":
                orphans = connection.exec_driver_sql("PRAGMA foreign_key_check").all()
                if orphans:
                    raise RuntimeError(f"the migration would leave rows with broken foreign keys: {orphans[:3]}")
    except SQLAlchemyError as error:
        known = explain(error)
        if known is None or isinstance(known, DatabaseOutdated):  # the latter is a mistake in a migration
            raise
        raise known from error
    finally:
        engine.dispose()
