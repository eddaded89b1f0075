"""`Idempotency-Key` on `POST /jobs`: a repeated request creates one job."""

from pathlib import Path

import pytest
from httpx2 import Response
from starlette.testclient import TestClient

from api.main import create_app
from replaceme_core.ledger.database import Database
from replaceme_core.ledger.tables import IdempotencyKeyRow
from replaceme_core.settings import Settings
from tests.fixtures.api.requests import SMALLEST, assert_problem, fields


def post(client: TestClient, key: str, **changes: object) -> Response:
    return client.post("/jobs", json={**SMALLEST, **changes}, headers={"Idempotency-Key": key})


def jobs_of(client: TestClient) -> list[str]:
    return [job["id"] for job in client.get("/jobs").json()["items"]]


def test_a_repeated_request_returns_the_first_job(client: TestClient, settings: Settings) -> None:
    first = post(client, "k")
    again = post(client, "k")
    assert first.status_code == again.status_code == 202
    assert first.headers["location"] == again.headers["location"]
    assert first.json() == again.json()
    assert jobs_of(client) == [first.json()["id"]]
    assert len(list(settings.broker_directory.glob("messages/*.msg"))) == 1


def test_a_repeated_request_returns_the_current_state(client: TestClient) -> None:
    job = post(client, "k").json()
    client.post(f"{job['links']['self']}/cancel")
    assert post(client, "k").json()["status"] == "cancelled"


def test_long_and_short_forms_are_the_same_request(client: TestClient) -> None:
    first = post(client, "k", labels={"a": "1", "b": "2"}).json()["id"]
    longer = {
        "calibration": {"split": "train", "dataset": SMALLEST["calibration"]},
        "model": {"repo_id": SMALLEST["model"]},
        "method": None,
        "labels": {"b": "2", "a": "1"},
        "drop": None,
        "priority": 5,
    }
    assert post(client, "k", **longer).json()["id"] == first


@pytest.mark.parametrize("changes", [{"ratio": 0.5}, {"labels": {"a": "1"}}, {"priority": 6}, {"output": "org/other"}])
def test_another_request_is_refused(client: TestClient, changes: dict[str, object]) -> None:
    job = post(client, "k").json()["id"]
    assert fields(post(client, "k", **changes), code="idempotency_key_reused") == {"Idempotency-Key": "k"}
    assert jobs_of(client) == [job]


def test_other_keys_and_no_key_create_other_jobs(client: TestClient) -> None:
    made = [post(client, "k").json()["id"], post(client, "K").json()["id"]]
    made += [client.post("/jobs", json=SMALLEST).json()["id"] for _ in range(2)]
    assert jobs_of(client) == made[::-1]


def test_a_repeated_request_does_not_contact_the_hub(client: TestClient, hub_root: Path) -> None:
    first = post(client, "k").json()["id"]
    hub_root.rename(hub_root.with_name("moved"))
    assert post(client, "k").json()["id"] == first
    assert_problem(post(client, "new"), status=503, code="hub_unreachable")


def test_a_refused_request_does_not_use_up_its_key(client: TestClient, hub_root: Path) -> None:
    fields(post(client, "k", model="org/none"), code="unknown_repository")
    fields(post(client, "k", ratio=7))
    hub_root.rename(hub_root.with_name("moved"))
    assert_problem(post(client, "k"), status=503, code="hub_unreachable")
    hub_root.with_name("moved").rename(hub_root)
    assert post(client, "k").status_code == 202


def test_a_new_process_knows_the_key(client: TestClient, settings: Settings) -> None:
    first = post(client, "k").json()["id"]
    with TestClient(create_app(settings)) as other:
        assert post(other, "k").json()["id"] == first


def test_a_key_expires(settings: Settings, sqlite_database: Database) -> None:
    with TestClient(create_app(settings.model_copy(update={"idempotency_seconds": 1e-3}))) as client:
        first = post(client, "k").json()["id"]
        second = post(client, "k", ratio=0.5).json()["id"]  # the expired key neither matches nor conflicts
    assert first != second
    with sqlite_database.session(read_only=True) as session:
        assert [row.job_id for row in session.query(IdempotencyKeyRow)] == [second]


@pytest.mark.parametrize("key", ["!", "~" * 255, '"8e03978e-40d5"', "a,b;c=d"])
def test_valid_keys(client: TestClient, key: str) -> None:
    assert post(client, key).json()["id"] == post(client, key).json()["id"]


@pytest.mark.parametrize("key", ["", "a b", "x" * 256, "tab\there", "\x7f", "é"])
def test_invalid_keys(client: TestClient, key: str) -> None:
    response = client.post("/jobs", json=SMALLEST, headers={"Idempotency-Key": key.encode("latin-1")})
    assert fields(response).keys() == {"Idempotency-Key"}
    assert jobs_of(client) == []


def test_two_keys_are_refused(client: TestClient) -> None:
    headers = [("Idempotency-Key", "a"), ("Idempotency-Key", "b")]
    assert fields(client.post("/jobs", json=SMALLEST, headers=headers)).keys() == {"Idempotency-Key"}


def test_the_openapi_description_has_the_header(client: TestClient) -> None:
    parameters = client.get("/openapi.json").json()["paths"]["/jobs"]["post"]["parameters"]
    (header,) = (each for each in parameters if each["name"] == "Idempotency-Key")
    assert (header["in"], header["name"], header["required"]) == ("header", "Idempotency-Key", False)
