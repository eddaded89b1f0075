"""Credentials: tokens for the Hub by reference. No answer has a token, and none is readable in the database."""

import logging
from pathlib import Path

import pytest
from pydantic import SecretStr
from sqlalchemy import update
from starlette.testclient import TestClient

from api.main import create_app
from replaceme_core.errors import AccessDenied
from replaceme_core.ledger.database import Database
from replaceme_core.ledger.keys import Owners
from replaceme_core.ledger.tables import CredentialRow
from replaceme_core.settings import Settings
from tests.fixtures.api.keys import hold_key
from tests.fixtures.api.requests import SMALLEST, assert_problem, fields

TOKEN = "hf_plantedplantedplanted"
ALL = ["jobs:read", "jobs:write"]


def test_a_token_is_stored_and_never_shown(
    client: TestClient, settings: Settings, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    answers = [
        client.put("/credentials/mine", json={"token": "hf_other"}),
        client.put("/credentials/mine", json={"token": TOKEN}),
        client.get("/credentials"),
        client.post("/jobs", json={**SMALLEST, "credential": "mine"}),
        client.get("/jobs"),
    ]
    assert [answer.status_code for answer in answers] == [200, 200, 200, 202, 200]
    assert [one["name"] for one in answers[2].json()["items"]] == ["mine"]
    assert answers[4].json()["items"][0]["spec"]["credential"] == "mine"
    assert all(TOKEN not in answer.text for answer in answers)
    database = Database(settings.resolved_database_url)
    with database.session(read_only=True) as session:
        assert Owners(session).token("anonymous", "mine", box=settings.secrets_box()) == TOKEN
    database.close()
    stored = Path(settings.resolved_database_url.removeprefix("sqlite:///"))
    files = [path for path in stored.parent.rglob("*") if path.is_file()]
    assert stored in files
    assert [path for path in files if TOKEN.encode() in path.read_bytes()] == []
    captured = capfd.readouterr()
    assert TOKEN not in captured.out + captured.err + caplog.text
    assert client.delete("/credentials/mine").status_code == 204
    assert_problem(client.delete("/credentials/mine"), status=404, code="credential_not_found")
    assert fields(client.post("/jobs", json={**SMALLEST, "credential": "mine"})) == {"credential": "mine"}


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (f'{{"token": "{TOKEN}', 422),
        (f'["{TOKEN}"]', 422),
        (f'{{"token": ["{TOKEN}"]}}', 422),
        (f'{{"Token": "{TOKEN}"}}', 422),
        (f'{{"token": "{TOKEN}", "token": "{TOKEN}"}}', 422),
        (f'{{"token": "{TOKEN * 30}"}}', 422),
        (f'{{"token": {{"{TOKEN}": 1}}}}', 422),
    ],
)
def test_no_error_repeats_a_token(client: TestClient, content: str, status: int) -> None:
    answer = client.put("/credentials/mine", content=content, headers={"content-type": "application/json"})
    assert answer.status_code == status
    assert TOKEN not in answer.text
    assert client.get("/credentials").json()["items"] == []


def test_credentials_belong_to_their_owner(client: TestClient, settings: Settings) -> None:
    a, b = (hold_key(client, settings, owner=owner, scopes=ALL) for owner in ("a", "b"))
    assert a.put("/credentials/mine", json={"token": TOKEN}).status_code == 200
    assert b.get("/credentials").json()["items"] == []
    assert fields(b.post("/jobs", json={**SMALLEST, "credential": "mine"})) == {"credential": "mine"}
    assert_problem(b.delete("/credentials/mine"), status=404, code="credential_not_found")
    assert a.post("/jobs", json={**SMALLEST, "credential": "mine"}).status_code == 202


def test_a_service_without_a_key_keeps_nothing(settings: Settings) -> None:
    with TestClient(create_app(settings.model_copy(update={"encryption_key": SecretStr("")}))) as client:
        answer = client.put("/credentials/mine", json={"token": TOKEN})
        assert "REPLACEME_ENCRYPTION_KEY" in answer.text
        assert TOKEN not in answer.text
        assert fields(answer).keys() == {"token"}


def test_namespaces_are_those_of_the_owner(client: TestClient, settings: Settings) -> None:
    admin = hold_key(client, settings, owner="boss", scopes=["admin"])
    team = hold_key(client, settings, owner="team", scopes=ALL)
    assert fields(team.post("/jobs", json={**SMALLEST, "output": "theirs/x"})).keys() == {"output.repo_id"}
    assert fields(admin.put("/owners/team", json={"output_namespaces": ["a b"]})).keys() == {"output_namespaces"}
    assert admin.put("/owners/team", json={"output_namespaces": ["theirs"]}).status_code == 200
    assert admin.get("/owners/team").json() == {"owner": "team", "output_namespaces": ["theirs"]}
    assert team.post("/jobs", json={**SMALLEST, "output": "theirs/x"}).status_code == 202
    assert fields(team.post("/jobs", json={**SMALLEST, "output": "local/x"})).keys() == {"output.repo_id"}
    assert team.post("/jobs", json=SMALLEST).json()["spec"]["output"]["repo_id"].startswith("theirs/")
    assert admin.put("/owners/team", json={"output_namespaces": None}).json()["output_namespaces"] is None


@pytest.mark.parametrize(("owner", "name"), [("b", "mine"), ("a", "other")])
def test_a_row_that_was_moved_does_not_open(client: TestClient, settings: Settings, owner: str, name: str) -> None:
    hold_key(client, settings, owner="a", scopes=ALL).put("/credentials/mine", json={"token": TOKEN})
    database = Database(settings.resolved_database_url)
    with database.session() as session:
        session.execute(update(CredentialRow).values(owner=owner, name=name))
    with database.session(read_only=True) as session, pytest.raises(AccessDenied, match="another owner"):
        Owners(session).token(owner, name, box=settings.secrets_box())
    database.close()
