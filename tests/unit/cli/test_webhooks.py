"""`replaceme webhooks ...` against a server with canned responses."""

import json

import pytest

from tests.fixtures.cli.stub_service import JOB_ID, StubService, a_job, a_problem, run_at

ID = "9a0e6d1c-0000-4000-8000-000000000002"
MESSAGE = f"evt_{JOB_ID}-3"
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


def a_webhook(**fields: object) -> dict[str, object]:
    return {
        "id": ID,
        "url": "https://hooks.example.com/x",
        "events": ["succeeded", "failed"],
        "labels": {"team": "nlp"},
        "payload": "thin",
        "enabled": True,
        "disabled_by": None,
        "disabled_at": None,
        "job_id": None,
        "signed_by": None,
        "previous_secret_expires_at": None,
        "created_at": "2026-11-25T00:00:00Z",
        "links": {},
        **fields,
    }


def a_delivery(**fields: object) -> dict[str, object]:
    one = {"number": 1, "at": "2026-11-25T00:00:00Z", "status": 503, "error": "status", "seconds": 0.1}
    return {
        "id": MESSAGE,
        "type": "job.succeeded",
        "job_id": JOB_ID,
        "seq": 3,
        "state": "failed",
        "created_at": "2026-11-25T00:00:00Z",
        "next_try_at": None,
        "finished_at": "2026-11-28T00:00:00Z",
        "tries": [one],
        **fields,
    }


def test_create_prints_the_secret_once_and_apart(service: StubService) -> None:
    service.answers["POST /webhooks"] = [(201, a_webhook(secret=SECRET))]
    options = ("--event", "succeeded", "--event", "failed", "--label", "team=nlp", "--full")
    done = run_at(service, "webhooks", "create", "https://hooks.example.com/x", *options)
    assert done.exit_code == 0
    assert SECRET in done.stderr
    assert SECRET not in done.stdout
    assert "https://hooks.example.com/x" in done.stdout
    sent = {"url": "https://hooks.example.com/x", "events": ["succeeded", "failed"], "payload": "full"}
    assert service.received == [("POST /webhooks", {**sent, "labels": {"team": "nlp"}})]
    done = run_at(service, "webhooks", "create", "https://hooks.example.com/x", "--json")
    assert json.loads(done.stdout)["secret"] == SECRET
    assert service.received[-1][1] == {"url": "https://hooks.example.com/x"}


def test_list_and_show(service: StubService) -> None:
    disabled = a_webhook(enabled=False, disabled_by="receiver", disabled_at="2026-11-25T00:00:00Z")
    service.answers["GET /webhooks"] = [(200, {"items": [disabled], "next_cursor": "more"})]
    service.answers[f"GET /webhooks/{ID}"] = [(200, disabled)]
    listed = run_at(service, "webhooks", "list", "--job", JOB_ID, "--limit", "1")
    assert ID in listed.stdout
    assert "no, by receiver" in listed.stdout
    assert "--cursor more" in listed.stderr
    assert service.received[0][0] == f"GET /webhooks?job={JOB_ID}&limit=1"
    assert "team=nlp" in run_at(service, "webhooks", "show", ID).stdout


@pytest.mark.parametrize(
    ("arguments", "body"),
    [
        (("update", ID, "--enable"), {"enabled": True}),
        (("update", ID, "--disable", "--thin"), {"enabled": False, "payload": "thin"}),
        (("update", ID, "--to", "https://a.example", "--label", "a=b"), {"url": "https://a.example"}),
    ],
)
def test_update_sends_what_is_given(service: StubService, arguments: tuple[str, ...], body: dict[str, object]) -> None:
    service.answers[f"PATCH /webhooks/{ID}"] = [(200, a_webhook())]
    assert run_at(service, "webhooks", *arguments).exit_code == 0
    labels = {"labels": {"a": "b"}} if "--label" in arguments else {}
    assert service.received == [(f"PATCH /webhooks/{ID}", body | labels)]


def test_rotate_and_delete(service: StubService) -> None:
    service.answers[f"POST /webhooks/{ID}/rotate"] = [(200, a_webhook(secret=SECRET))]
    service.answers[f"DELETE /webhooks/{ID}"] = [(204, b"")]
    assert SECRET in run_at(service, "webhooks", "rotate", ID, "--overlap", "0").stderr
    assert run_at(service, "webhooks", "delete", ID).exit_code == 0
    assert json.loads(run_at(service, "webhooks", "delete", ID, "--json").stdout) == {"id": ID, "deleted": True}
    assert service.received[0][1] == {"overlap_seconds": 0.0}


def test_the_log_and_sending_again(service: StubService) -> None:
    log, again = f"/webhooks/{ID}/deliveries", f"POST /webhooks/{ID}/deliveries/{MESSAGE}/redeliver"
    service.answers[f"GET {log}"] = [
        (200, {"items": [a_delivery()], "next_cursor": None}),
        (200, {"items": [a_delivery()], "next_cursor": "c"}),
        (200, {"items": [a_delivery()], "next_cursor": None}),
    ]
    service.answers[again] = [(202, a_delivery(state="pending"))]
    listed = run_at(service, "webhooks", "deliveries", ID, "--state", "failed")
    assert "503" in listed.stdout
    assert "".join(listed.stdout.split()).count(MESSAGE) == 1
    assert run_at(service, "webhooks", "redeliver", ID, "--failed").exit_code == 0
    assert [request for request, _ in service.received].count(again) == 2
    assert "pending" in run_at(service, "webhooks", "redeliver", ID, MESSAGE).stdout
    for arguments in ((), (MESSAGE, "--failed")):
        assert run_at(service, "webhooks", "redeliver", ID, *arguments).exit_code == 2


def test_a_refusal_is_printed_with_its_exit_code(service: StubService) -> None:
    errors = [{"field": "url", "value": None, "message": "private"}]
    service.answers["POST /webhooks"] = [(422, a_problem(422, errors=errors))]
    done = run_at(service, "webhooks", "create", "https://10.0.0.1/")
    assert done.exit_code == 2
    assert "url: private" in done.stderr


def test_submit_with_a_webhook(service: StubService) -> None:
    service.answers["POST /jobs"] = [(202, a_job(webhook=a_webhook(secret=SECRET, job_id=JOB_ID)))]
    job = ("submit", "--model", "org/name", "--ratio", "0.25", "--calibration", "builtin:general")
    done = run_at(
        service, *job, "--webhook", "https://a.example", "--webhook-event", "failed", "--webhook-signed-by", ID
    )
    assert done.exit_code == 0
    assert SECRET in done.stderr
    body = service.received[0][1]
    assert isinstance(body, dict)
    assert body["webhook"] == {"url": "https://a.example", "events": ["failed"], "signed_by": ID}
    assert run_at(service, *job, "--webhook-event", "failed").exit_code == 2
