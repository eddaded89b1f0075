"""Errors are problems, and what is not clear is an error."""

import json
import math
from collections.abc import Iterator

import pytest
from httpx2 import Response
from sqlalchemy.orm import Session
from starlette.testclient import TestClient

from api.http.problems import HTTP_ERRORS, http_error_of
from api.main import create_app
from api.request_bodies import MOST_BYTES
from replaceme_core import errors as core
from replaceme_core.settings import Settings
from tests.fixtures.api.requests import SMALLEST, assert_problem, fields

JSON = {"content-type": "application/json"}


def all_errors(kind: type[core.ReplaceMeError] = core.ReplaceMeError) -> Iterator[type[core.ReplaceMeError]]:
    yield kind
    for sub in kind.__subclasses__():
        yield from all_errors(sub)


def test_every_core_error_has_a_status(settings: Settings) -> None:
    app = create_app(settings)
    raised: list[Exception] = []

    @app.get("/raise")
    def fail() -> None:
        raise raised[-1]

    def raising(error: Exception) -> Response:
        raised.append(error)
        return client.get("/raise")

    assert core.ReplaceMeError in HTTP_ERRORS
    with TestClient(app, raise_server_exceptions=False) as client:
        for kind in all_errors():
            if kind.__module__.startswith("api.cli"):
                continue  # the command line's own never reach a response
            expected = http_error_of(kind("a reason"))
            code = kind.code if expected.status != 500 else "internal_error"
            response = raising(kind("a reason"))
            body = assert_problem(response, status=expected.status, code=code)
            assert ("a reason" in str(body["detail"])) == (expected.status != 500)
            assert ("retry-after" in response.headers) == issubclass(kind, core.Unavailable | core.TooManyRequests)
        unexpected = raising(RuntimeError("secret"))
        assert_problem(unexpected, status=500, code="internal_error")
        assert "secret" not in unexpected.text
        limited = raising(core.RateLimited("the Hub limits how often it is asked", retry_after=271.5))
        assert_problem(limited, status=503, code="rate_limited")
        assert limited.headers["Retry-After"] == "272"


def test_a_commit_that_fails_is_not_a_202(
    client: TestClient, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def commit(self: Session) -> None:
        raise core.DatabaseUnreachable("gone")

    monkeypatch.setattr(Session, "commit", commit)
    assert_problem(client.post("/jobs", json=SMALLEST), status=503, code="database_unreachable")
    monkeypatch.undo()
    assert client.get("/jobs").json()["items"] == []
    assert not list(settings.broker_directory.glob("messages/*.msg"))


def test_the_frameworks_own_errors_are_problems(client: TestClient) -> None:
    for method, path in (("POST", "/jobs/"), ("GET", "/static-offline-docs/../../../etc/passwd"), ("GET", "/%00")):
        assert_problem(client.request(method, path), status=404, code="not_found")
    for method, path, allowed in (
        *(("DELETE", "/jobs", "GET, HEAD, POST"), ("BREW", "/jobs", "GET, HEAD, POST")),
        *((method, "/jobs/cancel", "POST") for method in ("GET", "DELETE", "PUT")),  # `cancel` is no id of a job
        ("POST", "/static-offline-docs/swagger-ui.css", "GET, HEAD"),
    ):
        response = client.request(method, path)
        assert_problem(response, status=405, code="method_not_allowed")
        assert response.headers["allow"] == allowed


def test_content_types(client: TestClient) -> None:
    for kind, status in (
        *((None, 415), ("text/plain", 415), ("application/x-www-form-urlencoded", 415), ("é", 415)),
        *(("application/json", 202), ("Application/JSON; charset=utf-8", 202), ("application/x+json", 202)),
    ):
        headers = {} if kind is None else {"content-type": kind.encode()}
        response = client.post("/jobs", content=json.dumps(SMALLEST), headers=headers)
        assert response.status_code == status, kind
        if status == 415:
            assert_problem(response, status=415, code="unsupported_media_type")
    response = client.post("/jobs", content=b"\x1f\x8b", headers={**JSON, "content-encoding": "gzip"})
    assert_problem(response, status=415, code="unsupported_media_type")


def test_large_bodies_are_refused_at_every_path(client: TestClient) -> None:
    for path in ("/jobs", "/families", "/none"):
        response = client.post(path, content=b" " * (MOST_BYTES + 1), headers=JSON)
        assert_problem(response, status=413, code="content_too_large")
    parts = (b" " * 1024 for _ in range(MOST_BYTES // 1024 + 1))
    assert_problem(client.post("/jobs", content=parts, headers=JSON), status=413, code="content_too_large")


def test_bodies_that_are_not_one_json_object(client: TestClient) -> None:
    for body in (
        *(b"", b"{}x", b"[]", b"null", b"\xff", "{}".encode("utf-16"), b"[" * 60_000, b"NaN"),
        *(b'{"ratio": ' + b"9" * 5000 + b"}", b'{"ratio": 0.5, "ratio": 0.25}', b'{"\\ud800": 1}'),
    ):
        response = client.post("/jobs", content=body, headers=JSON)
        assert fields(response), body
        assert "sys." not in response.text


def test_errors_are_bounded_in_size(client: TestClient) -> None:
    for changes in (
        *({"model": "x" * 60_000}, {"x" * 60_000: 1}, {f"x{i}": i for i in range(4000)}),
        *({"ratio": None, "drop": ["x"] * 9000}, {"ratio": 10**4000}),
    ):
        fields(client.post("/jobs", content=json.dumps({**SMALLEST, **changes}), headers=JSON))


@pytest.mark.parametrize(
    ("body", "found"),
    [
        ({"ratio": math.nan}, {"ratio": "NaN"}),
        ({"ratio": True}, {"ratio": True}),
        ({"ratio": 1.5}, {"ratio": 1.5}),
        ({"drop": [1]}, {"ratio": 0.25}),
        ({"ratio": None, "drop": [1, "2"]}, {"drop.1": "2"}),
        ({"calibration": {"sources": ["builtin:code", "data"]}}, {"calibration.sources.1": "data"}),
        ({"calibration": [{"self_generated": True, "share": 2}]}, {"calibration.sources.0.share": 2}),
        ({"model": "x"}, {"model": "x"}),
        ({"model": {"repo_id": "x"}}, {"model.repo_id": "x"}),
        ({"foo": {"bar": [math.nan]}}, {"foo": {"bar": ["NaN"]}}),
        ({"calibration": {"dataset": "a/b", "seed": math.nan, "split": "\ud800"}}, None),
        ({"labels": {"a b": "c"}}, {"labels.a b": "a b"}),
        ({"model": {"repo_id": "a/b", "[key]": 1}}, {"model.[key]": 1}),
    ],
)
def test_fields_and_values_are_named_as_the_client_wrote_them(
    client: TestClient, body: dict[str, object], found: dict[str, object] | None
) -> None:
    response = client.post("/jobs", content=json.dumps({**SMALLEST, **body}), headers=JSON)
    assert fields(response) == (found or {"calibration.seed": "NaN", "calibration.split": "\\ud800"})


def test_a_message_names_what_is_expected(client: TestClient) -> None:
    method = {"name": "cosine", "structure": "round", "loss": 5}
    errors = client.post("/jobs", json={**SMALLEST, "method": method}).json()["errors"]
    assert {error["field"]: error["message"] for error in errors} == {
        "method.structure": "expected one of full, diagonal, got 'round'",
        "method.loss": "expected one of exact, light, got 5",
    }
    body = json.dumps({"model": "a/b", "ratio": "0.25", "colour": "red", "method": 5, "labels": []})
    errors = client.post("/jobs", content=body, headers=JSON).json()["errors"]
    assert {error["field"]: error["message"] for error in errors} == {
        "ratio": 'expected a number greater than 0 and less than 1, got "0.25"',
        "method": "expected a string or an object, got 5",
        "labels": "expected an object of up to 32 names, got []",
        "calibration": "required: a string or an object or a list, each a string or an object",
        "colour": "unknown field; the known ones are model, ratio, drop, calibration, method, heal, evaluation, "
        "gate, output, compute, labels, priority, max_queue_seconds, max_runtime_seconds, credential, webhook, "
        "validate_only",
    }


@pytest.mark.parametrize(
    ("body", "field", "limits"),
    [
        (
            {"evaluation": {"tasks": [f"task{number}" for number in range(65)]}},
            "evaluation.tasks",
            "a list of up to 64,",
        ),
        ({"labels": {f"name{number}": "a" for number in range(33)}}, "labels", "an object of up to 32 names,"),
        ({"gate": {"tasks": {}}}, "gate.tasks", "an object of 1 to 64 names,"),
    ],
)
def test_a_message_about_a_number_of_items_names_the_limits(
    client: TestClient, body: dict[str, object], field: str, limits: str
) -> None:
    (error,) = client.post("/jobs", json={**SMALLEST, **body}).json()["errors"]
    assert error["field"] == field
    assert error["message"].startswith(f"expected {limits}")


def test_the_log_has_no_secrets(client: TestClient, capsys: pytest.CaptureFixture[str]) -> None:
    client.get("/jobs?cursor=hf_secret", headers={"authorization": "Bearer hf_secret"})
    client.post("/jobs", json={**SMALLEST, "foo": "hf_secret"})
    captured = capsys.readouterr()
    assert "hf_secret" not in captured.err + captured.out
    assert '"path": "/jobs"' in captured.err


def test_a_time_is_written_out(client: TestClient) -> None:
    outside = ("9999-12-31T23:59:59-23:59", "0001-01-01T00:00:00+00:01")  # of the years that a time in UTC can have
    for value in ("0.5", "2026-11-27", "2026-11-27T03:33:56", *outside):
        for name in ("created_before", "created_after"):
            assert fields(client.get("/jobs", params={name: value})) == {name: value}
            for sent in (value, 0):
                assert fields(client.post("/jobs/cancel", json={name: sent, "status": ["queued"]})).keys() == {name}
    good = client.get("/jobs", params={"created_before": "2026-11-27T03:33:56+01:00"})
    assert good.status_code == 200
    assert client.post("/jobs/cancel", json={"created_before": "2026-11-27T03:33:56.5Z"}).status_code == 200


def test_whole_numbers_may_have_a_point(client: TestClient) -> None:
    made = client.post("/jobs", json={**SMALLEST, "priority": 7.0, "max_queue_seconds": 30.0})
    assert (made.json()["spec"]["priority"], made.json()["spec"]["max_queue_seconds"]) == (7, 30)
    assert fields(client.post("/jobs", json={**SMALLEST, "priority": 7.5})) == {"priority": 7.5}
