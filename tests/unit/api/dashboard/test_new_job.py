"""The form of a new job: the plan while one types, errors beside their fields, submission."""

import re
from html import unescape

import pytest
from httpx2 import Response
from starlette.testclient import TestClient

from api.dashboard.new_job import DEFAULTS, FIELDS, FormErrors, read_request, to_body, to_values
from api.request_bodies import JobRequest
from replaceme_core.errors import HubUnreachable
from replaceme_core.report.figures import time_range
from replaceme_core.request.calibration import CalibrationSource
from replaceme_core.request.spec import CompressionSpec
from tests.fixtures.api.pages import text_of, token_of
from tests.fixtures.api.requests import SMALLEST
from tests.fixtures.evaluation.local_tasks import CHOICE, OF_A_DATA_SET

GOOD = {**DEFAULTS, "model": "org/name"}


def send(client: TestClient, path: str, **fields: str) -> Response:
    """Send the form with what is usual, but for `fields`."""
    page = client.get("/ui/new")
    key = re.search(r'name="key" value="([^"]+)"', page.text)
    assert key is not None
    form = {**GOOD, "csrf_token": token_of(page), "key": key[1], **fields}
    return client.post(path, data=form, follow_redirects=False)


def errors_of(page: Response) -> dict[str, str]:
    """The errors that are shown, by the field beside which they are."""
    found = re.findall(r'<p class="error" id="(\w+)-error"[^>]*>([^<]*)</p>', page.text)
    return {field: text for field, text in found if text}


def test_the_plan_is_that_of_the_api(client: TestClient) -> None:
    plan = client.post("/plans", json={**SMALLEST, "calibration": "builtin:general"}).json()["estimate"]
    for field in FIELDS:
        assert f'<label for="{field}">' in client.get("/ui/new").text
    page = send(client, "/ui/plan")
    text = text_of(page)
    expected = time_range(plan["time"]["low_seconds"], plan["time"]["high_seconds"])
    assert f"8 of 30 blocks go, in {expected}" in text
    for shown in (f"{plan['parameters']['before']:,}", plan["method"], plan["dtype"], "No worker that would take"):
        assert shown in text
    assert errors_of(page) == {}
    text = text_of(send(client, "/ui/plan", deepest="on", gate="size_ratio<=0.9"))
    for shown in ("At most 8 of 30 blocks go, in", "is 7.5: at most 8 go", "Trials at most 4,"):
        assert shown in text
    page = send(client, "/ui/plan", model="")
    assert ("Name a model" in text_of(page), errors_of(page)) == (True, {}), "an empty form is no mistake"
    assert client.get("/jobs").json()["items"] == []


WRONG: tuple[tuple[dict[str, str], str, str], ...] = (
    ({"ratio": "7"}, "ratio", "greater than 0 and less than 1"),
    ({"ratio": ""}, "ratio", "expected a number"),
    ({"drop": "12-x"}, "drop", "expected a whole number"),
    ({"drop": "99"}, "drop", "the model has blocks 0 to 29"),
    ({"model": '"><script>'}, "model", "org/name"),
    ({"revision": "nothing"}, "model", "nothing"),
    ({"calibration": "builtin:code, builtin:code"}, "calibration", "twice"),
    ({"samples": "many"}, "samples", "expected a whole number"),
    ({"max_length": "1"}, "max_length", "from 8 to 131072"),
    ({"calibration": "org/a, org/b", "self_generated": "0.5"}, "self_generated", "belongs to one of the sources"),
    ({"general": "0.5"}, "general", "dataset is this text already"),
    ({"repeated": "2"}, "repeated", "from 0 to 1"),
    ({"method": "magic"}, "method", "expected one of"),
    ({"priority": "10"}, "priority", "from 0 to 9"),
    ({"labels": "run=1, team"}, "labels", "expected NAME=VALUE, got &#39;team&#39;"),
    ({"labels": "run=1, run=2"}, "labels", "1, 2"),
    ({"device": "CPU!"}, "device", "expected"),
    ({"credential": "none"}, "credential", "none"),
    ({"webhook": "https://127.0.0.1/x"}, "webhook", "webhooks go to public addresses only"),
    ({"gate": "perplexity_ratio"}, "gate", "expected a criterion such as"),
    ({"gate": "perplexity_ratio<=1.6", "evaluate": ""}, "gate", "a gate judges what the evaluation measures"),
    ({"deepest": "on"}, "gate", "there is no gate"),
    ({"deepest": "on", "gate": "size_ratio<=0.9", "ratio": "2"}, "ratio", "greater than 0 and less than 1"),
    ({"tasks": "piqa", "evaluate": ""}, "tasks", "turn enabled on"),
    ({"output": "elsewhere/x"}, "output", "under local only"),
    ({"heal_tokens": "many"}, "heal_tokens", "expected a whole number"),
    ({"heal_learning_rate": "0.001"}, "heal_tokens", "required: a whole number"),
    ({"heal_tokens": "9", "heal_dataset": "org/none"}, "heal_dataset", "org/none"),
)


def test_an_error_is_beside_its_field(client: TestClient) -> None:
    for fields, field, message in WRONG:
        for path, status in (("/ui/plan", 200), ("/ui/new", 422)):
            page = send(client, path, **fields)
            assert page.status_code == status, text_of(page)
            found = errors_of(page)
            assert list(found) == [field], found
            assert message in found[field]
        assert 'aria-invalid="true"' in page.text
        assert "Nothing was submitted" in page.text
        assert f'value="{fields.get("ratio", "0.25")}"' in page.text
        assert "><script>" not in page.text
    assert client.get("/jobs").json()["items"] == []


GATE = f"perplexity_ratio<=1.6, tasks.{CHOICE} >= .9"
SENT: tuple[tuple[dict[str, str], dict[str, object]], ...] = (
    (
        {
            "drop": "3, 12-14",
            "calibration": "builtin:code, builtin:prose",
            "samples": "32",
            "max_length": "64",
            "method": "drop",
            "output": "local/small",
            "device": "cpu",
            "priority": "7",
            "labels": "team=search, run=1",
            "max_runtime_seconds": "600",
            "evaluate": "",
            "heal_tokens": "2000",
            "heal_dataset": "builtin:prose",
            "heal_learning_rate": ".001",
            "heal_time_budget": "60",
        },
        {
            "drop": [3, 12, 13, 14],
            "calibration": {
                "sources": [{"dataset": "builtin:code"}, {"dataset": "builtin:prose"}],
                "samples": 32,
                "max_length": 64,
            },
            "method": "drop",
            "output": "local/small",
            "compute": {"device": "cpu"},
            "priority": 7,
            "labels": {"team": "search", "run": "1"},
            "max_runtime_seconds": 600,
            "evaluation": {"enabled": False},
            "heal": {
                "tokens": 2000,
                "dataset": "builtin:prose",
                "learning_rate": 0.001,
                "time_budget_seconds": 60,
            },
        },
    ),
    (
        {
            "ratio": "0.5",
            "deepest": "on",
            "calibration": "builtin:code",
            "self_generated": ".25",
            "general": "0.5",
            "repeated": "0",
            "tasks": f"{CHOICE}, {OF_A_DATA_SET}",
            "gate": GATE,
            "output": "local/deepest",
        },
        {
            "output": "local/deepest",
            "ratio": {"max": 0.5},
            "calibration": {"dataset": "builtin:code", "self_generated": 0.25, "general": 0.5, "repeated": 0},
            "evaluation": {"tasks": [CHOICE, OF_A_DATA_SET]},
            "gate": {"perplexity_ratio": {"max": 1.6}, "tasks": {CHOICE: {"min_kept": 0.9}}},
        },
    ),
)


def test_submitting_makes_the_job_that_the_api_would_make(client: TestClient) -> None:
    for fields, body in SENT:
        response = send(client, "/ui/new", **fields)
        assert response.status_code == 303, text_of(response)
        made = client.get(response.headers["location"].removeprefix("/ui")).json()
        assert made["spec"] == client.post("/jobs", json={"model": "org/name", **body}).json()["spec"]
    page = text_of(client.get(response.headers["location"]))
    assert f"perplexity_ratio at most 1.6; tasks.{CHOICE} at least 0.9" in page


def test_a_form_that_is_sent_twice_makes_one_job(client: TestClient) -> None:
    first = send(client, "/ui/new", key="one-and-the-same")
    second = send(client, "/ui/new", key="one-and-the-same")
    assert first.headers["location"] == second.headers["location"]
    assert len(client.get("/jobs").json()["items"]) == 1
    other = send(client, "/ui/new", key="one-and-the-same", ratio="0.5")
    assert other.status_code == 303, "who goes back and changes something asks for another job"
    assert len(client.get("/jobs").json()["items"]) == 2
    assert send(client, "/ui/new", key="é" * 5000).status_code == 303


def test_a_hub_that_does_not_answer_is_explained(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise HubUnreachable("the Hub does not answer")

    monkeypatch.setattr("replaceme_core.plan.plan.find_model", fail)
    monkeypatch.setattr("api.routes.submission.find_model", fail)
    page = send(client, "/ui/plan")
    assert (page.status_code, "Try again later: the Hub does not answer" in text_of(page)) == (200, True)
    page = send(client, "/ui/new")
    assert (page.status_code, "Try again later: the Hub does not answer" in text_of(page)) == (503, True)


def test_any_text_in_any_field_is_a_request_or_an_explanation() -> None:
    for text in ("\x00", "é" * 5000, "1e999", "-1", "9" * 30, "1-99999", "=,=", "[]", "nan"):
        for field in FIELDS:
            errors = FormErrors()
            found = read_request(to_body({**GOOD, field: text}), errors)
            assert (found is None) == bool(errors)
            assert errors.by_field.keys() <= {field, "ratio", "gate", "heal_tokens"}


def test_no_more_blocks_are_written_out_than_can_be_named() -> None:
    for text, count in (("1-99999," * 1000, 1000), ("1-9999," * 1000, 9999 + 999)):
        blocks = to_body({**GOOD, "drop": text})["drop"]
        assert isinstance(blocks, list)
        assert len(blocks) == count


def test_a_form_that_is_filled_in_from_a_job_asks_for_the_same(client: TestClient) -> None:
    asked = {
        "model": "org/name",
        "ratio": {"max": 0.5},
        "method": "refit",
        "calibration": {"dataset": "builtin:general", "samples": 32, "self_generated": 0.5},
        "gate": {"perplexity_ratio": {"max": 1.6}, "size_ratio": {"min": 0.5, "max": 0.9}},
        "evaluation": {"enabled": True, "samples": 16},
        "labels": {"team": "a", "run": "1"},
        "priority": 7,
        "output": "local/mine",
    }
    job = client.post("/jobs", json=asked).json()
    spec = CompressionSpec.model_validate(client.get(f"/jobs/{job['id']}").json()["spec"])
    page = client.get("/ui/new", params={"job": job["id"]})
    for name, value in (
        ("ratio", "0.5"),
        ("gate", "perplexity_ratio&lt;=1.6"),
        ("labels", "team=a, run=1"),
        ("output", ""),
    ):
        found = re.search(rf'name="{name}"[^>]* value="([^"]*)"', page.text)
        assert found is not None and found[1].startswith(value), name
    assert '<option value="org/name">' in page.text, "a model that was used before"
    again = JobRequest.model_validate(to_body({**to_values(spec), "base": base_of(page)})).to_spec()
    assert again.fingerprint() == spec.fingerprint()
    assert client.get("/ui/new", params={"job": "0" * 8 + "-0000-0000-0000-" + "0" * 12}).status_code == 404


def test_the_device_of_a_job_is_offered(client: TestClient) -> None:
    asked = {**SMALLEST, "compute": {"device": "cpu:0"}}
    job = client.post("/jobs", json=asked).raise_for_status().json()
    text = client.get("/ui/new", params={"job": job["id"]}).text
    assert "<option selected>cpu:0</option>" in text
    assert text.count("<option>cpu</option>") == client.get("/ui/new").text.count("<option>cpu</option>") == 1


def base_of(page: Response) -> str:
    found = re.search(r'name="base" value="([^"]*)"', page.text)
    assert found is not None
    return unescape(found[1])


def test_what_the_form_does_not_show_of_a_job_stays_as_it_was() -> None:
    mix = [
        {"dataset": "org/data", "config": "raw", "share": 0.5},
        {"dataset": "builtin:prose"},
        {"self_generated": True},
    ]
    asked = {
        "model": "org/name",
        "ratio": 0.25,
        "method": {"name": "least_squares", "ridge": 0.1},
        "calibration": {"sources": mix, "seed": 3},
        "heal": {"tokens": 10**6, "dataset": {"dataset": "org/data", "split": "test"}, "weights": "some"},
        "evaluation": {"tasks": [], "samples": 8},
        "compute": {"threads": 2},
        "output": "local/mine",
    }
    spec = JobRequest.model_validate(asked).to_spec()
    form = {**to_values(spec), "base": spec.model_dump_json(exclude_defaults=True)}

    def asks(**changes: str) -> CompressionSpec:
        return JobRequest.model_validate(to_body({**form, **changes})).to_spec()

    assert asks().fingerprint() == spec.fingerprint()
    assert asks(ratio="0.5") == spec.model_copy(update={"ratio": 0.5})
    assert asks(ratio="", drop="3-5") == spec.model_copy(update={"ratio": None, "drop": (3, 4, 5)})
    other = asks(calibration="builtin:code", method="refit", heal_tokens="")
    assert (other.calibration.dataset, other.calibration.sources, other.calibration.seed) == ("builtin:code", None, 3)
    assert (other.method.ridge, other.heal, other.compute.threads) == (None, None, 2)
    assert asks(calibration="org/data, builtin:code").calibration.sources == tuple(
        CalibrationSource(dataset=name) for name in ("org/data", "builtin:code")
    )
    assert to_body({**form, "base": "{"})["ratio"] == 0.25, "not from a page of ours"
    spec = JobRequest.model_validate({**asked, "calibration": "file:one, two.txt"}).to_spec()
    form = {**to_values(spec), "base": spec.model_dump_json(exclude_defaults=True)}
    assert asks().fingerprint() == spec.fingerprint(), "a comma in a name makes no mix"


def test_a_fraction_that_is_not_of_whole_blocks_is_explained(client: TestClient) -> None:
    for ratio, said in (("0.25", "0.25 of 30 blocks is 7.5: 8 go, 0.267 of them."), ("0.2", "6 of 30 blocks go")):
        text = text_of(send(client, "/ui/plan", ratio=ratio))
        assert (said in text, " blocks is " in text) == (True, ratio == "0.25")
