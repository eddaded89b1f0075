"""The description at /openapi.json: its examples are right, its names are stable, its links lead somewhere."""

import json
import re
from collections.abc import Iterator
from typing import Any

import jsonschema_rs
import pytest
from starlette.testclient import TestClient
from typer.testing import CliRunner

from api.cli.main import app
from api.main import create_app
from benchmarks.harness.checkout import ROOT

METHODS = ("get", "post", "put", "patch", "delete")


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    found: dict[str, Any] = create_app().openapi()
    return found


def operations(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Name, such as "POST /jobs", and description of each operation."""
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            assert method in METHODS
            yield f"{method.upper()} {path}", operation


def resolved(document: dict[str, Any], value: dict[str, Any]) -> dict[str, Any]:
    while "$ref" in value:
        found: Any = document
        for name in value["$ref"].removeprefix("#/").split("/"):
            found = found[name]
        value = found
    return value


def matches(document: dict[str, Any], schema: dict[str, Any], example: object) -> None:
    whole = {**schema, "components": document["components"]}
    jsonschema_rs.Draft202012Validator(whole).validate(example)


def test_it_is_openapi_3_1_and_the_command_prints_it(document: dict[str, Any]) -> None:
    assert document["openapi"].startswith("3.1.")
    printed = CliRunner().invoke(app, ["openapi"])
    assert printed.exit_code == 0, printed.output
    assert json.loads(printed.stdout) == document


def test_ids_of_operations_are_names_of_their_own(document: dict[str, Any]) -> None:
    ids = [operation["operationId"] for _, operation in operations(document)]
    assert len(ids) == len(set(ids)) >= 36
    assert all(re.fullmatch("[a-z]+(_[a-z]+)*", one) for one in ids)
    assert {"submit_job", "get_job", "list_jobs", "cancel_job", "retry_job", "make_plan", "create_key"} <= set(ids)


def test_a_schema_is_titled_as_it_is_named(document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]
    assert {name: schema["title"] for name, schema in schemas.items()} == {name: name for name in schemas}


def test_bodies_paths_and_errors_have_examples_that_are_valid(document: dict[str, Any]) -> None:
    explained = (ROOT / "docs" / "reference" / "error-codes.md").read_text(encoding="utf-8")
    for name, operation in operations(document):
        if "requestBody" in operation:
            schema = dict(operation["requestBody"]["content"]["application/json"]["schema"])
            examples = schema.pop("examples")
            assert examples, name
            for example in examples:
                matches(document, schema, example)
        in_path = {one["name"]: one for one in operation.get("parameters", ()) if one["in"] == "path"}
        assert set(in_path) == set(re.findall(r"{(\w+)}", name))
        for one in in_path.values():
            matches(document, one["schema"], one["example"])
        errors = {status: one for status, one in operation["responses"].items() if int(status) >= 400}
        assert {"400", "421", "422"} <= set(errors), name
        assert {status for status in errors if status >= "500"} <= {"503"}, name
        assert ("413" in errors) == ("requestBody" in operation), name
        for status, one in errors.items():
            ((media_type, content),) = resolved(document, one)["content"].items()
            assert media_type == "application/problem+json"
            matches(document, content["schema"], content["example"])
            code = content["example"]["code"]
            assert content["example"]["status"] == int(status)
            assert content["example"]["type"] == f"urn:replaceme:problem:{code}"
            assert f"### `{code}`\n" in explained


def test_a_wrong_key_is_refused_as_described_where_none_is_needed(client: TestClient, document: dict[str, Any]) -> None:
    refused = client.get("/families", headers={"Authorization": "Bearer wrong"})
    described = document["paths"]["/families"]["get"]["responses"]
    assert refused.status_code == 401
    assert {"401", "429", "503"} <= described.keys()
    assert "403" not in described
    assert "401" not in document["paths"]["/health"]["get"]["responses"]


def test_links_lead_from_what_is_made_to_what_follows(document: dict[str, Any]) -> None:
    known = {operation["operationId"]: operation for _, operation in operations(document)}
    linked: dict[str, set[str]] = {}
    for identity, operation in known.items():
        for response in operation["responses"].values():
            for link in response.get("links", {}).values():
                target = known[link["operationId"]]
                in_path = {one["name"] for one in target["parameters"] if one["in"] == "path"}
                assert set(link["parameters"]) == in_path
                linked.setdefault(identity, set()).add(link["operationId"])
    assert linked["submit_job"] == linked["retry_job"]
    of_one_job = {one["operationId"] for name, one in operations(document) if "/jobs/{job_id}" in name}
    assert linked["submit_job"] == of_one_job
    assert {"get_webhook", "delete_webhook"} <= linked["create_webhook"]
    assert {"get_key", "revoke_key", "rotate_key"} <= linked["create_key"]


def test_what_submits_says_that_its_answer_may_be_held(document: dict[str, Any]) -> None:
    holding = {name for name, one in operations(document) if "Prefer" in str(one.get("parameters"))}
    assert holding == {"POST /jobs", "POST /jobs/{job_id}/retry"}


def test_every_property_is_described(document: dict[str, Any]) -> None:
    silent = [
        f"{name}.{field}"
        for name, schema in document["components"]["schemas"].items()
        for field, value in schema.get("properties", {}).items()
        if "description" not in value
    ]
    assert silent == []
