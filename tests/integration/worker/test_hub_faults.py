"""What goes wrong while a job reads from the Hub: no commit, a code of its own, nothing left, and then a success."""

import threading

import pytest

from benchmarks.harness.fake_hub.access import STRANGER_TOKEN
from benchmarks.harness.fake_hub.faults import Fault
from benchmarks.harness.fake_hub.server import FakeHub
from benchmarks.harness.processes import wait_until
from replaceme_core.hub import client
from replaceme_core.ledger.states import JobStatus
from tests.fixtures.worker.hub_faults import FILES, INFO, Case, commits
from tests.fixtures.worker.supervisor import Bench
from worker.workspace import kept_results

READING = {
    "401": Case(Fault.STATUS, INFO, "access_denied", 401),
    "403": Case(Fault.STATUS, INFO, "access_denied", 403),
    "403 of a file": Case(Fault.STATUS, FILES, "access_denied", 403),
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
    assert kept_results(hub_bench.settings.workspace) == {}
    assert [path.name for path in hub_bench.remaining if path.name != "checkpoints"] == []
    fake_hub.faults.clear()
    again = hub_bench.run(hub_bench.add())
    assert again.status is JobStatus.SUCCEEDED, again.error
    assert not list(hub_bench.settings.hub_cache.rglob("*.incomplete"))
    assert not any((hub_bench.settings.hub_cache / ".reserved").iterdir())


def test_a_gated_model(hub_bench: Bench, fake_hub: FakeHub) -> None:
    fake_hub.store.repository("model", "acme/tiny").gated = True
    hub_bench.use_fake_hub(fake_hub, read_token=STRANGER_TOKEN)
    job = hub_bench.run(hub_bench.add())
    assert job.error is not None
    assert job.error.code == "gated_repository"
    fake_hub.store.repository("model", "acme/tiny").gated = False
    assert hub_bench.run(hub_bench.add()).status is JobStatus.SUCCEEDED


def test_a_branch_that_moves_during_the_download(hub_bench: Bench, fake_hub: FakeHub) -> None:
    """The commit of the beginning is the one that is used, and the one that the specification names."""
    pinned = fake_hub.commits("acme/tiny")[-1].oid
    held = fake_hub.fail(Fault.HOLD, FILES)
    job_id = hub_bench.add()
    work = threading.Thread(target=hub_bench.run, args=(job_id,))
    work.start()
    wait_until(held.reached.is_set, seconds=20, what="the download")
    fake_hub.add_model("acme/tiny", {"config.json": b'{"model_type": "mamba"}', "model.safetensors": b"newer"})
    held.release()
    work.join(timeout=60)
    job = hub_bench.job(job_id)
    assert job.status is JobStatus.SUCCEEDED, job.error
    assert job.spec.model.revision == pinned
    assert commits(fake_hub) == 1
