"""What tests of the migrations ask of a database, and a ledger that has one of everything in it."""

from alembic.script import ScriptDirectory
from sqlalchemy import inspect, text

from replaceme_core.jobs.engine import make_engine
from replaceme_core.jobs.migrate import alembic_config
from replaceme_core.jobs.repository import Jobs
from replaceme_core.jobs.session import Database
from replaceme_core.jobs.tables import Base
from replaceme_core.progress import Measured, Stage
from tests.integration.ledger_cases import Ledger

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
    """A job that succeeded, with labels, events, metrics and a report, and one that waits."""
    database = Database(url)
    ledger = Ledger(database)
    done, waiting = ledger.add(labels={"team": "red"}), ledger.add()
    claim = ledger.claim(done)
    with database.session() as session:
        Jobs(session).add_metrics(claim, [Measured(stage=Stage.SOLVE, name="residual", value=0.5, unit="1")])
    ledger.succeed(claim)
    database.close()
    return done, waiting


def everything(url: str, done: str, waiting: str) -> list[object]:
    database = Database(url)
    with database.session(read_only=True) as session:
        jobs = Jobs(session)
        found = [jobs.get(done), jobs.get(waiting), jobs.events(done), jobs.metrics(done), jobs.report(done)]
        labelled = jobs.page(limit=5, labels={"team": "red"}).items
    database.close()
    return [*found, labelled]
