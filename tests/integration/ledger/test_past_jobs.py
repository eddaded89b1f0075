"""What earlier jobs took, from the events and metrics that their stages left."""

from collections.abc import Mapping
from datetime import timedelta

import pytest
from sqlalchemy import select

from benchmarks.harness.specs import a_spec
from replaceme_core.hardware import WorkerKind
from replaceme_core.ledger import attempts, reading
from replaceme_core.ledger.database import Database
from replaceme_core.ledger.states import EventType
from replaceme_core.ledger.tables import JobEventRow, JobRow
from replaceme_core.request.spec import CompressionSpec, ComputeSpec, ModelRef
from replaceme_core.runner.messages import Measured, PastJob, Stage
from tests.fixtures.jobs.ledger import Ledger

STAGES = {Stage.RESOLVE: 2.0, Stage.DOWNLOAD: 5.0, Stage.CALIBRATE: 60.0, Stage.SELECT: 20.0, Stage.PUBLISH: 3.0}
MODELLED = (Stage.DOWNLOAD, Stage.CALIBRATE, Stage.SELECT, Stage.PUBLISH)


@pytest.fixture
def ledger(database: Database) -> Ledger:
    return Ledger(database)


def spec_for(device: str, *, model: str = "org/model") -> CompressionSpec:
    update = {"compute": ComputeSpec(device=device), "model": ModelRef(repo_id=model, revision="a" * 40)}
    return a_spec().model_copy(update=update)


def finish(
    ledger: Ledger,
    spec: CompressionSpec,
    *,
    stages: Mapping[Stage, float] = STAGES,
    succeed: bool = True,
    lost: bool = False,
) -> None:
    """A job whose stages took these seconds, where the model says 10 of each."""
    claim = ledger.claim(ledger.add_spec(spec))
    if lost:
        ledger.release(claim)
        claim = ledger.claim(claim.job_id)
    with ledger.database.session() as session:
        for stage in stages:
            attempts.record_progress(session, claim, stage=stage, overall=0.1, fraction=0, eta_seconds=None)
        attempts.add_metrics(
            session, claim, [Measured(stage=stage, name="modelled_seconds", value=10.0, unit="s") for stage in MODELLED]
        )
    if succeed:
        ledger.succeed(claim)
    else:
        ledger.fail(claim)
    with ledger.database.session() as session:
        row = session.scalars(select(JobRow).where(JobRow.id == claim.job_id)).one()
        assert row.started_at is not None
        events = session.scalars(
            select(JobEventRow)
            .where(JobEventRow.job_id == row.id, JobEventRow.type == EventType.STAGE)
            .order_by(JobEventRow.seq)
        )
        at = row.started_at
        for event, seconds in zip(events, stages.values(), strict=True):
            event.at, at = at, at + timedelta(seconds=seconds)
        row.finished_at = at


def past(ledger: Ledger, kind: WorkerKind = WorkerKind.CPU) -> tuple[PastJob, ...]:
    with ledger.database.session(read_only=True) as session:
        return reading.past_jobs(session, kind)


def test_the_stages_of_a_job_add_up_to_the_whole_of_it(ledger: Ledger) -> None:
    finish(ledger, spec_for("cpu"))
    (job,) = past(ledger)
    took = {stage: pytest.approx(seconds, abs=0.01) for stage, (_, seconds) in job.stages.items()}
    assert took == {Stage.DOWNLOAD: 7.0, Stage.CALIBRATE: 60.0, Stage.SELECT: 20.0, Stage.PUBLISH: 3.0}
    assert {modelled for modelled, _ in job.stages.values()} == {10.0}
    assert job.method is a_spec().expected_method


def test_only_first_attempts_that_succeeded_on_this_kind_of_worker_the_newest_first(ledger: Ledger) -> None:
    for seconds in (10.0, 20.0):
        finish(ledger, spec_for("cpu"), stages={**STAGES, Stage.SELECT: seconds})
    finish(ledger, spec_for("cuda"), stages={**STAGES, Stage.SELECT: 1.0})
    finish(ledger, spec_for("cpu"), succeed=False)
    finish(ledger, spec_for("cpu"), lost=True)
    assert [round(job.stages[Stage.SELECT][1]) for job in past(ledger)] == [20, 10]
    assert [round(job.stages[Stage.SELECT][1]) for job in past(ledger, WorkerKind.GPU)] == [1]


def test_jobs_on_the_same_model_and_text_have_the_same_inputs(ledger: Ledger) -> None:
    for model in ("org/one", "org/other", "org/one"):
        finish(ledger, spec_for("cpu", model=model))
    last, other, first = (job.inputs for job in past(ledger))
    assert first == last != other


def test_a_job_without_what_the_model_says_is_left_out(ledger: Ledger) -> None:
    claim = ledger.claim(ledger.add_spec(spec_for("cpu")))
    ledger.succeed(claim)
    assert past(ledger) == ()
