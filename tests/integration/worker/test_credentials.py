"""A job that names a credential: the worker uses that token alone, and nothing else sees it."""

import json
from collections.abc import Sequence
from typing import Any

import pytest
from cryptography.fernet import Fernet
from pydantic import SecretStr
from sqlalchemy import text

from benchmarks.harness.processes import wait_until
from benchmarks.harness.runners.gates import is_held, open_gates, set_gate
from replaceme_core.hub.directory import DirectoryHub
from replaceme_core.ledger import reading
from replaceme_core.ledger.database import Database
from replaceme_core.ledger.keys import Owners
from replaceme_core.ledger.states import JobStatus
from replaceme_core.ledger.tables import Base
from replaceme_core.runner.messages import RunnerRequest
from replaceme_core.runner.process import Runner
from replaceme_core.settings import Settings
from tests.fixtures.worker.supervisor import Bench
from worker import attempt

TOKEN = "hf_plantedplantedplanted"
KEY = SecretStr(Fernet.generate_key().decode())


@pytest.fixture
def bench(bench: Bench, sqlite_database: Database) -> Bench:
    bench.settings = bench.settings.model_copy(update={"encryption_key": KEY})
    with sqlite_database.session() as session:
        Owners(session).put_credential("tests", "mine", TOKEN, box=bench.settings.secrets_box())
    return bench


def add(bench: Bench, *, credential: str) -> str:
    job_id = bench.add()
    with bench.database.session() as session:
        session.execute(text("UPDATE jobs SET credential = :name"), {"name": credential})
    return job_id


def test_the_credential_is_used_and_seen_nowhere(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    opened: list[str | None] = []

    def open_hub(settings: object, *, token: str | None = None) -> DirectoryHub:
        opened.append(token)
        return DirectoryHub(bench.hub_directory)

    monkeypatch.setattr(Settings, "open_hub", open_hub)
    bench.hub = None  # type: ignore[assignment]  # the service's own tokens are not used
    requests: list[RunnerRequest] = []

    class Spy(Runner):
        def __init__(self, command: Sequence[str], request: RunnerRequest, **options: Any) -> None:
            requests.append(request)
            super().__init__(command, request, **options)

    monkeypatch.setattr(attempt, "Runner", Spy)
    job_id = add(bench, credential="mine")
    job = bench.run(job_id)
    assert job.status is JobStatus.SUCCEEDED, job.error
    assert set(opened) == {TOKEN}
    assert job.spec.credential == "mine", "it stays with the job, for a retry"
    assert [request.spec.credential for request in requests] == [None]
    with bench.database.session(read_only=True) as session:
        report = json.dumps(reading.report(session, job_id, owner="tests"))  # has the environment of the stub runner
        dump = [str(row) for table in Base.metadata.tables.values() for row in session.execute(table.select())]
    published = [path.read_text(errors="replace") for path in bench.hub_directory.rglob("*") if path.is_file()]
    everything = [*dump, report, caplog.text, requests[0].model_dump_json(), *published]
    assert any("mine" in each for each in dump)
    assert [each for each in everything if TOKEN in each or KEY.get_secret_value() in each] == []


@pytest.mark.parametrize("change", ["replaced", "deleted"])
def test_a_result_is_published_with_the_token_of_that_time(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    """The one that the job began with may have been revoked; deleting a credential stops no job that runs."""
    used: dict[str | None, DirectoryHub] = {}
    publish, writers = DirectoryHub.publish, []

    def open_hub(settings: object, *, token: str | None = None) -> DirectoryHub:
        return used.setdefault(token, DirectoryHub(bench.hub_directory))

    def noted(hub: DirectoryHub, *arguments: Any, **options: Any) -> str:
        writers.append(next(token for token, one in used.items() if one is hub))
        return publish(hub, *arguments, **options)

    monkeypatch.setattr(Settings, "open_hub", open_hub)
    monkeypatch.setattr(DirectoryHub, "publish", noted)
    job_id, data = add(bench, credential="mine"), bench.settings.data
    data.mkdir()
    set_gate(data, job_id, "fold")
    with bench.running(job_id):
        wait_until(lambda: is_held(data, job_id, "fold"), what="the fold")
        with bench.database.session() as session:
            if change == "replaced":
                Owners(session).put_credential("tests", "mine", "hf_another", box=bench.settings.secrets_box())
            else:
                Owners(session).delete_credential("tests", "mine")
        open_gates(data)
    assert bench.job(job_id).status is JobStatus.SUCCEEDED
    assert writers == ["hf_another" if change == "replaced" else TOKEN]


@pytest.mark.parametrize(
    ("credential", "settings", "code", "words"),
    [
        ("gone", {}, "invalid_input", "no credential 'gone'"),
        ("mine", {"encryption_key": SecretStr("")}, "access_denied", "cannot be decrypted"),
        ("mine", {"encryption_key": SecretStr(Fernet.generate_key().decode())}, "access_denied", "cannot be decrypted"),
    ],
)
def test_a_credential_that_cannot_be_used_fails_the_job(
    bench: Bench, credential: str, settings: dict[str, object], code: str, words: str
) -> None:
    error = bench.error_of(add(bench, credential=credential), **settings)
    assert (error.code, words in error.message) == (code, True), error
    assert TOKEN not in error.message


def test_the_namespaces_of_the_owner_hold_in_the_worker_too(bench: Bench) -> None:
    with bench.database.session() as session:
        Owners(session).set_output_namespaces("tests", ["elsewhere"])
    assert "under elsewhere only" in bench.error_of(bench.add()).message
