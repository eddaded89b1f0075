"""`replaceme webhooks ...` against a server with canned responses."""

import json

import pytest

from tests.fixtures.cli.stub_service import JOB_ID, StubService, a_job, fits_eighty_columns, run_at

ID = "9a0e6d1c-0000-4000-8000-000000000002"
MESSAGE = f"evt_{JOB_ID}-3"
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
TO = f"https://hooks.example.com/{'x' * 100}"
AT = "2026-11-25T00:00:00Z"
WEBHOOK: dict[str, object] = {
    "id": ID,
    "url": TO,
    "events": ["succeeded", "cancel_requested"],
    "labels": {"team": "nlp"},
    "payload": "thin",
    "enabled": False,
    "disabled_by": "receiver",
    "created_at": AT,
}
FAILED: dict[str, object] = {
    "id": MESSAGE,
    "type": "job.succeeded",
    "job_id": JOB_ID,
    "seq": 3,
    "state": "failed",
    "created_at": AT,
    "tries": [{"number": 1, "at": AT, "status": 503, "error": "status", "seconds": 0.1}],
}
LOG, AGAIN = f"GET /webhooks/{ID}/deliveries", f"POST /webhooks/{ID}/deliveries/{MESSAGE}/redeliver"


@pytest.fixture
def webhooks(service: StubService) -> StubService:
    """A service that has a webhook, which failed once and then was disabled."""
    new = {**WEBHOOK, "secret": SECRET}
    service.answers |= {
        "POST /webhooks": [(201, new)],
        "GET /webhooks": [(200, {"items": [WEBHOOK], "next_cursor": "more"})],
        f"GET /webhooks/{ID}": [(200, WEBHOOK)],
        f"PATCH /webhooks/{ID}": [(200, WEBHOOK)],
        f"POST /webhooks/{ID}/rotate": [(200, new)],
        f"DELETE /webhooks/{ID}": [(204, b"")],
        LOG: [(200, {"items": [FAILED], "next_cursor": "c"}), (200, {"items": [FAILED], "next_cursor": None})],
        AGAIN: [(202, {**FAILED, "state": "pending"})],
    }
    return service


@pytest.mark.parametrize(
    ("command", "sent", "body", "words"),
    [
        (f"create {TO}", "POST /webhooks", {"url": TO}, (TO, "no, by receiver")),
        (
            f"create {TO} --event succeeded --event failed --label team=nlp --full",
            "POST /webhooks",
            {"url": TO, "events": ["succeeded", "failed"], "payload": "full", "labels": {"team": "nlp"}},
            (),
        ),
        (f"list --job {JOB_ID} --limit 1", f"GET /webhooks?job={JOB_ID}&limit=1", None, (ID, "no, by receiver")),
        (f"show {ID}", f"GET /webhooks/{ID}", None, ("team=nlp",)),
        (f"update {ID} --enable", f"PATCH /webhooks/{ID}", {"enabled": True}, ()),
        (f"update {ID} --disable --thin", f"PATCH /webhooks/{ID}", {"enabled": False, "payload": "thin"}, ()),
        (
            f"update {ID} --to https://a.example --label a=b",
            f"PATCH /webhooks/{ID}",
            {"url": "https://a.example", "labels": {"a": "b"}},
            (),
        ),
        (f"rotate {ID} --overlap 0", f"POST /webhooks/{ID}/rotate", {"overlap_seconds": 0.0}, ()),
        (f"delete {ID}", f"DELETE /webhooks/{ID}", None, ()),
        (f"deliveries {ID} --state failed", f"{LOG}?state=failed", None, ("503", "failed")),
        (f"redeliver {ID} {MESSAGE}", AGAIN, None, ("pending",)),
    ],
)
def test_what_each_command_sends_and_prints(
    webhooks: StubService, command: str, sent: str, body: object, words: tuple[str, ...]
) -> None:
    done = run_at(webhooks, "webhooks", *command.split())
    assert done.exit_code == 0, done.output
    assert webhooks.received == [(sent, body)]
    assert [word for word in words if word not in "".join(done.stdout.split()) and word not in done.stdout] == []
    fits_eighty_columns(done.stdout or " ")
    has_secret = command.startswith(("create", "rotate"))
    assert (SECRET in done.stderr, SECRET in done.stdout) == (has_secret, False), "shown once and apart"
    assert ("--cursor " in done.stderr) is command.startswith(("list", "deliveries"))
    if not command.startswith(("list", "deliveries", "redeliver")):
        shown = json.loads(run_at(webhooks, "webhooks", *command.split(), "--json").stdout)
        assert shown["id"] == ID
        assert shown.get("secret") == (SECRET if has_secret else None)


def test_an_overlap_without_an_end_is_bad_usage(webhooks: StubService) -> None:
    done = run_at(webhooks, "webhooks", "rotate", ID, "--overlap", "inf")
    assert (done.exit_code, webhooks.received) == (2, [])
    assert "expected a number, got inf" in done.stderr


def test_all_that_failed_are_sent_again(webhooks: StubService) -> None:
    assert run_at(webhooks, "webhooks", "redeliver", ID, "--failed").exit_code == 0
    assert [request for request, _ in webhooks.received].count(AGAIN) == 2, "of both pages"
    for arguments in ((), (MESSAGE, "--failed")):
        assert run_at(webhooks, "webhooks", "redeliver", ID, *arguments).exit_code == 2


def test_submit_with_a_webhook(service: StubService) -> None:
    service.answers["POST /jobs"] = [(202, a_job(webhook={**WEBHOOK, "secret": SECRET, "job_id": JOB_ID}))]
    job = ("submit", "--model", "org/name", "--ratio", "0.25", "--calibration", "builtin:general")
    done = run_at(service, *job, "--webhook", "https://a.example")
    assert done.exit_code == 0
    assert SECRET in done.stderr
    assert run_at(service, *job, "--webhook-event", "failed").exit_code == 2


@pytest.mark.parametrize("ratio", ["0.25", "0.25,0.5"])
def test_a_job_that_is_waited_for_shows_its_secret_with_json_too(service: StubService, ratio: str) -> None:
    """Once: without `--wait` it is on standard output."""
    new = a_job(webhook={**WEBHOOK, "secret": SECRET, "job_id": JOB_ID}, labels={"sweep": "a"})
    service.answers["POST /jobs"] = [(202, new if ratio == "0.25" else {"items": [new], "next_cursor": None})]
    service.answers[f"GET /jobs/{JOB_ID}"] = [(200, a_job(status="succeeded", labels={"sweep": "a"}))]
    asked = ("--model", "org/name", "--ratio", ratio, "--calibration", "builtin:general", "--webhook", TO, "--json")
    for option in ((), ("--wait",), ("--timeout", "9")):
        done = run_at(service, "submit", *asked, *option)
        assert done.exit_code == 0, done.output
        assert (SECRET in done.stdout, SECRET in done.stderr) == (not option, bool(option))
