"""A worker that is frozen in the middle of a transaction holds its rows only for so long."""

import pytest
from sqlalchemy import update

from benchmarks.harness.processes import wait_until
from replaceme_core.errors import DatabaseUnreachable
from replaceme_core.ledger import attempts, changes
from replaceme_core.ledger import database as engine
from replaceme_core.ledger.database import Database, now
from replaceme_core.ledger.sweep import requeue_expired
from replaceme_core.ledger.tables import JobRow
from replaceme_core.request.calibration import CalibrationSpec
from replaceme_core.request.spec import CompressionSpec, ModelRef
from tests.fixtures.jobs.ledger import claim_job

SPEC = CompressionSpec(
    model=ModelRef(repo_id="acme/tiny"), ratio=0.5, calibration=CalibrationSpec(dataset="builtin:pydoc-topics")
)


def test_its_job_is_requeued(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "IDLE_SECONDS", 1)
    frozen, other = Database(postgres_url), Database(postgres_url)
    with other.session() as session:
        job_id = changes.add(session, spec=SPEC, owner="tests").id
    with frozen.session() as session:
        claim = claim_job(session, job_id, worker="frozen", lease_seconds=60)
        session.execute(update(JobRow).where(JobRow.id == job_id).values(lease_expires_at=now(plus_seconds=-1)))

    def requeued() -> bool:
        with other.session() as session:
            return requeue_expired(session, max_attempts=3, limit=10) == [job_id]

    def freeze() -> None:
        with frozen.session() as session:
            session.execute(update(JobRow).where(JobRow.id == job_id).values(worker="still frozen"))
            assert not requeued()
            wait_until(requeued, seconds=10, what="the job to be requeued")
            attempts.renew(session, claim, lease_seconds=60)

    with pytest.raises(DatabaseUnreachable):
        freeze()
    frozen.close()
    other.close()
