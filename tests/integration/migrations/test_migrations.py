"""The migrations: from an empty database, step by step, from a checkout and a wheel, in one process and in many."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from alembic import command
from alembic.script import ScriptDirectory
from sqlalchemy import text

from benchmarks.harness.checkout import ROOT
from replaceme_core.errors import DatabaseUnreachable
from replaceme_core.ledger.database import make_engine
from replaceme_core.ledger.migrate import alembic_config, upgrade
from tests.fixtures.jobs.migrations import TABLES, head, revision, tables, write_one_of_each
from tests.fixtures.service.wheel import Installed


def run(
    *arguments: str, url: str, cwd: Path = ROOT, python: Path = Path(sys.executable)
) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "REPLACEME_DATABASE_URL": url}
    return subprocess.run(
        [python, *arguments], env=environment, cwd=cwd, capture_output=True, text=True, timeout=120, check=False
    )


def test_from_empty_and_again(empty_database_url: str) -> None:
    upgrade(empty_database_url)
    assert tables(empty_database_url) == TABLES
    assert revision(empty_database_url) == head()
    upgrade(empty_database_url)
    assert revision(empty_database_url) == head()


def test_the_migrations_match_the_tables(database_url: str) -> None:
    command.check(alembic_config(database_url))


def test_check_detects_a_difference(database_url: str) -> None:
    engine = make_engine(database_url, pooled=False)
    with engine.begin() as connection:
        connection.execute(text("DROP INDEX ix_jobs_queued"))
        connection.execute(text("ALTER TABLE jobs ADD COLUMN extra INTEGER"))
    with pytest.raises(Exception, match="ix_jobs_queued"):
        command.check(alembic_config(database_url))


def test_each_step_goes_up_down_and_up_again(empty_database_url: str) -> None:
    config = alembic_config(empty_database_url)
    revisions = [script.revision for script in ScriptDirectory.from_config(config).walk_revisions()][::-1]
    for step in revisions:
        command.upgrade(config, step)
        command.downgrade(config, "-1")
        command.upgrade(config, step)
    command.check(config)
    command.downgrade(config, "base")
    assert tables(empty_database_url) == {"alembic_version"}
    upgrade(empty_database_url)
    assert tables(empty_database_url) == TABLES


def test_several_processes_at_once(empty_database_url: str) -> None:
    program = f"from replaceme_core.ledger.migrate import upgrade; input(); upgrade({empty_database_url!r})"
    processes = [
        subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    for process in processes:  # all have started and wait for input
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    errors = [process.communicate(timeout=120)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0, 0], errors
    assert revision(empty_database_url) == head()
    write_one_of_each(empty_database_url)


def test_several_threads_at_once(empty_database_url: str) -> None:
    failures = []

    def work() -> None:
        try:
            upgrade(empty_database_url)
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert failures == []
    assert revision(empty_database_url) == head()


def test_the_command_line(empty_database_url: str) -> None:
    url = empty_database_url
    done = run("-m", "alembic", "upgrade", "head", url=url)
    assert done.returncode == 0, done.stderr
    checked = run("-m", "alembic", "check", url=url)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert "No new upgrade operations" in checked.stdout
    assert revision(url) == head()


def test_as_an_sql_script(empty_database_url: str) -> None:
    written = run("-m", "alembic", "upgrade", "head", "--sql", url=empty_database_url)
    assert written.returncode == 0, written.stderr
    assert "CREATE TABLE jobs" in written.stdout


def test_an_unreachable_server() -> None:
    with pytest.raises(DatabaseUnreachable):
        upgrade("postgresql+psycopg://someone@127.0.0.1:1/nothing")


def test_missing_directories_are_created(tmp_path: Path) -> None:
    path = tmp_path / "50 %" / "data" / "ledger.sqlite3"
    upgrade(f"sqlite:///{path}")
    assert path.exists()


def test_an_installed_wheel_migrates(installed_wheel: Installed, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'ledger.sqlite3'}"
    done = run("-m", "migrations", url=url, cwd=tmp_path, python=installed_wheel.python)
    assert done.returncode == 0, done.stderr
    assert revision(url) == head()
    assert tables(url) == TABLES


def test_an_unreachable_server_prints_one_line(tmp_path: Path) -> None:
    url = "postgresql+psycopg://someone:secret@127.0.0.1:1/nothing"
    done = run("-m", "migrations", url=url, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.splitlines()) == 1
    assert "secret" not in done.stderr
