"""Webhooks over HTTP: their secrets, those of jobs and of retries, and the log of deliveries."""

import json
import logging

import pytest
from sqlalchemy import text
from starlette.testclient import TestClient

from replaceme_core.ledger.database import Database
from replaceme_core.settings import Settings
from tests.fixtures.api.requests import SMALLEST, assert_problem, fields

URL = "https://hooks.example.com/x"
NOBODY = "00000000-0000-4000-8000-000000000000"


def create(client: TestClient, **changes: object) -> dict[str, object]:
    response = client.post("/webhooks", json={"url": URL, **changes})
    assert response.status_code == 201, response.text
    found: dict[str, object] = response.json()
    assert response.headers["location"] == f"/webhooks/{found['id']}"
    assert response.headers["cache-control"] == "no-store"
    return found


def test_a_secret_is_shown_once(
    client: TestClient, settings: Settings, sqlite_database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    made = create(client, events=["succeeded", "job.failed", "succeeded"], labels={"team": "nlp"}, payload="full")
    secret = made.pop("secret")
    assert isinstance(secret, str)
    assert secret.startswith("whsec_")
    assert (made["events"], made["labels"], made["payload"]) == (["succeeded", "failed"], {"team": "nlp"}, "full")
    path = f"/webhooks/{made['id']}"
    assert client.get(path).json() == made
    assert client.get("/webhooks").json() == {"items": [made], "next_cursor": None}
    rotated = client.post(f"{path}/rotate")
    assert rotated.status_code == 200
    assert rotated.headers["cache-control"] == "no-store"
    new = rotated.json().pop("secret")
    assert new != secret
    assert rotated.json()["previous_secret_expires_at"] is not None
    assert client.post(f"{path}/rotate", json={"overlap_seconds": 0}).json()["previous_secret_expires_at"] is None
    with sqlite_database.session() as session:
        stored = str(session.execute(text("SELECT * FROM webhooks")).all())
    shown = client.get(path).text + client.get("/webhooks").text + client.get(f"{path}/deliveries").text
    for planted in (secret, new):
        assert planted.removeprefix("whsec_") not in stored + shown + caplog.text
    key = settings.resolved_data / "encryption-key"
    assert key.stat().st_mode & 0o777 == 0o600
    assert key.read_text() not in stored


def test_it_can_be_changed_and_deleted(client: TestClient) -> None:
    path = f"/webhooks/{create(client)['id']}"
    changed = client.patch(path, json={"url": f"{URL}/y", "events": ["stage"], "enabled": False}).json()
    assert (changed["url"], changed["events"], changed["enabled"]) == (f"{URL}/y", ["stage"], False)
    assert (changed["disabled_by"], changed["payload"]) == ("owner", "thin")
    assert client.patch(path, json={"enabled": True, "payload": "full"}).json()["disabled_at"] is None
    assert client.patch(path, json={}).json() == client.get(path).json()
    assert client.delete(path).status_code == 204
    assert_problem(client.get(path), status=404, code="not_found")
    assert_problem(client.delete(path), status=404, code="not_found")


@pytest.mark.parametrize(
    ("changes", "field", "code"),
    [
        ({"url": "http://hooks.example.com/"}, "url", "invalid_input"),
        ({"url": "https://localhost/"}, "url", "address_refused"),
        ({"url": "https://[::ffff:10.0.0.1]/"}, "url", "address_refused"),
        ({"url": "https://user:hunter2@hooks.example.com/"}, "url", "invalid_input"),
        ({"events": ["nonsense"]}, "events.0", "invalid_input"),
    ],
)
def test_what_is_not_right_is_named(client: TestClient, changes: dict[str, object], field: str, code: str) -> None:
    path = f"/webhooks/{create(client)['id']}"
    body = {"url": URL, **changes}
    for response in (client.post("/webhooks", json=body), client.patch(path, json=body)):
        assert fields(response, code=code).keys() == {field}
        assert "hunter2" not in response.text
    response = client.post("/jobs", json={**SMALLEST, "webhook": body})
    assert fields(response, code=code).keys() == {f"webhook.{field}"}
    assert client.get("/jobs").json()["items"] == []
    assert len(client.get("/webhooks").json()["items"]) == 1


def test_a_job_may_have_a_webhook(client: TestClient) -> None:
    body = {**SMALLEST, "webhook": {"url": URL, "events": ["cancelled"]}}
    submitted = client.post("/jobs", json=body, headers={"Idempotency-Key": "k"})
    assert submitted.status_code == 202
    job = submitted.json()
    webhook = job["webhook"]
    assert webhook["secret"].startswith("whsec_")
    assert webhook["job_id"] == job["id"]
    assert "webhook" not in job["spec"]
    assert submitted.headers["cache-control"] == "no-store"
    repeated = client.post("/jobs", json=body, headers={"Idempotency-Key": "k"})
    assert repeated.headers["cache-control"] == "private, no-cache"
    again = repeated.json()
    assert again["id"] == job["id"]
    assert again["webhook"] == {**webhook, "secret": None}
    other = {**SMALLEST, "webhook": {"url": f"{URL}/other"}}
    refused = client.post("/jobs", json=other, headers={"Idempotency-Key": "k"})
    assert_problem(refused, status=422, code="idempotency_key_reused")
    assert client.get("/webhooks").json()["items"] == []
    del webhook["secret"]
    assert client.get("/webhooks", params={"job": job["id"]}).json()["items"] == [webhook]
    assert "webhook" not in client.post("/jobs", json=SMALLEST).json()
    client.post(f"/jobs/{job['id']}/cancel")
    (delivery,) = client.get(f"/webhooks/{webhook['id']}/deliveries").json()["items"]
    assert (delivery["type"], delivery["state"], delivery["tries"]) == ("job.cancelled", "pending", [])
    whole = client.get(f"/webhooks/{webhook['id']}/deliveries/{delivery['id']}").json()
    assert json.loads(whole["body"])["data"]["job_id"] == job["id"]


def test_the_webhook_of_a_job_may_be_signed_by_a_standing_one(client: TestClient) -> None:
    standing = create(client)
    body = {**SMALLEST, "webhook": {"url": URL, "signed_by": standing["id"]}}
    webhook = client.post("/jobs", json=body).json()["webhook"]
    assert (webhook["signed_by"], webhook["secret"]) == (standing["id"], None)
    assert_problem(client.post(f"/webhooks/{webhook['id']}/rotate"), status=409, code="conflict")
    unknown = {**SMALLEST, "webhook": {"url": URL, "signed_by": NOBODY}}
    before = client.get("/jobs").json()
    of_job = {**SMALLEST, "webhook": {"url": URL, "signed_by": webhook["id"]}}
    for body in (unknown, of_job, {**of_job, "validate_only": True}):
        assert fields(client.post("/jobs", json=body)).keys() == {"webhook.signed_by"}
    assert client.get("/jobs").json() == before


def test_a_retry_has_the_webhook_of_its_job(client: TestClient, sqlite_database: Database) -> None:
    body = {**SMALLEST, "webhook": {"url": URL, "events": ["created", "cancelled"], "payload": "full"}}
    job = client.post("/jobs", json=body).json()
    earlier = job["webhook"]
    client.post(f"/webhooks/{earlier['id']}/rotate")
    client.post(f"/jobs/{job['id']}/cancel")
    key = {"idempotency-key": "again"}
    answer = client.post(f"/jobs/{job['id']}/retry", headers=key)
    again = answer.json()
    webhook = again["webhook"]
    assert (webhook["job_id"], webhook["secret"]) == (again["id"], None), "its receiver knows the secret"
    same = ("url", "events", "payload", "previous_secret_expires_at", "signed_by", "enabled")
    before = client.get(f"/webhooks/{earlier['id']}").json()
    assert {name: webhook[name] for name in same} == {name: before[name] for name in same}
    assert webhook["id"] != earlier["id"]
    assert before["job_id"] == job["id"]
    (delivery,) = client.get(f"/webhooks/{webhook['id']}/deliveries").json()["items"]
    assert (delivery["type"], delivery["job_id"]) == ("job.created", again["id"])
    assert client.post(f"/jobs/{job['id']}/retry", headers=key).json()["webhook"] == webhook
    assert len(client.get("/webhooks", params={"job": again["id"]}).json()["items"]) == 1
    with sqlite_database.session() as session:
        sealed = session.execute(text("SELECT secret, previous_secret FROM webhooks")).all()
    assert len(sealed) == 2
    assert sealed[0] == sealed[1], "the same secrets sign"


def test_a_retry_does_not_wake_a_webhook_that_is_disabled(client: TestClient) -> None:
    job = client.post("/jobs", json={**SMALLEST, "webhook": {"url": URL}}).json()
    client.patch(f"/webhooks/{job['webhook']['id']}", json={"enabled": False})
    client.post(f"/jobs/{job['id']}/cancel")
    again = client.post(f"/jobs/{job['id']}/retry").json()
    assert "webhook" not in again
    assert client.get("/webhooks", params={"job": again["id"]}).json()["items"] == []


def test_validate_only_looks_at_the_webhook_as_a_submission_does(client: TestClient) -> None:
    body = {**SMALLEST, "webhook": {"url": "http://a.example"}}
    refused = [client.post("/jobs", json={**body, "validate_only": only}) for only in (True, False)]
    assert fields(refused[0]).keys() == {"webhook.url"}
    assert refused[0].json() == refused[1].json()
    unknown = {**SMALLEST, "webhook": {"url": URL, "signed_by": NOBODY}}
    assert fields(client.post("/jobs", json={**unknown, "validate_only": True})).keys() == {"webhook.signed_by"}
    fine = {**SMALLEST, "webhook": {"url": URL}, "validate_only": True}
    assert client.post("/jobs", json=fine).status_code == 200
    assert client.get("/jobs").json()["items"] == client.get("/webhooks").json()["items"] == []


def test_deliveries_are_listed_and_sent_again(client: TestClient) -> None:
    path = f"/webhooks/{create(client, events=['created'])['id']}"
    jobs = [client.post("/jobs", json=SMALLEST).json()["id"] for _ in range(3)]
    page = client.get(f"{path}/deliveries", params={"limit": 2}).json()
    rest = client.get(f"{path}/deliveries", params={"limit": 2, "cursor": page["next_cursor"]}).json()
    found = [*page["items"], *rest["items"]]
    assert [one["id"] for one in found] == [f"evt_{job}-1" for job in reversed(jobs)]
    assert client.get(f"{path}/deliveries", params={"state": "failed"}).json()["items"] == []
    client.patch(path, json={"enabled": False})
    again = f"{path}/deliveries/{found[0]['id']}/redeliver"
    assert_problem(client.post(again), status=409, code="conflict")
    client.patch(path, json={"enabled": True})
    response = client.post(again)
    assert (response.status_code, response.json()["state"]) == (202, "pending")
    assert_problem(client.post(f"{path}/deliveries/nonsense/redeliver"), status=404, code="not_found")
