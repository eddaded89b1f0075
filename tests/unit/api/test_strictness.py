"""Requests that are nearly right: what the description allows is taken, and what it does not is refused."""

import pytest
from starlette.testclient import TestClient

from tests.fixtures.api.requests import SMALLEST, assert_problem, fields

JOB = "00000000-0000-4000-8000-000000000000"


@pytest.mark.parametrize("value", ["0", "0.5", "2026-11-27", "2026-11-27T03:33:56"])
def test_a_time_is_written_out(client: TestClient, value: str) -> None:
    for name in ("created_before", "created_after"):
        assert fields(client.get("/jobs", params={name: value})) == {name: value}
        for sent in (value, 0, 0.5):
            assert fields(client.post("/jobs/cancel", json={name: sent, "status": ["queued"]})).keys() == {name}
    good = client.get("/jobs", params={"created_before": "2026-11-27T03:33:56+01:00"})
    assert good.status_code == 200
    assert client.post("/jobs/cancel", json={"created_before": "2026-11-27T03:33:56.5Z"}).status_code == 200


def test_jobs_are_cancelled_by_status(client: TestClient) -> None:
    job_id = client.post("/jobs", json=SMALLEST).json()["id"]
    assert client.post("/jobs/cancel", json={"status": ["running"]}).json()["items"] == []
    cancelled = client.post("/jobs/cancel", json={"status": ["queued"]}).json()["items"]
    assert cancelled == [{"id": job_id, "status": "cancelled"}]
    assert fields(client.post("/jobs/cancel", json={"status": ["lost"]})) == {"status.0": "lost"}


@pytest.mark.parametrize("path", ["/events", "/jobs/{}/events"])
def test_an_id_to_resume_behind_is_a_number_also_where_nothing_is_resumed(client: TestClient, path: str) -> None:
    job_id = client.post("/jobs", json=SMALLEST).json()["id"]
    for value, status in (("a", 422), ("1" * 19, 422), ("3", 200), ("", 200)):
        assert client.get(path.format(job_id), headers={"last-event-id": value}).status_code == status


@pytest.mark.parametrize("method", ["GET", "DELETE", "PUT", "PATCH", "OPTIONS", "TRACE"])
def test_cancel_is_no_id_of_a_job(client: TestClient, method: str) -> None:
    refused = client.request(method, "/jobs/cancel")
    assert_problem(refused, status=405, code="method_not_allowed")
    assert refused.headers["allow"] == "POST"


def test_whole_numbers_may_have_a_point(client: TestClient) -> None:
    body = (
        b'{"model": "org/name", "ratio": 0.25, "calibration": "builtin:general", '
        b'"priority": 7.0, "max_queue_seconds": 3e1}'
    )
    made = client.post("/jobs", content=body, headers={"content-type": "application/json"})
    assert made.status_code == 202, made.text
    assert made.json()["spec"]["priority"] == 7
    assert made.json()["spec"]["max_queue_seconds"] == 30.0
    refused = client.post("/jobs", content=body.replace(b"7.0", b"7.5"), headers={"content-type": "application/json"})
    assert fields(refused) == {"priority": 7.5}


def test_lengths_of_lists_are_described(client: TestClient) -> None:
    schemas = client.get("/openapi.json").json()["components"]["schemas"]
    events = schemas["NewWebhookRequest"]["properties"]["events"]
    assert (events["minItems"], events["maxItems"]) == (1, 32)
    scopes = schemas["KeyRequest"]["properties"]["scopes"]
    assert (scopes["minItems"], scopes["maxItems"]) == (1, 4)
    assert schemas["JobRequest"]["properties"]["labels"]["additionalProperties"] is False
    drop, _ = schemas["JobRequest"]["properties"]["drop"]["anyOf"]
    assert (drop["minItems"], drop["uniqueItems"]) == (1, True)


def test_a_body_that_may_be_left_out_may_not_be_null(client: TestClient) -> None:
    described = client.get("/openapi.json").json()["paths"]["/webhooks/{webhook_id}/rotate"]["post"]["requestBody"]
    assert not described.get("required")
    assert "anyOf" not in described["content"]["application/json"]["schema"]
    assert_problem(client.post(f"/webhooks/{JOB}/rotate"), status=404, code="not_found")


def test_limits_are_numbers_that_every_client_can_read(client: TestClient) -> None:
    assert fields(client.post("/keys", json={"name": "k", "limits": {"tokens": 2**53}})) == {"limits.tokens": 2**53}
