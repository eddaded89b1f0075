"""Gates over HTTP: what is refused, and where the verdict is shown."""

import pytest
from starlette.testclient import TestClient

from api.main import create_app
from replaceme_core.settings import Settings
from tests.fixtures.api.requests import SMALLEST, fields
from tests.fixtures.evaluation.local_tasks import CHOICE, OF_A_DATA_SET
from tests.fixtures.jobs.ledger import Ledger

GATE = {"perplexity_ratio": {"max": 1.6}}
CRITERION = {"name": "perplexity_ratio", "value": 1.75, "min": None, "max": 1.6, "passed": False}


@pytest.mark.parametrize(
    ("changes", "field", "words"),
    [
        ({"gate": {}}, "gate", "give at least one of"),
        ({"gate": {"size_ratio": {"max": 0.5}}, "evaluation": {"enabled": False}}, "gate", "evaluation.enabled"),
        ({"gate": {"agreement": {"min": 0.9, "max": 0.1}}}, "gate.agreement.min", "no value is at least 0.9"),
        ({"gate": {"agreement": {"min": 1.1}}}, "gate.agreement.min", "expected a number from 0 to 1"),
        ({"ratio": {"max": 0.5}}, "gate", 'give gate, such as {"perplexity_ratio": {"max": 1.6}}'),
        ({"ratio": {"max": 1.5}, "gate": GATE}, "ratio.max", "greater than 0 and less than 1, got 1.5"),
        ({"ratio": {"max": 0.5}, "drop": [1], "gate": GATE}, "ratio", "both are given"),
        ({"gate": {"tasks": {"piqa": {"min_kept": 0.9}}}}, "gate", "name piqa in evaluation.tasks"),
    ],
)
def test_a_gate_that_means_nothing_is_refused(
    client: TestClient, changes: dict[str, object], field: str, words: str
) -> None:
    response = client.post("/jobs", json={**SMALLEST, **changes})
    assert fields(response).keys() == {field}
    assert words in response.json()["errors"][0]["message"]


def test_tasks_that_cannot_be_run_are_refused_when_they_are_asked_for(apart: Settings) -> None:
    """Before a job exists, and by a plan as well."""
    assert apart.tasks_directory is not None
    asked = {**SMALLEST, "evaluation": {"tasks": [CHOICE, OF_A_DATA_SET]}}
    with TestClient(create_app(apart)) as client:
        assert client.post("/jobs", json=asked).status_code == 202
        (apart.tasks_directory / "questions.jsonl").unlink()
        missing = f"the task {CHOICE} reads questions.jsonl, which is not in the directory of the tasks"
        assert fields(client.post("/jobs", json=asked)) == {"evaluation.tasks": CHOICE}
        plan = client.post("/plans", json=asked).json()
        assert [(one["field"], one["message"]) for one in plan["refusals"]] == [("evaluation.tasks", missing)]
        assert len(client.get("/jobs").json()["items"]) == 1
    with TestClient(create_app(apart.model_copy(update={"tasks_directory": None}))) as other:
        response = other.post("/jobs", json=asked)
        assert fields(response) == {"evaluation.tasks": CHOICE}
        assert "REPLACEME_TASKS_DIRECTORY" in response.json()["errors"][0]["message"]


def test_a_search_is_stored_repeated_and_retried_as_it_was_sent_and_shows_its_verdict(
    client: TestClient, ledger: Ledger
) -> None:
    body, key = {**SMALLEST, "ratio": {"max": 0.5}, "gate": GATE}, {"Idempotency-Key": "deepest"}
    job = client.post("/jobs", json=body, headers=key).json()
    assert (job["spec"]["ratio"], job["gate"]) == ({"max": 0.5}, None)
    assert job["spec"]["gate"]["perplexity_ratio"] == {"min": None, "max": 1.6}
    assert client.post("/jobs", json=body, headers=key).json()["id"] == job["id"]
    assert client.post("/jobs", json={**body, "ratio": {"max": 0.4}}, headers=key).status_code == 422
    trial = {"blocks": 1, "removed_blocks": [2], "passed": False, "criteria": [CRITERION]}
    trial |= {"measured": {"perplexity_ratio": 1.75}, "seconds": 3.5, "problem": None}
    report = {"gate": {"passed": False, "criteria": [CRITERION], "trials": [trial]}, "removed_blocks": [2]}
    here = f"/jobs/{job['id']}"
    before = client.get(here)
    ledger.fail(job["id"], code="gate_rejected", report=report)
    after = client.get(here, headers={"If-None-Match": before.headers["etag"]})
    assert after.status_code == 200
    assert after.json()["gate"] == client.get("/jobs").json()["items"][0]["gate"] == report["gate"]
    assert (after.json()["error"]["code"], after.json()["result"]) == ("gate_rejected", None)
    assert client.get(f"{here}/report").json() == report
    again = client.post(f"{here}/retry").json()
    assert (again["status"], again["gate"], again["spec"]["ratio"]) == ("queued", None, {"max": 0.5})
    assert client.get(f"/jobs/{again['id']}/report").status_code == 404
