"""Plans, and outputs that are refused."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from api.dashboard.new_job import DEFAULTS
from api.main import create_app
from replaceme_core.hub.directory import DirectoryHub
from replaceme_core.hub.port import Publication
from replaceme_core.runner.messages import Measured, Stage
from replaceme_core.settings import Settings
from tests.fixtures.api.pages import token_of
from tests.fixtures.api.requests import SMALLEST, assert_problem, fields, put_model
from tests.fixtures.api.service import Service
from tests.fixtures.jobs.ledger import Ledger
from tests.fixtures.models.headers import SMOLLM2, write_headers

REQUEST = {**SMALLEST, "model": "org/real"}
GB = 10**9


@pytest.fixture(scope="module", autouse=True)
def _real_model(service: Service) -> None:
    """`org/real`, which has headers of weights, in the Hub of the service: it is hashed once.

    A process may come back to this module after tests of others, with the same service.
    """
    if not (service.hub_root / "org" / "real").exists():
        write_headers(service.hub_root / "org" / "real", SMOLLM2)


@pytest.fixture
def small_workers(settings: Settings) -> Iterator[TestClient]:
    """A service whose workers have half a gigabyte of memory."""
    limited = settings.model_copy(update={"worker_memory_bytes": GB // 2})
    with TestClient(create_app(limited), raise_server_exceptions=False) as client:
        yield client


def test_a_plan(client: TestClient) -> None:
    response = client.post("/plans", json=REQUEST)
    assert response.status_code == 200
    body = response.json()
    assert body["model"]["family"] == "llama"
    assert body["model"]["supported"] is True
    assert "refit" in body["model"]["methods"]
    assert len(body["model"]["revision"]) == 40
    found = body["estimate"]
    assert found["blocks"] == {"before": 30, "after": 22, "removed": "8 of 30"}
    assert found["parameters"] == {"before": 134_515_008, "after": 106_194_240}
    assert found["bytes"]["download"] > 269_000_000
    assert found["memory"]["host_bytes"] == max(stage["host_bytes"] or 0 for stage in found["stages"])
    assert found["time"] == {
        "seconds": pytest.approx(sum(stage["seconds"] for stage in found["stages"])),
        "low_seconds": pytest.approx(found["time"]["seconds"] / 2.5),
        "high_seconds": pytest.approx(found["time"]["seconds"] * 2.5),
        "basis": "model",
        "jobs": 0,
    }
    assert body["worker"] == {"route": None, "estimated_for": "cpu", "alive": False}
    assert [warning["code"] for warning in body["warnings"]] == ["no_chat_template"]
    assert body["refusals"] == []


def test_a_plan_rests_on_the_jobs_that_have_finished(client: TestClient, ledger: Ledger) -> None:
    before = client.post("/plans", json=REQUEST).json()["estimate"]
    claim = ledger.claim(client.post("/jobs", json={**REQUEST, "compute": {"device": "cpu"}}).json()["id"])
    for one in before["stages"]:  # all of them at once, which is faster than any model
        ledger.progress(claim, Stage(one["stage"]))
        measured = Measured(stage=Stage(one["stage"]), name="modelled_seconds", value=one["seconds"], unit="s")
        ledger.measure(claim, measured)
    ledger.succeed(claim)
    after = client.post("/plans", json=REQUEST).json()["estimate"]
    assert (after["time"]["basis"], after["time"]["jobs"]) == ("measured", 1)
    planned = after["time"]["seconds"] / before["time"]["seconds"]
    assert 1 / 5.1 <= planned < 1 / 2, "one job says so, and moves no more"
    assert after["time"]["low_seconds"] < after["time"]["seconds"] < after["time"]["high_seconds"]


def test_a_plan_for_the_deepest_cut(client: TestClient) -> None:
    plain = client.post("/plans", json={**REQUEST, "ratio": 0.5}).json()["estimate"]
    gate = {"perplexity_ratio": {"max": 1.6}}
    found = client.post("/plans", json={**REQUEST, "ratio": {"max": 0.5}, "gate": gate}).json()["estimate"]
    assert plain["trials"] is None
    seconds = {one["stage"]: one["seconds"] for one in found["stages"]}
    assert found["trials"] == {"at_most": 4, "seconds": seconds["select"]}
    assert (found["blocks"], found["parameters"]) == (plain["blocks"], plain["parameters"])
    assert found["bytes"]["disk"] > plain["bytes"]["disk"]
    assert found["time"]["seconds"] > 1.5 * plain["time"]["seconds"]
    assert seconds["calibrate"] == {one["stage"]: one["seconds"] for one in plain["stages"]}["calibrate"]
    memory = {one["stage"]: one["host_bytes"] for one in found["stages"]}
    assert memory["select"] == max(one for one in memory.values() if one)


def test_validate_only_answers_with_the_plan_or_with_the_error_of_a_submission(client: TestClient) -> None:
    plan = client.post("/jobs", json={**REQUEST, "validate_only": True}, headers={"Idempotency-Key": "k"})
    assert plan.json() == client.post("/plans", json=REQUEST).json()
    wrong = {**REQUEST, "ratio": None, "drop": [40]}
    assert fields(client.post("/jobs", json={**wrong, "validate_only": True})) == {"drop": [40]}
    assert fields(client.post("/jobs", json=wrong)) == {"drop": [40]}
    submitted = client.post("/jobs", json=REQUEST, headers={"Idempotency-Key": "k"})
    assert submitted.status_code == 202  # the key was not used up
    assert "validate_only" not in submitted.json()["spec"]
    explicit = client.post("/jobs", json={**REQUEST, "validate_only": False}, headers={"Idempotency-Key": "k"})
    assert explicit.json()["id"] == submitted.json()["id"]


def test_a_plan_has_the_limit_of_time_of_the_service(client: TestClient, settings: Settings) -> None:
    """By which the steps of `auto` are fewer."""
    named = client.post("/plans", json={**REQUEST, "max_runtime_seconds": 60}).json()
    assert named != client.post("/plans", json=REQUEST).json()
    with TestClient(create_app(settings.model_copy(update={"max_runtime_seconds": 60.0}))) as strict:
        assert strict.post("/plans", json=REQUEST).json() == named
        assert strict.post("/jobs", json={**REQUEST, "validate_only": True}).json() == named


def test_text_that_is_half_a_character_is_refused_where_it_is_read(client: TestClient, hub_root: Path) -> None:
    place = put_model(hub_root, "org/odd")
    header = b'{"a":{"dtype":"\\ud800","shape":[0],"data_offsets":[0,0]}}'
    (place / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    (refusal,) = client.post("/plans", json={**REQUEST, "model": "org/odd"}).json()["refusals"]
    assert (refusal["code"], "not UTF-8" in refusal["message"]) == ("broken_model", True)
    assert_problem(client.post("/jobs", json={**REQUEST, "model": "org/odd"}), status=422, code="broken_model")
    form = {**DEFAULTS, "model": "org/odd", "csrf_token": token_of(client.get("/ui/new"))}
    page = client.post("/ui/plan", data=form)
    assert (page.status_code, "not UTF-8" in page.text) == (200, True)


def test_a_job_that_cannot_fit_is_refused_with_the_numbers(small_workers: TestClient, client: TestClient) -> None:
    body = assert_problem(small_workers.post("/jobs", json=REQUEST), status=422, code="does_not_fit")
    assert "the worker has 500,000,000" in str(body["detail"])
    (refusal,) = small_workers.post("/plans", json=REQUEST).json()["refusals"]
    assert refusal["message"] == body["detail"]
    assert small_workers.get("/jobs").json()["items"] == []
    assert client.post("/jobs", json=REQUEST).status_code == 202  # where nothing is known of the workers


def test_what_comes_from_a_private_source_stays_private(settings: Settings, hub_root: Path) -> None:
    publication = Publication(folder=hub_root / "org/name", repo_id="local/secret", private=True, title="t", job_id="1")
    DirectoryHub(hub_root).publish(publication, before_commit=lambda: None)
    public = {**SMALLEST, "model": "local/secret", "output": {"private": False}}
    with TestClient(create_app(settings)) as client:
        assert fields(client.post("/jobs", json=public)) == {"output.private": False}
        assert client.post("/jobs", json={**public, "output": {}}).status_code == 202
        assert client.post("/jobs", json={**public, "model": "org/name"}).status_code == 202
    with TestClient(create_app(settings.model_copy(update={"allow_publishing_private": True}))) as client:
        assert client.post("/jobs", json=public).status_code == 202


def test_the_operator_names_the_namespaces(settings: Settings) -> None:
    with TestClient(create_app(settings.model_copy(update={"output_namespaces": ("me", "org")}))) as client:
        named, unnamed = ({**SMALLEST, "output": "org/small"}, SMALLEST)
        assert client.post("/jobs", json=named).json()["spec"]["output"]["repo_id"] == "org/small"
        assert client.post("/jobs", json=unnamed).json()["spec"]["output"]["repo_id"].startswith("me/name-")
        assert fields(client.post("/jobs", json={**SMALLEST, "output": "local/small"})).keys() == {"output.repo_id"}
