"""Rates of earlier jobs, from the metrics that their stages left."""

import pytest

from benchmarks.harness.specs import a_spec
from replaceme_core.admission.worker_kind import WorkerKind
from replaceme_core.jobs.repository import Jobs
from replaceme_core.jobs.session import Database
from replaceme_core.planning.duration import Rates
from replaceme_core.runner.messages import Measured, Stage
from replaceme_core.spec import ComputeSpec
from tests.fixtures.jobs.ledger import Ledger


@pytest.fixture
def ledger(database: Database) -> Ledger:
    return Ledger(database)


def queue(ledger: Ledger, device: str) -> str:
    return ledger.add_spec(a_spec().model_copy(update={"compute": ComputeSpec(device=device)}))


def finish(ledger: Ledger, *, device: str, seconds: float, succeed: bool = True) -> None:
    """A job on this device whose stage `select` took so many seconds, where the model says 10."""
    claim = ledger.claim(queue(ledger, device))
    values = {"seconds": seconds, "modelled_seconds": 10.0}
    with ledger.database.session() as session:
        measured = [Measured(stage=Stage.SELECT, name=name, value=value, unit="s") for name, value in values.items()]
        Jobs(session).add_metrics(claim, measured)
    if succeed:
        ledger.succeed(claim)
    else:
        ledger.fail(claim)


def rates(ledger: Ledger, kind: WorkerKind) -> Rates:
    with ledger.database.session(read_only=True) as session:
        return Jobs(session).stage_rates(kind)


def test_rates_are_medians_of_jobs_that_succeeded_on_this_kind_of_worker(ledger: Ledger) -> None:
    for seconds in (10.0, 20.0, 90.0):
        finish(ledger, device="cpu", seconds=seconds)
    finish(ledger, device="cuda", seconds=1.0)
    finish(ledger, device="cpu", seconds=900.0, succeed=False)
    assert rates(ledger, WorkerKind.CPU) == Rates(factors={Stage.SELECT: pytest.approx(2.0)}, jobs=3)
    assert rates(ledger, WorkerKind.GPU) == Rates(factors={Stage.SELECT: pytest.approx(0.1)}, jobs=1)


def test_without_jobs_there_are_no_rates(ledger: Ledger) -> None:
    assert rates(ledger, WorkerKind.CPU) == Rates(factors={}, jobs=0)
