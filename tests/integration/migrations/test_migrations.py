"""The migrations: from an empty database and of a ledger in use, from a checkout and a wheel, by many at once.

Data are kept, and the release before works beside the new one.
"""

import json
import os
import shutil
import subprocess
import sys
from contextlib import nullcontext
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID

import pytest
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import MetaData, insert, inspect, make_url, select, text

from benchmarks.harness.checkout import ROOT
from benchmarks.harness.jobs import events_of, job_of, metrics_of, report_of
from benchmarks.harness.servers import PostgresServer
from benchmarks.harness.specs import a_spec
from replaceme_core.errors import ReplaceMeError
from replaceme_core.ledger import reading
from replaceme_core.ledger.database import Database, make_engine
from replaceme_core.ledger.migrate import alembic_config, upgrade
from replaceme_core.ledger.reading import JobFilters
from replaceme_core.ledger.tables import Base
from replaceme_core.runner.messages import Measured, Stage
from tests.fixtures.jobs.ledger import Ledger
from tests.fixtures.service.wheel import Installed

TABLES = {*Base.metadata.tables, "alembic_version"}


def tables(url: str) -> set[str]:
    engine = make_engine(url, pooled=False)
    return set(inspect(engine).get_table_names())


def revision(url: str) -> str | None:
    engine = make_engine(url, pooled=False)
    with engine.connect() as connection:
        return connection.execute(text("SELECT version_num FROM alembic_version")).scalar_one_or_none()


def head() -> str:
    newest = ScriptDirectory.from_config(alembic_config("unused")).get_current_head()
    assert newest is not None
    return newest


def write_one_of_each(url: str) -> tuple[str, str]:
    """Add a job that succeeded, with labels, events, metrics and a report, and a queued one; returns their ids."""
    database = Database(url)
    ledger = Ledger(database)
    done, waiting = ledger.add(labels={"team": "red"}), ledger.add()
    claim = ledger.claim(done)
    ledger.measure(claim, Measured(stage=Stage.SOLVE, name="residual", value=0.5, unit="1"))
    ledger.succeed(claim)
    database.close()
    return done, waiting


def everything(url: str, done: str, waiting: str) -> list[object]:
    database = Database(url)
    found = [job_of(database, done), job_of(database, waiting), events_of(database, done)]
    with database.session(read_only=True) as session:
        labelled = reading.page(session, owner="someone", limit=5, filters=JobFilters(labels={"team": "red"})).items
    found += [metrics_of(database, done), report_of(database, done), [snapshot.job() for snapshot in labelled]]
    database.close()
    return found


def run(
    *arguments: str, url: str, cwd: Path = ROOT, python: Path = Path(sys.executable)
) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "REPLACEME_DATABASE_URL": url}
    return subprocess.run(
        [python, *arguments], env=environment, cwd=cwd, capture_output=True, text=True, timeout=120, check=False
    )


def test_check_detects_a_difference(sqlite_url: str) -> None:
    engine = make_engine(sqlite_url, pooled=False)
    with engine.begin() as connection:
        connection.execute(text("DROP INDEX ix_jobs_queued"))
        connection.execute(text("ALTER TABLE jobs ADD COLUMN extra INTEGER"))
    with pytest.raises(Exception, match="ix_jobs_queued"):
        command.check(alembic_config(sqlite_url))


def test_two_processes_at_once(empty_database_url: str) -> None:
    program = f"from replaceme_core.ledger.migrate import upgrade; input(); upgrade({empty_database_url!r})"
    processes = [
        subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    for process in processes:  # both have started and wait for input
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    errors = [process.communicate(timeout=120)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], errors
    assert revision(empty_database_url) == head()
    write_one_of_each(empty_database_url)


def test_the_command_line(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'ledger.sqlite3'}"
    done = run("-m", "alembic", "upgrade", "head", url=url)
    assert done.returncode == 0, done.stderr
    checked = run("-m", "alembic", "check", url=url)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert "No new upgrade operations" in checked.stdout
    assert revision(url) == head()


def test_as_an_sql_script(postgres_url: str) -> None:
    written = run("-m", "alembic", "upgrade", "head", "--sql", url=postgres_url)
    assert written.returncode == 0, written.stderr
    assert "CREATE TABLE jobs" in written.stdout


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
    assert "Connection refused" in done.stderr
    assert "secret" not in done.stderr


def test_a_user_without_rights_prints_one_line(postgres_server: PostgresServer) -> None:
    with postgres_server.database() as url:
        other = make_url(url).update_query_dict({"options": "-c role=pg_monitor"})
        done = run("-m", "migrations", url=other.render_as_string(hide_password=False))
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1), done.stderr
    assert "too few rights in the database (permission denied for schema public)" in done.stderr


def test_a_table_of_another_program_is_named(empty_database_url: str) -> None:
    engine = make_engine(empty_database_url, pooled=False)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE jobs (id INTEGER)"))
    done = run("-m", "migrations", url=empty_database_url)
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1), done.stderr
    assert "already the table jobs; name an empty one" in done.stderr
    assert tables(empty_database_url) == {"jobs"}


def revisions() -> list[str]:
    """The revisions from the oldest to the newest."""
    scripts = ScriptDirectory.from_config(alembic_config("unused")).walk_revisions()
    return [script.revision for script in scripts][::-1]


def contracts() -> set[str]:
    """Tables, and columns as `table.column`, that migrations remove on purpose, a release after their last use."""
    scripts = ScriptDirectory.from_config(alembic_config("unused")).walk_revisions()
    return {name for script in scripts for name in getattr(script.module, "CONTRACTS", ())}


def reflected(url: str) -> MetaData:
    metadata = MetaData()
    metadata.reflect(make_engine(url, pooled=False))
    return metadata


def test_the_schema_only_grows_and_goes_down_and_up_again(empty_database_url: str) -> None:
    url = empty_database_url
    config, old = alembic_config(url), MetaData()
    for step in revisions():
        command.upgrade(config, step)
        new = reflected(url)
        for table in old.tables.values():
            for column in table.columns:
                name = f"{table.name}.{column.name}"
                if contracts().isdisjoint({table.name, name}):
                    now = new.tables[table.name].columns[column.name]
                    assert repr(now.type) == repr(column.type), name
                    assert now.nullable or not column.nullable, f"{name} has become required"
            for column in new.tables[table.name].columns if table.name in new.tables else ():
                known = column.name in table.columns
                assert known or column.nullable or column.server_default is not None, f"{column} is required"
        old = new
    command.check(config)
    command.downgrade(config, "base")
    assert tables(url) == {"alembic_version"}
    upgrade(url)
    upgrade(url)
    assert (tables(url), revision(url)) == (TABLES, head())


# without the fields of a specification that are not in its JSON: they have columns of their own, or are not set
_BESIDE = {"priority", "max_queue_seconds", "max_runtime_seconds", "credential", "gate", "heal"}
STORED = json.loads(a_spec().model_dump_json(exclude=_BESIDE))
NEWS = {"stage": "calibrate", "shards": {"news": "planned", "count": 4}}
"""Of an event at the time of sharded calibration."""


def add_as_before(url: str, known: MetaData, job_id: str) -> None:
    """A queued job, by statements with exactly the columns that an earlier release knows."""
    jobs, events = known.tables["jobs"], known.tables["job_events"]
    at = datetime(2026, 1, 1, tzinfo=UTC)
    values = {"id": job_id, "owner": "someone", "status": "queued", "spec": STORED, "created_at": at, "attempt": 0}
    values |= {"event_count": 1, "overall": 0.0, "stage_fraction": 0.0, "priority": 5}
    event = {"job_id": job_id, "seq": 1, "type": "stage", "at": at, "attempt": 0, "data": NEWS}
    with make_engine(url, pooled=False).begin() as connection:
        names = {column.name for column in jobs.columns if f"jobs.{column.name}" not in contracts()}
        connection.execute(insert(jobs).values({name: value for name, value in values.items() if name in names}))
        connection.execute(insert(events).values(event))


@pytest.mark.parametrize("before", sorted({*revisions()[:1], *revisions()[-2:-1]}))
def test_an_earlier_release_works_beside_this_one(empty_database_url: str, before: str) -> None:
    """Its jobs are kept and done, it reads and changes ours, and one can go back to it."""
    url = empty_database_url
    kept, theirs, last = (str(UUID(int=number)) for number in (1, 2, 3))
    upgrade(url, revision=before)
    known = reflected(url)
    add_as_before(url, known, kept)
    upgrade(url)
    add_as_before(url, known, theirs)
    database = Database(url)
    ledger = Ledger(database)
    limited = a_spec(priority=9, max_queue_seconds=60, max_runtime_seconds=90)
    ours = ledger.add_spec(limited)
    for job_id, spec in ((kept, a_spec()), (theirs, a_spec()), (ours, limited)):
        assert ledger.get(job_id).spec == spec
        ledger.succeed(job_id)
    assert ledger.events(kept)[0].data == NEWS
    with database.session(read_only=True) as session:
        assert len(reading.timelines(session, [ledger.get(kept)])[kept].attempts) == 1
    jobs, events = known.tables["jobs"], known.tables["job_events"]
    with make_engine(url, pooled=False).begin() as connection:
        columns = [column for column in jobs.columns if f"jobs.{column.name}" not in contracts()]
        found = {row.id: row for row in connection.execute(select(*columns))}
        assert {row.status for row in found.values()} == {"succeeded"}
        assert found[ours].spec.keys() == STORED.keys(), "it refuses fields that it does not know"
        assert set(connection.scalars(select(events.c.type))) == {"created", "stage", "claimed", "succeeded"}
        connection.execute(jobs.update().values(owner="bob"))
        connection.execute(jobs.delete().where(jobs.c.id == theirs))
    assert ledger.get(ours).owner == "bob"
    database.close()
    command.downgrade(alembic_config(url), before)
    add_as_before(url, known, last)
    upgrade(url)


LATER_VERSION = """
import sqlalchemy as sa
from alembic import op

revision = "later"
down_revision = "{head}"

def upgrade():
    with op.batch_alter_table("jobs") as table:
        table.add_column(sa.Column("weight", sa.Integer(), nullable=False, server_default="0"))
        table.alter_column("owner", type_=sa.String(length=200), existing_nullable=False)
        table.create_check_constraint("ck_jobs_weight", "weight >= 0")

def downgrade():
    with op.batch_alter_table("jobs") as table:
        table.drop_constraint("ck_jobs_weight", type_="check")
        table.alter_column("owner", type_=sa.String(), existing_nullable=False)
        table.drop_column("weight")
"""


@pytest.mark.parametrize(
    ("applied", "refusal"),
    [
        ("9999", None),
        ("0009", "at migration 0009, from which"),
        ("c48cb773bb87", "migrations of another program, such as c48cb773bb87"),
    ],
)
def test_a_version_that_this_release_does_not_know(
    database_url: str, applied: str, refusal: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    """After a rollback the service starts as before; a database that is too old is named."""
    upgrade(database_url)
    engine = make_engine(database_url, pooled=False)
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = :applied"), {"applied": applied})
    with nullcontext() if refusal is None else pytest.raises(ReplaceMeError, match=refusal):
        upgrade(database_url)
    assert ("a later release has migrated the database, to 9999" in caplog.text) is (refusal is None)
    assert revision(database_url) == applied


def config_with(later: str, url: str, place: Path) -> Config:
    """The migrations with one more."""
    shutil.copytree(ROOT / "migrations", place / "later")
    (place / "later" / "versions" / "later.py").write_text(later.format(head=head()))
    config = alembic_config(url)
    config.set_main_option("script_location", str(place / "later"))
    return config


def test_a_later_version_may_alter_a_table_with_data(database_url: str, tmp_path: Path) -> None:
    """SQLite copies the table and drops the old one; rows that refer to it must be kept."""
    done, waiting = write_one_of_each(database_url)
    before = everything(database_url, done, waiting)
    config = config_with(LATER_VERSION, database_url, tmp_path)
    command.upgrade(config, "head")
    assert revision(database_url) == "later"
    assert everything(database_url, done, waiting) == before
    command.downgrade(config, head())
    assert everything(database_url, done, waiting) == before
    command.check(alembic_config(database_url))
    Ledger(database := Database(database_url)).add()
    database.close()


def test_a_failed_step_leaves_the_version_before(database_url: str, tmp_path: Path) -> None:
    broken = LATER_VERSION.replace("def downgrade", "    op.execute('SELECT nonsense')\n\ndef downgrade")
    config = config_with(broken, database_url, tmp_path)
    with pytest.raises(Exception, match="nonsense"):
        command.upgrade(config, "head")
    assert revision(database_url) == head()
    command.check(alembic_config(database_url))
