"""A worker that is killed once its job has been decided; the pipeline is real, the model tiny."""

import json
import shutil
import sys
from pathlib import Path

import torch

from benchmarks.harness.jobs import events_of
from benchmarks.harness.processes import wait_until
from benchmarks.harness.site import MODEL, Site
from replaceme_core.ledger import changes
from replaceme_core.ledger.states import JobStatus
from replaceme_core.request.calibration import CalibrationSpec
from replaceme_core.request.method import Method, MethodSpec
from replaceme_core.request.spec import CompressionSpec, ComputeSpec, EvaluationSpec, ModelRef, OutputSpec
from tests.fixtures.models.tiny import save_tiny

DYING_RUNNER = Path(__file__).parents[2] / "fakes" / "dying_runner.py"


def add(site: Site, output: str, **labels: str) -> str:
    spec = CompressionSpec(
        model=ModelRef(repo_id=MODEL),
        ratio=0.33,
        calibration=CalibrationSpec(dataset="builtin:pydoc-topics", samples=16, max_length=32, self_generated=0.0),
        method=MethodSpec(name=Method.LEAST_SQUARES),
        evaluation=EvaluationSpec(enabled=False),
        output=OutputSpec(repo_id=output),
        compute=ComputeSpec(threads=1),
        labels=labels,
    )
    with site.database.session() as session:
        job_id = changes.add(session, spec=spec, owner="tests").id
    site.enqueue(job_id)
    return job_id


def stage_events(site: Site, job_id: str, *, attempt: int) -> list[dict[str, object]]:
    events = events_of(site.database, job_id)
    return [dict(event.data) for event in events if event.type == "stage" and event.attempt == attempt]


def test_it_resumes_from_the_checkpoint(embedded_site: Site) -> None:
    site = embedded_site
    shutil.rmtree(site.hub_directory / MODEL)
    save_tiny(site.hub_directory / MODEL, dtype=torch.bfloat16)
    site.extra = {
        "REPLACEME_RUNNER_COMMAND": json.dumps([sys.executable, str(DYING_RUNNER)]),
        "REPLACEME_LEASE_SECONDS": "4",
    }
    site.start_worker()
    resumed, plain = add(site, "acme/resumed", dies="fold"), add(site, "acme/plain")
    for job_id in (resumed, plain):
        job = site.wait_for_end(job_id, seconds=180)
        assert job.status is JobStatus.SUCCEEDED, job.error
    assert site.job(resumed).attempt == 2
    again = stage_events(site, resumed, attempt=2)
    assert "select" not in [event["stage"] for event in again]
    assert {"stage": "solve", "resumed_from": "solve"} in again
    assert {"stage": "solve"} in stage_events(site, plain, attempt=1)
    first, second = (site.hub_directory / "acme" / name / "model.safetensors" for name in ("resumed", "plain"))
    assert first.read_bytes() == second.read_bytes()
    wait_until(lambda: not site.workspaces(), seconds=10, what="removal of all workspaces")
