"""What goes wrong while a job reads from the Hub, and while its result is published.

One commit or none, a code of its own, nothing left; after a lost worker nothing is computed twice.
"""

import time

import pytest
from sqlalchemy import update

from benchmarks.harness.fake_hub.access import STRANGER_TOKEN
from benchmarks.harness.fake_hub.faults import Fault
from benchmarks.harness.fake_hub.server import FakeHub
from benchmarks.harness.processes import wait_until
from benchmarks.harness.runners.gates import is_held, open_gates, set_gate
from benchmarks.harness.stub_model import BLOCKS, STUB_MODEL, stub_weights
from replaceme_core.hub import client
from replaceme_core.ledger.database import now
from replaceme_core.ledger.states import JobStatus
from replaceme_core.ledger.sweep import requeue_expired
from replaceme_core.ledger.tables import JobRow
from replaceme_core.request.spec import OutputSpec
from tests.fixtures.worker.supervisor import COMMIT, FILES, INFO, OUTPUT, UPLOAD, Bench, Case, commits
from worker.workspace import find_result, jobs_with_checkpoints

READING = {
    "403": Case(Fault.STATUS, INFO, "access_denied", 403),
    "404": Case(Fault.STATUS, INFO, "unknown_repository", 404),
    "429 once": Case(Fault.LIMIT, FILES, None, 2, times=1),
    "429 for hours": Case(Fault.LIMIT, FILES, "rate_limited", 20_000),
    "500": Case(Fault.STATUS, FILES, "hub_unreachable", 500),
    "cut once": Case(Fault.TRUNCATE, FILES, None, 5, times=1),
    "slow drip": Case(Fault.DRIP, FILES, "hub_unreachable", 0.1),
    "wrong etag": Case(Fault.WRONG_ETAG, "", None),
    "other content": Case(Fault.CORRUPT, FILES, "corrupt_download"),
}


@pytest.mark.parametrize("name", READING)
def test_a_fault_while_reading(hub_bench: Bench, fake_hub: FakeHub, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = READING[name]
    monkeypatch.setattr(client, "SLOW_SECONDS", 0.5)
    case.begin(fake_hub)
    job = hub_bench.run(hub_bench.add())
    assert (job.error.code if job.error else None) == case.code, job.error
    assert commits(fake_hub) == (1 if case.code is None else 0)
    assert jobs_with_checkpoints(hub_bench.settings.workspace) == set()
    assert [path.name for path in hub_bench.remaining if path.name != "checkpoints"] == []
    fake_hub.faults.clear()
    again = hub_bench.run(hub_bench.add())
    assert again.status is JobStatus.SUCCEEDED, again.error
    assert not list(hub_bench.settings.hub_cache.rglob("*.incomplete"))
    assert not any((hub_bench.settings.hub_cache / ".reserved").iterdir())


def test_a_download_that_breaks_off_again_and_again(hub_bench: Bench, fake_hub: FakeHub) -> None:
    """Each time there is more of it, so the Hub is not away, however long it takes in all."""
    fake_hub.add_model("acme/tiny", {**STUB_MODEL, "model.safetensors": stub_weights(BLOCKS, values=300_000)})
    resets = [fake_hub.fail(Fault.RESET, "^/storage/", method="GET", value=1_500_000) for _ in range(3)]
    job = hub_bench.run(hub_bench.add(), hub_patience_seconds=0.001)
    assert job.status is JobStatus.SUCCEEDED, job.error
    assert [reset.times for reset in resets] == [0, 0, 0]


def test_a_gated_model(hub_bench: Bench, fake_hub: FakeHub) -> None:
    fake_hub.store.repository("model", "acme/tiny").gated = True
    hub_bench.use_fake_hub(fake_hub, read_token=STRANGER_TOKEN)
    error = hub_bench.error_of(hub_bench.add())
    assert error.code == "gated_repository"
    fake_hub.store.repository("model", "acme/tiny").gated = False
    assert hub_bench.run(hub_bench.add()).status is JobStatus.SUCCEEDED


def test_a_branch_that_moves_during_the_download(hub_bench: Bench, fake_hub: FakeHub) -> None:
    """The commit of the beginning is the one that is used, and the one that the specification names."""
    pinned = fake_hub.commits("acme/tiny")[-1].oid
    held = fake_hub.fail(Fault.HOLD, FILES)
    job_id = hub_bench.add()
    with hub_bench.running(job_id):
        wait_until(held.reached.is_set, what="the download")
        fake_hub.add_model("acme/tiny", {"config.json": b'{"model_type": "mamba"}', "model.safetensors": b"newer"})
        held.release()
    job = hub_bench.job(job_id)
    assert job.status is JobStatus.SUCCEEDED, job.error
    assert job.spec.model.revision == pinned
    assert commits(fake_hub) == 1


@pytest.mark.parametrize("labels", [{}, {"stub_fail": "exit"}], ids=["unnoticed", "noticed"])
def test_a_model_in_a_directory_that_is_changed_during_the_run(bench: Bench, labels: dict[str, str]) -> None:
    """The runner has read one version of some files and another one of others, or ends at the change."""
    job_id, data = bench.add(**labels), bench.settings.data
    data.mkdir()
    set_gate(data, job_id, "calibrate")
    with bench.running(job_id):
        wait_until(lambda: is_held(data, job_id, "calibrate"), what="the calibration")
        (bench.hub_directory / "acme" / "tiny" / "config.json").write_text('{"model_type": "mamba"}')
        open_gates(data)
    job = bench.job(job_id)
    assert (job.status, job.error and job.error.code) == (JobStatus.FAILED, "repository_not_found")
    assert job.error and "acme/tiny has no file 'config.json'" in job.error.message
    assert "it was changed meanwhile" in job.error.message
    assert not (bench.hub_directory / OUTPUT).exists()
    assert find_result(bench.settings.workspace, job_id) is None


PREPARE = "/preupload/main$"
NO_RUNNER = ("/bin/false",)
"""A runner that computes nothing: what is published with it was computed before."""
PUBLISHING = {
    "403": Case(Fault.STATUS, UPLOAD, "access_denied", 403),
    "412": Case(Fault.STATUS, COMMIT, "stale_parent", 412),
    "429 once": Case(Fault.LIMIT, COMMIT, None, 2, times=1),
    "429 for hours": Case(Fault.LIMIT, COMMIT, "rate_limited", 20_000),
    "500": Case(Fault.STATUS, COMMIT, "hub_unreachable", 500),
    "lost reply": Case(Fault.LOSE_REPLY, COMMIT, None, times=1),
    "reply spoilt by a proxy": Case(Fault.SPOIL_REPLY, COMMIT, None, 504, times=1),
}


@pytest.mark.parametrize("name", PUBLISHING)
def test_a_fault_while_publishing(hub_bench: Bench, fake_hub: FakeHub, name: str) -> None:
    case = PUBLISHING[name]
    case.begin(fake_hub)
    job = hub_bench.run(hub_bench.add())
    assert (job.error.code if job.error else None) == case.code, job.error
    assert commits(fake_hub) == (1 if case.code is None else 0)
    assert jobs_with_checkpoints(hub_bench.settings.workspace) == set()


def test_a_result_is_published_again_for_as_long_as_it_took_to_make(
    hub_bench: Bench, fake_hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a thousandth of a second, which is the limit for all else, it would have to be computed again."""
    monkeypatch.setattr("worker.lease.FIRST_PAUSE_SECONDS", 0.05)
    fake_hub.fail(Fault.STATUS, COMMIT, value=500, times=3)
    job = hub_bench.run(hub_bench.add(stub_seconds="1"), hub_patience_seconds=0.001)
    assert job.status is JobStatus.SUCCEEDED, job.error
    assert (fake_hub.count("POST", COMMIT), commits(fake_hub)) == (4, 1)


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
    with hub_bench.running(job_id):
        wait_until(held.reached.is_set, what="the upload")
        hub_bench.cancel(job_id)
    held.release()
    assert hub_bench.job(job_id).status is JobStatus.CANCELLED
    assert jobs_with_checkpoints(hub_bench.settings.workspace) == set()
    wait_until(lambda: fake_hub.count("POST", "/lfs-verify") == 1, what="the end of the upload")
    time.sleep(0.5)
    assert commits(fake_hub) == 0


def test_a_cancel_while_the_hub_asks_to_wait_leaves_no_commit(hub_bench: Bench, fake_hub: FakeHub) -> None:
    """The last check before the commit was passed, but there is no commit."""
    fake_hub.fail(Fault.LIMIT, COMMIT, value=600)
    job_id = hub_bench.add()
    with hub_bench.running(job_id):
        wait_until(lambda: fake_hub.count("POST", COMMIT) == 1, what="the commit")
        hub_bench.cancel(job_id)
    assert hub_bench.job(job_id).status is JobStatus.CANCELLED
    assert commits(fake_hub) == 0


@pytest.mark.parametrize(("status", "waits"), [(412, False), (500, True)])
def test_a_cancel_while_a_commit_is_repeated_leaves_no_commit(
    hub_bench: Bench, fake_hub: FakeHub, status: int, waits: bool
) -> None:
    """After a refusal it counts at once; where the commit may have been made, at the next check."""
    fake_hub.fail(Fault.STATUS, COMMIT, value=status)
    fake_hub.fail(Fault.DELAY, PREPARE)  # the first one
    held = fake_hub.fail(Fault.HOLD, PREPARE)
    job_id = hub_bench.add()
    with hub_bench.running(job_id):
        wait_until(held.reached.is_set, what="the second publication")
        hub_bench.cancel(job_id)
        if waits:
            held.release()
    held.release()
    assert hub_bench.job(job_id).status is JobStatus.CANCELLED
    assert commits(fake_hub) == 0


def test_a_worker_that_is_lost_while_it_publishes_leaves_its_result(hub_bench: Bench, fake_hub: FakeHub) -> None:
    held = fake_hub.fail(Fault.HOLD, UPLOAD)
    job_id = hub_bench.add()
    with hub_bench.running(job_id):
        wait_until(held.reached.is_set, what="the upload")
        with hub_bench.database.session() as session:
            session.execute(update(JobRow).values(lease_expires_at=now(plus_seconds=-1)))
            requeue_expired(session, max_attempts=3, limit=10, backoff_seconds=0)
    held.release()
    wait_until(lambda: fake_hub.count("POST", "/lfs-verify") == 1, what="the end of the first upload")
    assert find_result(hub_bench.settings.workspace, job_id) is not None
    job = hub_bench.run(job_id, runner_command=NO_RUNNER)
    assert job.status is JobStatus.SUCCEEDED, job.error
    assert (job.attempt, commits(fake_hub)) == (2, 1)


def test_a_private_result_of_a_lost_worker_is_found_without_a_read_token(hub_bench: Bench, fake_hub: FakeHub) -> None:
    """It is read as its owner, who has the write token."""
    hub_bench.use_fake_hub(fake_hub, read_token=None)
    job_id = hub_bench.add()
    first = hub_bench.run(job_id)
    assert first.result is not None
    assert fake_hub.store.repository("model", OUTPUT).private
    hub_bench.queue_again(job_id)
    job = hub_bench.run(job_id, runner_command=NO_RUNNER)
    assert job.status is JobStatus.SUCCEEDED, job.error
    assert job.result is not None
    assert (job.attempt, job.result.revision, commits(fake_hub)) == (2, first.result.revision, 1)


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
