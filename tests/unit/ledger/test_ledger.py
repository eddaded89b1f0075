"""One job from start to end on SQLite, as a fast unit test. The integration tests cover the whole ledger."""

import ast
from pathlib import Path

import pytest

import replaceme_core
from benchmarks.harness.jobs import owner_of
from benchmarks.harness.specs import a_spec
from replaceme_core.errors import LeaseLost
from replaceme_core.ledger import attempts, changes, reading
from replaceme_core.ledger.database import Database
from replaceme_core.ledger.reading import JobFilters
from replaceme_core.ledger.states import JobStatus
from replaceme_core.ledger.sweep import requeue_expired
from replaceme_core.runner.messages import Measured, Stage
from tests.fixtures.jobs.ledger import claim_job

ROOT = Path(replaceme_core.__file__).parent.parent


def test_a_job_is_lost_requeued_and_finished(sqlite_database: Database) -> None:
    enqueued: list[str] = []
    with sqlite_database.session() as session:
        job = changes.add(session, spec=a_spec(labels={"team": "red"}), owner="ada")
        session.after_commit(lambda: enqueued.append(job.id))
    assert enqueued == [job.id]
    with sqlite_database.session() as session:
        lost = claim_job(session, job.id, worker="a", lease_seconds=-1)
    with sqlite_database.session() as session:
        assert requeue_expired(session, max_attempts=3, limit=10) == [job.id]
    with sqlite_database.session() as session:
        claim = claim_job(session, job.id, worker="b", lease_seconds=60)
    with pytest.raises(LeaseLost), sqlite_database.session() as session:
        attempts.renew(session, lost, lease_seconds=60)
    with sqlite_database.session() as session:
        attempts.record_progress(session, claim, stage=Stage.SOLVE, overall=0.5, fraction=0.1, eta_seconds=3.0)
        attempts.add_metrics(
            session, claim, [Measured(stage=Stage.SOLVE, name="residual", value=0.25, unit="1", candidate="3-4")]
        )
        attempts.assert_held(session, claim)
        attempts.succeed(
            session,
            claim,
            repo_id="org/small",
            revision="b" * 40,
            removed_blocks=[3],
            kept_blocks=[0, 1, 2],
            report={"a": 1},
        )
    with sqlite_database.session(read_only=True) as session:
        wanted = JobFilters(statuses=[JobStatus.SUCCEEDED], labels={"team": "red"})
        done = reading.page(session, limit=5, owner="ada", filters=wanted).items[0].job()
        assert (done.id, done.attempt, done.worker) == (job.id, 2, "b")
        assert [metric.value for metric in reading.metrics(session, job.id, owner=owner_of(session, job.id))] == [0.25]
        assert reading.report(session, job.id, owner=owner_of(session, job.id)) == {"a": 1}
        assert [
            event.type.value for event in reading.events(session, job.id, owner=owner_of(session, job.id)).items
        ] == [
            "created",
            "claimed",
            "lease_lapsed",
            "claimed",
            "stage",
            "succeeded",
        ]


def test_only_the_session_commits() -> None:
    """Otherwise a message could be sent about a row that is rolled back."""
    callers = set()
    for room in ("api", "worker", "replaceme_core"):
        for path in sorted((ROOT / room).rglob("*.py")):
            if path.is_relative_to(ROOT / "replaceme_core" / "hub"):
                continue  # commits on the Hub, no SQL
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "commit":
                    callers.add(str(path.relative_to(ROOT)))
    assert callers == {"replaceme_core/ledger/database.py"}
