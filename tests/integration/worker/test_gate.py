"""A result that misses its gate: nothing on the Hub, nothing kept, and a report that says why."""

from pathlib import Path

import pytest
import torch

from benchmarks.harness.fake_hub.server import FakeHub
from benchmarks.harness.jobs import metrics_of, report_of
from benchmarks.harness.specs import a_spec
from replaceme_core.ledger import changes
from replaceme_core.ledger.records import Job
from replaceme_core.ledger.states import JobStatus
from replaceme_core.request.gate import GateSpec, Limits
from tests.fixtures.cli.local import BRIEF_RUNNER
from tests.fixtures.models.tiny import save_tiny
from tests.fixtures.worker.supervisor import OUTPUT, Bench, commits
from worker.workspace import jobs_with_checkpoints

GATE = GateSpec(perplexity_ratio=Limits(max=1.6))


@pytest.mark.parametrize(
    ("ratio", "message"),
    [("1.75", "the result misses its gate: perplexity_ratio is 1.75, at most 1.6 is wanted"), ("none", "not judge")],
)
def test_it_is_neither_published_nor_kept(hub_bench: Bench, fake_hub: FakeHub, ratio: str, message: str) -> None:
    """Also where the runner, one of another version, does not judge."""
    job_id = hub_bench.add(gate=GATE, stub_ratio=ratio)
    job = hub_bench.run(job_id)
    assert job.status is JobStatus.FAILED
    assert job.error is not None
    assert job.error.code == "gate_rejected"
    assert message in job.error.message
    assert (job.result, job.gate is None) == (None, ratio == "none")
    assert commits(fake_hub) == 0
    assert jobs_with_checkpoints(hub_bench.settings.workspace) == set()
    assert report_of(hub_bench.database, job_id)["removed_blocks"] == [2]
    hub_bench.queue_again(job_id)
    again = hub_bench.run(job_id)
    assert again.error == job.error, "a later attempt has found no result that it could publish"
    assert commits(fake_hub) == 0


def test_the_runner_gets_the_directory_of_the_tasks(hub_bench: Bench, tmp_path: Path) -> None:
    job_id = hub_bench.add()
    hub_bench.run(job_id, tasks_directory=tmp_path / "tasks")
    assert report_of(hub_bench.database, job_id)["tasks_directory"] == str(tmp_path / "tasks")


def test_the_deepest_cut_by_a_real_runner(hub_bench: Bench, fake_hub: FakeHub, tmp_path: Path) -> None:
    """One commit for what passes; a search that finds nothing leaves every trial, and nothing on the Hub."""
    fake_hub.add_model("acme/real", save_tiny(tmp_path / "model", dtype=torch.bfloat16))
    hub_bench.settings = hub_bench.settings.model_copy(update={"runner_command": BRIEF_RUNNER})

    def searched(limit: float) -> tuple[Job, dict[str, float]]:
        spec = a_spec(
            model="acme/real",
            ratio={"max": 0.5},
            gate={"divergence": {"max": limit}},
            calibration={"dataset": "builtin:pydoc-topics", "samples": 8, "max_length": 32, "self_generated": 0.0},
            method="drop",
            evaluation={"samples": 2},
            compute={"device": "cpu", "dtype": "float32", "threads": 1},
            output=OUTPUT,
        )
        with hub_bench.database.session() as session:
            job_id = changes.add(session, spec=spec, owner="tests").id
        job = hub_bench.run(job_id)
        metrics = metrics_of(hub_bench.database, job_id)
        report = report_of(hub_bench.database, job_id)["gate"]
        assert isinstance(report, dict)
        judged = {one.name: one.value for one in metrics if one.candidate == "divergence"}
        (criterion,) = report["criteria"]
        assert judged["gate_max"] == limit
        assert judged["gate_value"] == criterion["value"]
        assert judged["gate_passed"] == report["passed"]
        return job, {str(one.candidate): one.value for one in metrics if one.name == "trial_passed"}

    rejected, verdicts = searched(1e-9)
    assert commits(fake_hub) == 0
    assert rejected.error is not None
    assert rejected.error.code == "gate_rejected"
    assert "no cut passes the gate; of the best one, divergence is" in rejected.error.message
    assert rejected.gate is not None
    assert [(one.blocks, one.passed) for one in rejected.gate.trials] == [(2, False), (1, False)]
    assert verdicts == {"2 blocks": 0.0, "1 block": 0.0}
    passed, verdicts = searched(100.0)
    assert passed.status is JobStatus.SUCCEEDED, passed.error
    assert passed.gate is not None
    assert passed.result is not None
    assert [(one.blocks, one.passed) for one in passed.gate.trials] == [(2, True), (3, True)]
    assert len(passed.result.removed_blocks) == 3
    assert verdicts == {"2 blocks": 1.0, "3 blocks": 1.0}
    assert commits(fake_hub) == 1
