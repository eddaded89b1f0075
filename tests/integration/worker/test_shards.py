"""A calibration in shards on real workers: the pipeline is real, the model tiny. Who is lost loses one shard."""

import json
import os
import shutil
import sys
from collections import Counter
from pathlib import Path

import psutil
import torch
from sqlalchemy import func, select

from benchmarks.harness.gates import FOLDER, is_held, open_gate, set_gate
from benchmarks.harness.processes import Started, wait_until
from benchmarks.harness.site import MODEL, Site
from replaceme_core.jobs.repository import Jobs
from replaceme_core.jobs.states import JobStatus, ShardState
from replaceme_core.jobs.tables import ShardRow
from replaceme_core.spec import CalibrationSpec, CompressionSpec, ComputeSpec, EvaluationSpec, ModelRef, OutputSpec
from tests.fixtures.models.tiny import save_tiny

GATED_RUNNER = Path(__file__).parents[2] / "fakes" / "gated_runner.py"
SHARDS = 4
SECONDS = 120.0


def make_real(site: Site) -> Site:
    """With a tiny model that can be run, leases that run out soon, and a runner that stops where a test wants it to."""
    shutil.rmtree(site.hub_directory / MODEL)
    save_tiny(site.hub_directory / MODEL, dtype=torch.bfloat16)
    (site.data / FOLDER).mkdir()
    site.extra = {
        "REPLACEME_RUNNER_COMMAND": json.dumps([sys.executable, str(GATED_RUNNER)]),
        "REPLACEME_LEASE_SECONDS": "3",
    }
    return site


def add(site: Site, *, output: str = "acme/smaller", shards: int | None = SHARDS, enqueue: bool = True) -> str:
    spec = CompressionSpec(
        model=ModelRef(repo_id=MODEL),
        ratio=0.33,
        calibration=CalibrationSpec(dataset="builtin:pydoc-topics", samples=32, max_length=32),
        evaluation=EvaluationSpec(enabled=False),
        output=OutputSpec(repo_id=output),
        compute=ComputeSpec(threads=1, batch_size=2, shards=shards),
    )
    with site.database.session() as session:
        job_id = Jobs(session).add(spec=spec, owner="tests").id
    if enqueue:
        site.enqueue(job_id)
    return job_id


def begun(site: Site, job_id: str) -> list[tuple[str, int]]:
    """Who began which shard, in order."""
    path = site.data / FOLDER / f"{job_id}.shards"
    lines = path.read_text().split("\n") if path.exists() else []
    return [(who, int(number)) for who, number in (line.split() for line in lines if line)]


def news(site: Site, job_id: str) -> list[dict[str, object]]:
    with site.database.session(read_only=True) as session:
        events = Jobs(session).events(job_id, limit=100).items
    return [dict(event.data["shards"]) for event in events if "shards" in event.data]  # type: ignore[call-overload]


def done(site: Site) -> int:
    with site.database.session(read_only=True) as session:
        return session.scalars(select(func.count()).where(ShardRow.state == ShardState.DONE)).one()


def weights(site: Site, output: str) -> bytes:
    return (site.hub_directory / output / "model.safetensors").read_bytes()


def other_than_the_jobs_own(site: Site, job_id: str, workers: list[Started]) -> Started:
    worker = site.job(job_id).worker
    assert worker is not None
    pid = int(worker.rpartition(":")[2])
    (other,) = (each for each in workers if pid not in {each.pid, *(child.pid for child in each.children())})
    return other


def is_visit(process: psutil.Process) -> bool:
    return "--shards" in process.cmdline() and process.pid == os.getpgid(process.pid)  # not its guard


def ring_for_a_visit(site: Site, job_id: str) -> int:
    """Until another worker holds a shard and the job's own has done all others; returns the number."""
    for place in ("shard", "visit"):  # its own worker could be done before another one has begun
        set_gate(site.data, job_id, place)
    site.enqueue(job_id)
    both = ("shard", "visit")
    wait_until(
        lambda: all(is_held(site.data, job_id, place) for place in both), seconds=SECONDS, what="two workers at work"
    )
    open_gate(site.data, job_id, "shard")
    wait_until(
        lambda: is_held(site.data, job_id, "visit") and done(site) == SHARDS - 1,
        seconds=SECONDS,
        what=f"a visit, and all other shards: {begun(site, job_id)}",
    )
    (number,) = (number for who, number in begun(site, job_id) if who == "visit")
    return number


def assert_succeeded(site: Site, job_id: str) -> None:
    job = site.wait_for_end(job_id, seconds=SECONDS)
    assert job.status is JobStatus.SUCCEEDED, job.error
    assert job.attempt == 1
    assert job.spec.compute.shards == SHARDS
    wait_until(lambda: not site.workspaces(), seconds=15, what=f"removal of {site.workspaces()}")
    wait_until(lambda: not site.runners(), seconds=15, what="the end of all runners")
    with site.database.session(read_only=True) as session:
        assert session.scalars(select(ShardRow.number)).all() == []


def test_a_lost_shard_alone_is_done_again(embedded_site: Site) -> None:
    site = make_real(embedded_site)
    workers = [site.start_worker(), site.start_worker(name="w2")]
    job_id = add(site, enqueue=False)
    lost = ring_for_a_visit(site, job_id)
    other_than_the_jobs_own(site, job_id, workers).kill_tree()
    assert_succeeded(site, job_id)
    expected = dict.fromkeys(range(SHARDS), 1) | {lost: 2}
    assert Counter(number for _, number in begun(site, job_id)) == expected
    told = news(site, job_id)
    assert [one["news"] for one in told] == ["planned", "lost", "done"]
    assert told[1]["number"] == lost
    assert len(site.publications()) == 1
    # by one worker, which is left: the same bytes
    alone = add(site, output="acme/alone")
    assert_succeeded(site, alone)
    assert weights(site, "acme/alone") == weights(site, "acme/smaller")
    assert {who for who, _ in begun(site, alone)} == {"shard"}
