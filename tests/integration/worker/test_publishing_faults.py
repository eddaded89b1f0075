"""What goes wrong while a result is published: one commit or none, and nothing is computed twice."""

import threading
import time

import pytest
from sqlalchemy import update

from benchmarks.harness.fake_hub.faults import Fault
from benchmarks.harness.fake_hub.server import FakeHub
from benchmarks.harness.processes import wait_until
from replaceme_core.ledger import changes
from replaceme_core.ledger.database import now
from replaceme_core.ledger.states import JobStatus
from replaceme_core.ledger.sweep import requeue_expired
from replaceme_core.ledger.tables import JobRow
from replaceme_core.request.spec import OutputSpec
from replaceme_core.runner.messages import Stage
from tests.fixtures.jobs.ledger import claim_job
from tests.fixtures.worker.hub_faults import COMMIT, UPLOAD, Case, commits
from tests.fixtures.worker.supervisor import OUTPUT, Bench
from worker.sweep import Sweep
from worker.workspace import find_result, kept_results

NO_RUNNER = ("/bin/false",)
"""A runner that computes nothing: what is published with it was computed before."""
PUBLISHING = {
    "401": Case(Fault.STATUS, COMMIT, "access_denied", 401),
    "403": Case(Fault.STATUS, UPLOAD, "access_denied", 403),
    "412": Case(Fault.STATUS, COMMIT, "stale_parent", 412),
    "429 once": Case(Fault.LIMIT, COMMIT, None, 2, times=1),
    "429 for hours": Case(Fault.LIMIT, COMMIT, "rate_limited", 20_000),
    "500": Case(Fault.STATUS, COMMIT, "hub_unreachable", 500),
    "dropped": Case(Fault.DROP, COMMIT, "hub_unreachable"),
    "lost reply": Case(Fault.LOSE_REPLY, COMMIT, None, times=1),
    "reply spoilt by a proxy": Case(Fault.SPOIL_REPLY, COMMIT, None, 504, times=1),
}


@pytest.mark.parametrize("name", PUBLISHING)
def test_a_fault_while_publishing(hub_bench: Bench, fake_hub: FakeHub, name: str) -> None:
    case = PUBLISHING[name]
    case.begin(fake_hub)
    job_id = hub_bench.add()
    job = hub_bench.run(job_id)
    assert (job.error.code if job.error else None) == case.code, job.error
    assert commits(fake_hub) == (1 if case.code is None else 0)
    if job.error is not None:
        assert "is kept for 7 days" in job.error.message
        assert list(kept_results(hub_bench.settings.workspace)) == [job_id]
        fake_hub.faults.clear()
        hub_bench.queue_again(job_id)
        job = hub_bench.run(job_id, runner_command=NO_RUNNER)
    assert job.status is JobStatus.SUCCEEDED, job.error
    assert commits(fake_hub) == 1
    assert kept_results(hub_bench.settings.workspace) == {}


def test_the_commit_names_the_job_and_its_specification(hub_bench: Bench, fake_hub: FakeHub) -> None:
    job_id = hub_bench.add()
    hub_bench.run(job_id)
    spec, job = fake_hub.commits(OUTPUT)[-1].message.splitlines()[-2:]
    assert job == f"ReplaceMe-Job: {job_id}"
    assert spec.startswith("ReplaceMe-Spec: ")
    assert len(spec) == len("ReplaceMe-Spec: ") + 64


def test_heartbeats_go_on_while_the_hub_asks_to_wait(hub_bench: Bench, fake_hub: FakeHub) -> None:
    """The wait is longer than the lease, and longer than an unreachable Hub is retried."""
    fake_hub.fail(Fault.LIMIT, COMMIT, value=4)
    began = time.monotonic()
    job = hub_bench.run(hub_bench.add(), lease_seconds=3)
    assert job.status is JobStatus.SUCCEEDED, job.error
    assert time.monotonic() - began >= 4
    assert fake_hub.count("POST", COMMIT) == 2


def test_a_cancel_during_the_upload_leaves_no_commit(hub_bench: Bench, fake_hub: FakeHub) -> None:
    held = fake_hub.fail(Fault.HOLD, UPLOAD)
    job_id = hub_bench.add()
    work = threading.Thread(target=hub_bench.run, args=(job_id,))
    work.start()
    wait_until(held.reached.is_set, seconds=20, what="the upload")
    with hub_bench.database.session() as session:
        changes.request_cancel(session, job_id, owner="tests")
    work.join(timeout=20)
    held.release()
    assert hub_bench.job(job_id).status is JobStatus.CANCELLED
    assert kept_results(hub_bench.settings.workspace) == {}
    wait_until(lambda: fake_hub.count("POST", "/lfs-verify") == 1, seconds=20, what="the end of the upload")
    time.sleep(0.5)
    assert commits(fake_hub) == 0


def test_a_cancel_while_the_hub_asks_to_wait_leaves_no_commit(hub_bench: Bench, fake_hub: FakeHub) -> None:
    """The last check before the commit was passed, but there is no commit."""
    fake_hub.fail(Fault.LIMIT, COMMIT, value=60)
    job_id = hub_bench.add()
    work = threading.Thread(target=hub_bench.run, args=(job_id,))
    work.start()
    wait_until(lambda: fake_hub.count("POST", COMMIT) == 1, seconds=20, what="the commit")
    with hub_bench.database.session() as session:
        changes.request_cancel(session, job_id, owner="tests")
    work.join(timeout=20)
    assert hub_bench.job(job_id).status is JobStatus.CANCELLED
    assert commits(fake_hub) == 0


def test_a_worker_that_is_lost_while_it_publishes_leaves_its_result(hub_bench: Bench, fake_hub: FakeHub) -> None:
    held = fake_hub.fail(Fault.HOLD, UPLOAD)
    job_id = hub_bench.add()
    work = threading.Thread(target=hub_bench.run, args=(job_id,))
    work.start()
    wait_until(held.reached.is_set, seconds=20, what="the upload")
    with hub_bench.database.session() as session:
        session.execute(update(JobRow).values(lease_expires_at=now(plus_seconds=-1)))
        requeue_expired(session, max_attempts=3, limit=10, backoff_seconds=0)
    work.join(timeout=40)
    held.release()
    wait_until(lambda: fake_hub.count("POST", "/lfs-verify") == 1, seconds=20, what="the end of the first upload")
    assert find_result(hub_bench.settings.workspace, job_id) is not None
    job = hub_bench.run(job_id, runner_command=NO_RUNNER)
    assert job.status is JobStatus.SUCCEEDED, job.error
    assert (job.attempt, commits(fake_hub)) == (2, 1)


def test_a_kept_result_has_a_lifetime(hub_bench: Bench, fake_hub: FakeHub) -> None:
    fake_hub.fail(Fault.STATUS, COMMIT, value=403)
    failed = hub_bench.add()
    assert hub_bench.run(failed).status is JobStatus.FAILED
    sweep = Sweep(settings=hub_bench.settings, enqueue=lambda *_: None, has_free_slot=lambda: False)
    sweep.sweep()
    assert list(kept_results(hub_bench.settings.workspace)) == [failed]
    Sweep(
        settings=hub_bench.settings.model_copy(update={"kept_result_seconds": 0}),
        enqueue=lambda *_: None,
        has_free_slot=lambda: False,
    ).sweep()
    assert kept_results(hub_bench.settings.workspace) == {}


def test_a_result_of_a_running_job_is_left_alone(hub_bench: Bench) -> None:
    job_id = hub_bench.add()
    with hub_bench.database.session() as session:
        claim_job(session, job_id, worker="publishes", lease_seconds=60)
    for name in (job_id, "00000000-0000-4000-8000-000000000000"):
        (hub_bench.settings.workspace / "checkpoints" / name / "result").mkdir(parents=True)
    Sweep(
        settings=hub_bench.settings.model_copy(update={"kept_result_seconds": 0}),
        enqueue=lambda *_: None,
        has_free_slot=lambda: False,
    ).sweep()
    assert list(kept_results(hub_bench.settings.workspace)) == [job_id]
    assert hub_bench.job(job_id).stage is not Stage.PUBLISH


def test_a_pull_request_is_proposed_once(hub_bench: Bench, fake_hub: FakeHub) -> None:
    fake_hub.add_model(OUTPUT, {"config.json": b"theirs"})
    fake_hub.fail(Fault.LOSE_REPLY, COMMIT)
    job = hub_bench.run(hub_bench.add(output=OutputSpec(repo_id=OUTPUT, create_pr=True, private=False)))
    assert job.status is JobStatus.SUCCEEDED, job.error
    (proposed,) = fake_hub.store.repository("model", OUTPUT).proposed
    assert job.result is not None
    assert job.result.revision == proposed.oid
    assert fake_hub.content(OUTPUT, "config.json") == b"theirs"
    assert job.spec.output.create_pr, "the specification is stored with it"
