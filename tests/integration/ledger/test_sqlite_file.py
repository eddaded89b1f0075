"""A database that is a file: one that cannot be opened, is damaged or full, and how it is set up."""

from pathlib import Path

import pytest
from sqlalchemy import text

from benchmarks.harness.specs import a_spec
from replaceme_core.errors import DatabaseFull, DatabaseUnreachable
from replaceme_core.ledger import changes
from replaceme_core.ledger.database import Database
from replaceme_core.ledger.migrate import upgrade
from tests.fixtures.jobs.ledger import Ledger


def test_a_file_that_cannot_be_opened(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    database = Database(f"sqlite:///{tmp_path / 'folder'}")
    with pytest.raises(DatabaseUnreachable):
        database.ping()
    database.close()


@pytest.mark.parametrize("place", [0, 8192])
def test_a_damaged_file(tmp_path: Path, place: int) -> None:
    """In its header, and in a page that is read later."""
    url = f"sqlite:///{tmp_path / 'ledger.sqlite3'}"
    upgrade(url)
    with (tmp_path / "ledger.sqlite3").open("r+b") as file:
        file.seek(place)
        file.write(b"\xa5" * 200_000)
    for leftover in tmp_path.glob("*-wal"):
        leftover.unlink()
    database = Database(url)
    with (
        pytest.raises(DatabaseUnreachable, match="the file of the database is damaged; restore it from a backup"),
        database.session() as session,
    ):
        changes.add(session, spec=a_spec(), owner="tests")
    database.close()


def test_a_device_that_is_full(sqlite_database: Database) -> None:
    ledger = Ledger(sqlite_database)
    job_id = ledger.add()
    with sqlite_database.session() as session:  # the limit belongs to the connection, and the pool returns the same one
        pages = session.execute(text("PRAGMA page_count")).scalar_one()
        session.execute(text(f"PRAGMA max_page_count = {pages}"))
    with pytest.raises(DatabaseFull) as full, sqlite_database.session() as session:
        changes.add(session, spec=a_spec(), owner="x" * 100_000)
    assert full.value.code == "out_of_space"
    assert isinstance(full.value, DatabaseUnreachable), "who waits for the database waits for space too"
    sqlite_database.close()
    assert ledger.claim(job_id).attempt == 1


def test_sqlite_is_set_up_for_many_processes(sqlite_database: Database) -> None:
    with sqlite_database.session() as session:
        settings = [
            session.execute(text(f"PRAGMA {name}")).scalar_one()
            for name in ("journal_mode", "busy_timeout", "foreign_keys")
        ]
    assert settings == ["wal", 30_000, 1]


@pytest.mark.parametrize("before", [None, 0o644], ids=["new", "readable by others"])
def test_only_its_owner_can_read_the_file_and_those_beside_it(tmp_path: Path, before: int | None) -> None:
    file = tmp_path / "ledger.sqlite3"
    if before is not None:
        file.touch(before)
    upgrade(f"sqlite:///{file}")
    database = Database(f"sqlite:///{file}")
    with database.session() as session:
        changes.add(session, spec=a_spec(), owner="tests")
        session.flush()
        modes = {path.name: oct(path.stat().st_mode & 0o777) for path in tmp_path.iterdir()}
    database.close()
    assert modes == dict.fromkeys((file.name, f"{file.name}-wal", f"{file.name}-shm"), "0o600")
