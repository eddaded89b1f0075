"""Credentials: tokens for the Hub by reference. No answer has a token, and none is readable in the database."""

import logging
from pathlib import Path

import pytest
from cryptography.fernet import Fernet
from pydantic import SecretStr
from starlette.testclient import TestClient

from api.main import create_app
from replaceme_core.errors import AccessDenied, InvalidInput
from replaceme_core.jobs.access.owners import Owners
from replaceme_core.jobs.access.vault import Vault
from replaceme_core.jobs.session import Database
from replaceme_core.settings import Settings
from tests.fixtures.api.keys import hold_key
from tests.fixtures.api.requests import SMALLEST, assert_problem, fields

TOKEN = "hf_plantedplantedplanted"
ALL = ["jobs:read", "jobs:write"]


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"credential_key": SecretStr(Fernet.generate_key().decode())})


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
        assert Owners(session).token("anonymous", "mine", vault=Vault(settings.credential_key)) == TOKEN
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
    with TestClient(create_app(settings.model_copy(update={"credential_key": None}))) as client:
        answer = client.put("/credentials/mine", json={"token": TOKEN})
        assert "REPLACEME_CREDENTIAL_KEY" in answer.text
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


class TestVault:
    def test_a_new_key_in_front_of_the_old_one(self) -> None:
        old, new = (Fernet.generate_key().decode() for _ in range(2))
        sealed = Vault(SecretStr(old)).seal(TOKEN, owner="a", name="n")
        both = Vault(SecretStr(f"{new}, {old}"))
        assert both.open(sealed, owner="a", name="n") == TOKEN
        again = both.seal(TOKEN, owner="a", name="n")
        assert Vault(SecretStr(new)).open(again, owner="a", name="n") == TOKEN
        with pytest.raises(AccessDenied, match="cannot be decrypted"):
            Vault(SecretStr(old)).open(again, owner="a", name="n")

    @pytest.mark.parametrize(("owner", "name"), [("b", "n"), ("a", "m")])
    def test_a_row_that_was_moved_does_not_open(self, owner: str, name: str) -> None:
        vault = Vault(SecretStr(Fernet.generate_key().decode()))
        with pytest.raises(AccessDenied, match="another owner"):
            vault.open(vault.seal(TOKEN, owner="a", name="n"), owner=owner, name=name)

    def test_an_invalid_key_is_refused_without_showing_it(self) -> None:
        with pytest.raises(InvalidInput, match="REPLACEME_CREDENTIAL_KEY") as caught:
            Vault(SecretStr("hf_planted"))
        assert "planted" not in repr(caught.value)
        assert caught.value.__cause__ is None
