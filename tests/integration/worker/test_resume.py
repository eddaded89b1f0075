"""A worker that is killed once its job has been decided, and one that goes on; the pipeline is real, the model tiny."""

import json
import shutil
import sys
from pathlib import Path

import pytest
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
from worker.workspace import checkpoints_of

DYING_RUNNER = Path(__file__).parents[2] / "fakes" / "dying_runner.py"


@pytest.fixture
def real_site(embedded_site: Site) -> Site:
    site = embedded_site
    shutil.rmtree(site.hub_directory / MODEL)
    save_tiny(site.hub_directory / MODEL, dtype=torch.bfloat16)
    site.extra = {
        "REPLACEME_RUNNER_COMMAND": json.dumps([sys.executable, str(DYING_RUNNER)]),
        "REPLACEME_LEASE_SECONDS": "4",
    }
    return site


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


def weights(site: Site, output: str) -> bytes:
    return (site.hub_directory / output / "model.safetensors").read_bytes()


def test_it_resumes_from_the_checkpoint(real_site: Site) -> None:
    site = real_site
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
    assert weights(site, "acme/resumed") == weights(site, "acme/plain")
    wait_until(lambda: not site.workspaces(), seconds=10, what="removal of all workspaces")


def test_on_another_machine_it_starts_over_and_records_that(real_site: Site) -> None:
    site = real_site
    first = site.start_worker()
    job_id = add(site, "acme/elsewhere", dies="fold")
    place = checkpoints_of(site.settings.workspace, job_id)
    wait_until(lambda: site.job(job_id).attempt == 1 and place.exists(), seconds=120, what="a checkpoint")
    wait_until(lambda: (site.data / f"died-{job_id}").exists(), seconds=30, what="the end of the worker")
    first.kill_tree()
    shutil.rmtree(place)  # another machine does not see it
    site.start_worker(name="w2")
    job = site.wait_for_end(job_id, seconds=180)
    assert (job.status, job.attempt) == (JobStatus.SUCCEEDED, 2), job.error
    assert {"stage": "solve", "resumed_from": None} in stage_events(site, job_id, attempt=2)
    wait_until(lambda: not site.workspaces(), seconds=10, what="removal of all workspaces")
