"""Migrations of a ledger in use: its data are kept, and the release before works beside the new one."""

import json
import shutil
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID

import pytest
from alembic import command
from alembic.script import ScriptDirectory
from sqlalchemy import MetaData, insert, select, text

from benchmarks.harness.checkout import ROOT
from benchmarks.harness.jobs import owner_of
from benchmarks.harness.specs import a_spec
from replaceme_core.ledger import changes, reading
from replaceme_core.ledger.database import Database, make_engine
from replaceme_core.ledger.migrate import alembic_config, upgrade
from tests.fixtures.jobs.ledger import Ledger
from tests.fixtures.jobs.migrations import everything, head, revision, write_one_of_each

ROW_FIELDS = {"priority", "max_queue_seconds", "max_runtime_seconds", "credential", "gate"}
"""Fields of a specification that are not in its JSON: they have columns of their own, or are not set."""


def test_data_are_kept(database_url: str) -> None:
    done, waiting = write_one_of_each(database_url)
    before = everything(database_url, done, waiting)
    upgrade(database_url)
    assert everything(database_url, done, waiting) == before


INSERT_OF_0001 = """
INSERT INTO jobs (id, owner, status, spec, attempt, event_count, overall, stage_fraction, created_at, last_rung_at)
VALUES ('{id}', 'ada', 'queued', '{spec}', 0, 0, 0, 0, CURRENT_TIMESTAMP, CURRENT_TIMESTAMP)
"""


def insert_as_0001_did(url: str, job_id: str) -> None:
    spec = a_spec().model_dump_json(exclude={*ROW_FIELDS})
    engine = make_engine(url, pooled=False)
    with engine.begin() as connection:
        connection.exec_driver_sql(INSERT_OF_0001.format(id=job_id, spec=spec))


def test_jobs_of_0001_are_kept_and_that_version_still_works(empty_database_url: str) -> None:
    url = empty_database_url
    before, after = str(UUID(int=1)), str(UUID(int=2))
    upgrade(url, revision="0001")
    insert_as_0001_did(url, before)
    upgrade(url)
    insert_as_0001_did(url, after)  # by a process of the version before that is still running
    database = Database(url)
    ledger = Ledger(database)
    for job_id in (before, after):
        assert ledger.get(job_id).spec == a_spec()
        ledger.succeed(ledger.claim(job_id))
    limited = a_spec(priority=9, max_queue_seconds=60, max_runtime_seconds=90)
    with database.session() as session:
        new = changes.add(session, spec=limited, owner="ada").id
        written = session.execute(text("SELECT spec FROM jobs WHERE id = :id"), {"id": new}).scalar_one()
    assert ledger.get(new).spec == limited
    # that version refuses fields of a specification that it does not know
    stored = written if isinstance(written, dict) else json.loads(written)
    assert not ROW_FIELDS & stored.keys()
    database.close()
    command.downgrade(alembic_config(url), "0001")
    insert_as_0001_did(url, str(UUID(int=3)))
    upgrade(url)


def revisions() -> list[str]:
    """The revisions from the oldest to the newest."""
    scripts = ScriptDirectory.from_config(alembic_config("unused")).walk_revisions()
    return [script.revision for script in scripts][::-1]


def contracts() -> set[str]:
    """Columns that migrations remove on purpose, a release after the code stopped using them."""
    scripts = ScriptDirectory.from_config(alembic_config("unused")).walk_revisions()
    return {name for script in scripts for name in getattr(script.module, "CONTRACTS", ())}


def reflected(url: str) -> MetaData:
    metadata = MetaData()
    engine = make_engine(url, pooled=False)
    metadata.reflect(engine)
    return metadata


@pytest.mark.parametrize("before", revisions()[:-1])
def test_the_schema_only_grows(empty_database_url: str, before: str) -> None:
    upgrade(empty_database_url, revision=before)
    old = reflected(empty_database_url)
    upgrade(empty_database_url)
    new = reflected(empty_database_url)
    for table in old.tables.values():
        for column in table.columns:
            name = f"{table.name}.{column.name}"
            if name in contracts():
                continue
            now = new.tables[table.name].columns[column.name]
            assert repr(now.type) == repr(column.type), name
            assert now.nullable or not column.nullable, f"{name} has become required"
        if table.name not in new.tables:
            continue
        for column in new.tables[table.name].columns:
            if column.name not in table.columns:
                assert column.nullable or column.server_default is not None, f"{table.name}.{column.name} is required"


def test_the_release_before_works_beside_this_one(empty_database_url: str) -> None:
    """Statements with exactly the columns that the release before knows, as its code sends them."""
    url, before = empty_database_url, revisions()[-2]
    upgrade(url, revision=before)
    old = reflected(url)
    jobs, events = old.tables["jobs"], old.tables["job_events"]
    upgrade(url)
    theirs = str(UUID(int=1))
    at = datetime(2026, 1, 1, tzinfo=UTC)
    stored = json.loads(a_spec().model_dump_json(exclude={*ROW_FIELDS}))
    values = {"id": theirs, "owner": "ada", "status": "queued", "spec": stored, "created_at": at, "priority": 5}
    values |= {"attempt": 0, "event_count": 1, "overall": 0.0, "stage_fraction": 0.0}
    engine = make_engine(url, pooled=False)
    with engine.begin() as connection:
        connection.execute(insert(jobs).values(**values))
        connection.execute(insert(events).values(job_id=theirs, seq=1, type="created", at=at, attempt=0, data={}))
    database = Database(url)
    ledger = Ledger(database)
    ours = ledger.add()
    for job_id in (theirs, ours):
        ledger.succeed(ledger.claim(job_id))
    with engine.begin() as connection:
        columns = [column for column in jobs.columns if f"jobs.{column.name}" not in contracts()]
        known = {row.id: row for row in connection.execute(select(*columns))}
        assert {row.status for row in known.values()} == {"succeeded"}
        # the release before refuses fields of a specification that it does not know
        assert known[ours].spec.keys() == stored.keys()
        assert set(connection.scalars(select(events.c.type))) == {"created", "claimed", "succeeded"}
        connection.execute(jobs.update().values(owner="bob"))
        connection.execute(jobs.delete().where(jobs.c.id == theirs))
    assert ledger.get(ours).owner == "bob"
    database.close()


def test_jobs_of_the_time_of_sharded_calibration_are_read(empty_database_url: str) -> None:
    url, job_id = empty_database_url, str(UUID(int=1))
    upgrade(url, revision="0011")
    insert_as_0001_did(url, job_id)
    at, news = datetime(2026, 1, 1, tzinfo=UTC), {"stage": "calibrate", "shards": {"news": "planned", "count": 4}}
    old, engine = reflected(url), make_engine(url, pooled=False)
    with engine.begin() as connection:
        connection.execute(old.tables["jobs"].update().values(shards=4, event_count=1))
        row = {"job_id": job_id, "seq": 1, "type": "stage", "at": at, "attempt": 0, "data": news}
        connection.execute(insert(old.tables["job_events"]).values(row))
        connection.execute(
            insert(old.tables["shards"]).values(job_id=job_id, number=0, plan="a" * 32, state="done", attempt=1)
        )
    upgrade(url)
    database = Database(url)
    ledger = Ledger(database)
    assert ledger.get(job_id).spec == a_spec()
    with database.session(read_only=True) as session:
        assert reading.events(session, job_id, owner=owner_of(session, job_id)).items[0].data == news
        assert reading.timelines(session, [ledger.get(job_id)])[job_id].attempts == ()
    ledger.succeed(ledger.claim(job_id))
    database.close()


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


def test_a_later_version_may_alter_a_table_with_data(database_url: str, tmp_path: Path) -> None:
    """SQLite copies the table and drops the old one; rows that refer to it must be kept."""
    later = tmp_path / "later"
    shutil.copytree(ROOT / "migrations", later)
    (later / "versions" / "later.py").write_text(LATER_VERSION.format(head=head()))
    done, waiting = write_one_of_each(database_url)
    before = everything(database_url, done, waiting)
    config = alembic_config(database_url)
    config.set_main_option("script_location", str(later))
    command.upgrade(config, "head")
    assert revision(database_url) == "later"
    assert everything(database_url, done, waiting) == before
    command.downgrade(config, head())
    assert everything(database_url, done, waiting) == before
    command.check(alembic_config(database_url))
    Ledger(database := Database(database_url)).add()
    database.close()


def test_a_failed_step_leaves_the_version_before(database_url: str, tmp_path: Path) -> None:
    later = tmp_path / "later"
    shutil.copytree(ROOT / "migrations", later)
    broken = LATER_VERSION.format(head=head()).replace(
        "def downgrade", "    op.execute('SELECT nonsense')\n\ndef downgrade"
    )
    (later / "versions" / "later.py").write_text(broken)
    config = alembic_config(database_url)
    config.set_main_option("script_location", str(later))
    with pytest.raises(Exception, match="nonsense"):
        command.upgrade(config, "head")
    assert revision(database_url) == head()
    command.check(alembic_config(database_url))
