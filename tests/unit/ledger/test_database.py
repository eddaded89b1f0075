"""Times are read as aware UTC datetimes; only sessions commit; what belongs to an owner is reached by naming them."""

import ast
import inspect
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from types import ModuleType

import pytest
from sqlalchemy import select
from sqlalchemy.dialects import postgresql, sqlite

import replaceme_core
from replaceme_core.errors import DatabaseUnreachable
from replaceme_core.ledger import changes, reading, webhooks
from replaceme_core.ledger.database import UtcDateTime, make_engine, now

NOON = datetime(2026, 3, 1, 12, 0, 0, 123456, tzinfo=UTC)
ELSEWHERE = NOON.astimezone(timezone(timedelta(hours=5, minutes=30)))


@pytest.mark.parametrize("dialect", [sqlite.dialect(), postgresql.dialect()])
def test_times_are_aware_and_in_utc(dialect: sqlite.dialect | postgresql.dialect) -> None:
    kind = UtcDateTime()
    for time in (NOON, ELSEWHERE):
        bound = kind.process_bind_param(time, dialect)
        assert bound is not None
        assert (bound.tzinfo is None) is (dialect.name == "sqlite")
        for stored in (bound, ELSEWHERE):  # whatever the time zone of the server is
            read = kind.process_result_value(stored, dialect)
            assert read is not None
            assert (read, read.utcoffset()) == (NOON, timedelta(0))
    with pytest.raises(ValueError, match="without a time zone"):
        kind.process_bind_param(NOON.replace(tzinfo=None), dialect)


def test_now_is_the_time_of_the_statement() -> None:
    """Not of the transaction, which may have waited for a lock. It is stable, so that an index can be used."""
    assert "statement_timestamp()" in str(select(now()).compile(dialect=postgresql.dialect()))


ROOT = Path(replaceme_core.__file__).parent.parent


def test_a_directory_that_cannot_be_made_is_a_database_that_cannot_be_reached(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DatabaseUnreachable, match="the directory of the database cannot be made") as raised:
        make_engine(f"sqlite:///{tmp_path}/file/data/replaceme.sqlite3", pooled=False)
    assert "Not a directory" in raised.value.explained


def test_only_the_session_commits() -> None:
    """Otherwise a message could be sent about a row that is rolled back."""
    callers = set()
    for room in ("api", "worker", "replaceme_core"):
        for path in sorted((ROOT / room).rglob("*.py")):
            if path.is_relative_to(ROOT / "replaceme_core" / "hub"):
                continue  # commits on the Hub, no SQL
            text = path.read_text(encoding="utf-8")
            for node in ast.walk(ast.parse(text)) if "commit" in text else ():
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "commit":
                    callers.add(str(path.relative_to(ROOT)))
    assert callers == {"replaceme_core/ledger/database.py"}


WITHOUT = {
    changes: set[str](),
    # by pairs of id and owner; of jobs that were read before; of all owners, but nothing that tells of a job
    reading: {"get_snapshots", "timelines", "timeline_of", "past_jobs"},
    # what sends messages and cleans up
    webhooks: {"has_due", "claim", "record", "delete_old", "message_id", "parse_message_id", "body_of"},
}


@pytest.mark.parametrize("module", WITHOUT, ids=lambda module: module.__name__.rpartition(".")[2])
def test_the_owner_is_a_required_argument(module: ModuleType) -> None:
    found = set()
    for name, function in inspect.getmembers(module, inspect.isfunction):
        if function.__module__ == module.__name__ and not name.startswith("_"):
            owner = inspect.signature(function).parameters.get("owner")
            if owner is None:
                found.add(name)
            else:
                assert owner.default is owner.empty and owner.annotation is str, name
    assert found == WITHOUT[module]
