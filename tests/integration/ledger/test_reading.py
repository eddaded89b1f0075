"""Lists of jobs, events, progress and metrics; what earlier jobs took."""

import itertools
import math
from collections.abc import Mapping
from datetime import timedelta
from functools import partial

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from benchmarks.harness.jobs import metrics_of
from benchmarks.harness.specs import a_spec
from replaceme_core.errors import LeaseLost, NotFound
from replaceme_core.hardware import WorkerKind
from replaceme_core.ledger import changes, reading
from replaceme_core.ledger.database import Database
from replaceme_core.ledger.states import EventType
from replaceme_core.ledger.tables import JobEventRow, JobRow
from replaceme_core.request.spec import CompressionSpec, ComputeSpec, ModelRef
from replaceme_core.runner.messages import Measured, PastJob, Stage
from replaceme_core.shapes import JobProgress
from tests.fixtures.jobs.ledger import REPORT, Ledger, at_once


def test_jobs_that_arrive_meanwhile_neither_shift_nor_repeat_a_page(ledger: Ledger) -> None:
    old = [ledger.add() for _ in range(5)]
    seen: list[str] = []
    cursor: str | None = None
    while True:
        with ledger.database.session(read_only=True) as session:
            page = reading.page(session, owner="someone", limit=2, cursor=cursor)
        seen += [job.id for job in page.items]
        cursor = page.next_cursor
        if cursor is None:
            break
        ledger.add()
        ledger.cancel(old[0])  # a change of status does not change the order either
    assert seen == old[::-1]


def test_numbers_of_a_report_that_are_no_json_are_text(ledger_on_both: Ledger) -> None:
    ledger = ledger_on_both
    job_id = ledger.add()
    ledger.succeed(job_id, report={**REPORT, "loss": math.nan})
    with ledger.database.session(read_only=True) as session:
        assert reading.report(session, job_id, owner="someone") == {**REPORT, "loss": "nan"}


def test_a_report_whose_job_is_deleted_meanwhile_is_not_found(
    postgres_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = Ledger(postgres_database)
    job_id, find = ledger.add(), reading.find_job
    ledger.succeed(job_id)

    def find_and_delete(session: Session, job_id: str, *, owner: str) -> JobRow:
        row = find(session, job_id, owner=owner)
        with ledger.database.session() as other:
            changes.delete_job(other, job_id, owner=owner)
        return row

    monkeypatch.setattr(reading, "find_job", find_and_delete)
    with ledger.database.session(read_only=True) as session, pytest.raises(NotFound):
        reading.report(session, job_id, owner="someone")


def test_seq_has_no_gaps_when_many_write(ledger_on_both: Ledger) -> None:
    ledger = ledger_on_both
    job_id = ledger.add()
    claim = ledger.claim(job_id)

    def work(own: Stage) -> None:
        for stage in (own, Stage.SAVE, own, Stage.FOLD, own):
            ledger.progress(claim, stage)

    at_once(*(partial(work, stage) for stage in list(Stage)[:4]))
    events = ledger.events(job_id)
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    assert len(events) > 7
    stages = [event.data["stage"] for event in events[2:]]
    assert all(one != next_one for one, next_one in itertools.pairwise(stages))
    with ledger.database.session(read_only=True) as session:
        assert reading.events(session, job_id, after=10**30, limit=3, owner="someone").items == ()


def test_progress(ledger: Ledger) -> None:
    job_id = ledger.add()
    claim = ledger.claim(job_id)
    for stage, overall, fraction, eta in (
        (Stage.RESOLVE, -0.1, 0.0, None),
        (Stage.RESOLVE, 0.01, 1.0, math.inf),
        (Stage.CALIBRATE, 0.25, 1.5, -1.0),
        (Stage.CALIBRATE, 0.5, 0.5, 12.5),
    ):
        ledger.progress(claim, stage, overall=overall, fraction=fraction, eta_seconds=eta)
        job = ledger.get(job_id)
        assert job.stage is stage
        assert 0 <= job.progress.overall <= 1
        assert 0 <= job.progress.stage <= 1
        assert job.progress.eta_seconds in (None, 0.0, 12.5)
    assert (job.progress.overall, job.progress.stage, job.progress.eta_seconds) == (0.5, 0.5, 12.5)
    assert [event.data for event in ledger.events(job_id)[2:]] == [{"stage": "resolve"}, {"stage": "calibrate"}]
    ledger.release(claim)
    job = ledger.get(job_id)
    assert (job.stage, job.worker, job.progress) == (None, None, JobProgress(overall=0.0, stage=0.0))
    ledger.progress(ledger.claim(job_id), Stage.SOLVE)
    assert ledger.events(job_id)[-1].data == {"stage": "solve", "resumed_from": None}


def test_metrics_are_those_of_the_present_attempt(ledger_on_both: Ledger) -> None:
    ledger = ledger_on_both
    job_id = ledger.add()
    first = ledger.claim(job_id)
    ledger.measure(first, Measured(stage=Stage.SELECT, name="distance", value=0.5, unit="1", block=3))
    ledger.release(first)
    second = ledger.claim(job_id)
    measured = [
        Measured(stage=Stage.SELECT, name="distance", value=0.1 + block, unit="1", block=block) for block in range(50)
    ]
    measured.append(Measured(stage=Stage.SOLVE, name="residual", value=1e-300, unit="1", candidate="12-19"))
    ledger.measure(second, *measured)
    ledger.measure(second)
    metrics = metrics_of(ledger.database, job_id)
    shown = {"stage", "name", "value", "unit", "block", "candidate"}
    assert [one.model_dump(include=shown) for one in metrics] == [one.model_dump(include=shown) for one in measured]
    assert metrics[0].at.utcoffset() == timedelta(0)
    with pytest.raises(LeaseLost):
        ledger.measure(first, *measured)


STAGES = {Stage.RESOLVE: 2.0, Stage.DOWNLOAD: 5.0, Stage.CALIBRATE: 60.0, Stage.SELECT: 20.0, Stage.PUBLISH: 3.0}
MODELLED = (Stage.DOWNLOAD, Stage.CALIBRATE, Stage.SELECT, Stage.PUBLISH)


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
    modelled: float = 10.0,
) -> None:
    """A job whose stages took these seconds, where the model says `modelled` of each."""
    claim = ledger.claim(ledger.add_spec(spec))
    if lost:
        ledger.release(claim)
        claim = ledger.claim(claim.job_id)
    ledger.progress(claim, *stages)
    said = {"name": "modelled_seconds", "value": modelled, "unit": "s"}
    ledger.measure(claim, *(Measured.model_validate({**said, "stage": stage}) for stage in MODELLED))
    (ledger.succeed if succeed else ledger.fail)(claim)
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
    ledger.succeed(ledger.add_spec(spec_for("cpu")))  # nobody knows what the model said of it
    assert [round(job.stages[Stage.SELECT][1]) for job in past(ledger)] == [20, 10]
    assert [round(job.stages[Stage.SELECT][1]) for job in past(ledger, WorkerKind.GPU)] == [1]


def test_a_time_that_no_model_says_is_left_out(ledger: Ledger) -> None:
    """A runner may write what it likes, and each later job is expected by it."""
    finish(ledger, spec_for("cpu"), modelled=-5.0)
    assert past(ledger) == ()


def test_jobs_on_the_same_model_and_text_have_the_same_inputs(ledger: Ledger) -> None:
    for model in ("org/one", "org/other", "org/one"):
        finish(ledger, spec_for("cpu", model=model))
    last, other, first = (job.inputs for job in past(ledger))
    assert first == last != other
    for hidden in ("org", "one", "topics"):
        assert hidden not in first, "runners of other owners get it"
