"""Repositories that exist when a result is ready: real database, real hub, a stub in place of the pipeline."""

from pathlib import Path
from uuid import uuid4

import pytest

from benchmarks.harness.fake_hub.faults import Fault
from benchmarks.harness.fake_hub.server import FakeHub
from replaceme_core.hub.directory import DirectoryHub
from replaceme_core.hub.port import Publication
from replaceme_core.ledger import changes
from replaceme_core.ledger.states import JobStatus
from replaceme_core.request.spec import OutputSpec
from tests.fixtures.jobs.ledger import Ledger
from tests.fixtures.worker.supervisor import OUTPUT, Bench

THEIRS = {"config.json": b"theirs", "model.safetensors": b"their weights"}


def put(folder: Path) -> None:
    folder.mkdir(parents=True)
    for name, content in THEIRS.items():
        (folder / name).write_bytes(content)


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


class TakenMeanwhile(DirectoryHub):
    """The output is free when the job starts; somebody fills it before the result is published."""

    def publish(self, publication: Publication, **callbacks: object) -> str:
        put(self._root / publication.repo_id)
        return super().publish(publication, **callbacks)  # type: ignore[arg-type]


@pytest.mark.parametrize("meanwhile", [False, True])
def test_a_repository_that_appeared_after_the_submission_is_left(bench: Bench, meanwhile: bool) -> None:
    job_id = bench.add()
    if meanwhile:
        bench.hub = TakenMeanwhile(bench.hub_directory)
    else:
        put(bench.hub_directory / OUTPUT)
    error = bench.error_of(job_id)
    assert (error.code, "exists already" in error.message) == ("invalid_input", True), error
    assert content(bench.hub_directory / OUTPUT) == THEIRS


def test_an_owner_replaces_results_of_their_own_only(bench: Bench) -> None:
    assert bench.run(bench.add()).status is JobStatus.SUCCEEDED
    again = bench.run(bench.add())
    assert again.status is JobStatus.SUCCEEDED, again.error
    before = content(bench.hub_directory / OUTPUT)
    error = bench.error_of(bench.add(owner="somebody else"))
    assert error.code == "invalid_input"
    assert content(bench.hub_directory / OUTPUT) == before


def retry(bench: Bench, job_id: str) -> str:
    with bench.database.session() as session:
        return changes.retry(session, job_id, owner="tests", new_id=str(uuid4())).id


def delete(bench: Bench, job_id: str) -> None:
    with bench.database.session() as session:
        changes.delete_job(session, job_id, owner="tests")


def test_a_retry_leaves_the_result_that_was_named_after_the_job(bench: Bench) -> None:
    first = str(uuid4())
    done = bench.run(bench.add(job_id=first, output=OutputSpec(repo_id=f"acme/tiny-3of4-{first[:8]}")))
    assert done.result is not None, done.error
    before = content(bench.hub_directory / done.result.repo_id)
    second, third = retry(bench, first), retry(bench, first)
    again = bench.run(second)
    assert again.result is not None, again.error
    assert again.result.repo_id == f"acme/tiny-3of4-{second[:8]}"
    assert content(bench.hub_directory / done.result.repo_id) == before
    delete(bench, first)
    assert bench.run(third).status is JobStatus.SUCCEEDED


def test_a_retry_replaces_what_the_job_wrote_to_a_named_repository_even_if_that_job_is_deleted(bench: Bench) -> None:
    first = bench.add()
    assert bench.run(first).status is JobStatus.SUCCEEDED
    second = retry(bench, first)
    delete(bench, first)
    again = bench.run(second)
    assert again.status is JobStatus.SUCCEEDED, again.error
    assert (again.result and again.result.repo_id) == OUTPUT


def test_a_copied_report_does_not_make_a_repository_ones_own(bench: Bench) -> None:
    """The job that it names belongs to the owner, but made another repository."""
    assert bench.run(bench.add()).status is JobStatus.SUCCEEDED
    copy = bench.hub_directory / "acme" / "copy"
    put(copy)
    (copy / "replaceme.json").write_bytes((bench.hub_directory / OUTPUT / "replaceme.json").read_bytes())
    error = bench.error_of(bench.add(output=OutputSpec(repo_id="acme/copy")))
    assert "exists already" in error.message
    assert content(copy).items() >= THEIRS.items()


def test_a_runner_does_not_decide_where_its_result_goes(bench: Bench) -> None:
    """A later attempt begins with the specification that an earlier runner has resolved."""
    job_id = bench.add(stub_redirects="yes")
    asked = bench.job(job_id).spec.output
    error = bench.error_of(job_id)
    assert (error.code, "changed what the job was asked to do" in error.message) == ("internal_error", True), error
    assert bench.job(job_id).spec.output == asked
    assert [path.name for path in (bench.hub_directory / "acme").iterdir()] == ["tiny"]


def test_overwrite_replaces_what_the_operator_allows(bench: Bench) -> None:
    put(bench.hub_directory / OUTPUT)
    asked = OutputSpec(repo_id=OUTPUT, overwrite=True)
    refused = bench.error_of(bench.add(output=asked))
    assert "REPLACEME_ALLOW_OVERWRITE" in refused.message
    assert content(bench.hub_directory / OUTPUT) == THEIRS
    job = bench.run(bench.add(output=asked), allow_overwrite=True)
    assert job.status is JobStatus.SUCCEEDED, job.error
    assert job.spec.output == asked, "the specification is stored with it"


def test_a_second_attempt_fills_the_repository_that_the_first_one_created(bench: Bench, fake_hub: FakeHub) -> None:
    """The first one ended between the creation and the commit, or without the reply to its commit."""
    bench.use_fake_hub(fake_hub)
    fake_hub.store.create("model", OUTPUT, private=True)
    fake_hub.fail(Fault.LOSE_REPLY, r"/commit/main$")
    job_id = bench.add()
    ledger = Ledger(bench.database)
    ledger.release(ledger.claim(job_id))
    job = bench.run(job_id)
    assert job.status is JobStatus.SUCCEEDED, job.error
    assert len(fake_hub.commits(OUTPUT)) == 2
