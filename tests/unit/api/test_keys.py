"""API keys and their owners, and credentials."""

import logging
import re
from pathlib import Path

import pytest
from pydantic import SecretStr
from sqlalchemy import update
from starlette.testclient import TestClient

from api.http import callers
from api.main import create_app
from benchmarks.harness.processes import wait_until
from replaceme_core.errors import AccessDenied
from replaceme_core.ledger.database import Database
from replaceme_core.ledger.keys import Owners, is_key, new_key
from replaceme_core.ledger.tables import CredentialRow
from replaceme_core.settings import Settings
from tests.fixtures.api.keys import Holder, hold_key
from tests.fixtures.api.requests import SMALLEST, assert_problem, fields

NO_JOB = "/jobs/00000000-0000-4000-8000-000000000000"
HOOK = {"url": "https://8.8.8.8/hook"}


@pytest.fixture
def admin(client: TestClient, settings: Settings) -> Holder:
    return hold_key(client, settings, owner="boss", scopes=["admin", "jobs:read", "jobs:write"])


def test_without_any_key_this_machine_needs_none(client: TestClient) -> None:
    assert client.get("/jobs").status_code == 200
    unknown = client.get("/jobs", headers={"authorization": f"Bearer {new_key()}"})
    assert_problem(unknown, status=401, code="unauthenticated")


def test_once_a_key_exists_every_request_needs_one(client: TestClient, admin: Holder) -> None:
    for path in ("/jobs", NO_JOB, "/nothing", "/keys"):
        answer = client.get(path)
        assert_problem(answer, status=401, code="unauthenticated")
        assert answer.headers["www-authenticate"] == 'Bearer realm="replaceme"'
    assert admin.get("/jobs").status_code == 200
    for public in ("/families", "/openapi.json", "/docs"):
        assert client.get(public).status_code == 200
        wrong = client.get(public, headers={"authorization": "Bearer wrong"})
        assert_problem(wrong, status=401, code="unauthenticated")
    for probe in ("/health", "/ready"):
        assert client.get(probe, headers={"authorization": "Bearer wrong"}).status_code == 200


def test_what_is_no_key_is_refused(client: TestClient, admin: Holder) -> None:
    key = new_key()
    headers = ("Bearer", "Bearer hf_abc", "Basic abc", "rmk_abc", f"Bearer {key}x", f"Bearer {key[:-1]}", "Bearer é")
    for header in headers:
        answer = client.get("/jobs", headers={b"authorization": header.encode("latin-1")})
        assert_problem(answer, status=401, code="unauthenticated")
        assert "invalid_token" in answer.headers["www-authenticate"]
    value = f"Bearer {admin.text}"
    answer = client.get("/jobs", headers=[("authorization", value), ("authorization", value)])
    assert_problem(answer, status=401, code="unauthenticated")


@pytest.mark.parametrize(
    ("scope", "allowed"),
    [
        ("jobs:read", {"read", "read_webhooks"}),
        ("jobs:write", {"write"}),
        ("webhooks:write", set()),
        ("webhooks:write jobs:read", {"read", "read_webhooks", "write_webhooks"}),
        ("webhooks:write jobs:write", {"write"}),
        ("jobs:read jobs:write", {"read", "read_webhooks", "write", "write_with_webhook", "validate_with_webhook"}),
        ("admin", {"admin"}),
    ],
)
def test_each_scope_allows_its_own(client: TestClient, settings: Settings, scope: str, allowed: set[str]) -> None:
    """A webhook tells of jobs, so the key that makes one must be one that may read them."""
    holder = hold_key(client, settings, owner="a", scopes=scope.split())
    with_webhook = {**SMALLEST, "webhook": HOOK}
    answers = {
        "read": holder.get("/jobs"),
        "write": holder.post("/jobs", json=SMALLEST),
        "write_with_webhook": holder.post("/jobs", json=with_webhook),
        "validate_with_webhook": holder.post("/jobs", json={**with_webhook, "validate_only": True}),
        "read_webhooks": holder.get("/webhooks"),
        "write_webhooks": holder.post("/webhooks", json=HOOK),
        "admin": holder.get("/keys"),
    }
    assert {name for name, answer in answers.items() if answer.is_success} == allowed
    for name, answer in answers.items():
        if name not in allowed:
            assert_problem(answer, status=403, code="missing_scope")
            if not name.endswith("_with_webhook") or "jobs:write" not in scope:
                assert 'error="insufficient_scope", scope="' in answer.headers["www-authenticate"]


def test_a_key_is_shown_once(admin: Holder) -> None:
    request = {"name": "ci", "owner": "team", "scopes": ["jobs:read"], "expires_in_seconds": 60}
    answer = admin.post("/keys", json=request)
    assert answer.status_code == 201
    assert answer.headers["cache-control"] == "no-store"
    created = answer.json()
    text = created.pop("key")
    assert is_key(text) and text.startswith(created["start"])
    assert admin.get(answer.headers["location"]).json() == created
    listed = admin.get("/keys", params={"owner": "team"})
    assert listed.json()["items"] == [created]
    assert text not in listed.text and text not in admin.get("/keys").text


def test_keys_are_listed_in_pages(admin: Holder) -> None:
    names = [admin.post("/keys", json={"name": f"k{number}"}).json()["id"] for number in range(3)]
    page = admin.get("/keys?limit=2")
    first = page.json()
    assert page.headers["link"] == f'</keys?limit=2&cursor={first["next_cursor"]}>; rel="next"'
    assert admin.get("/keys?limit=2", headers={"If-None-Match": page.headers["etag"]}).status_code == 304
    rest = admin.get("/keys", params={"limit": 2, "cursor": first["next_cursor"]}).json()
    assert [key["id"] for key in first["items"] + rest["items"]] == [*reversed(names), admin.key_id]
    assert rest["next_cursor"] is None
    assert fields(admin.get("/keys?cursor=x")) == {"cursor": "x"}


def test_a_rotated_key_ends_after_the_overlap(client: TestClient, settings: Settings, admin: Holder) -> None:
    old = hold_key(client, settings, owner="team", scopes=["jobs:read"])
    answer = admin.post(f"/keys/{old.key_id}/rotate")  # a body may be left out
    assert answer.status_code == 201
    new = answer.json()
    assert (new["owner"], new["scopes"], new["is_live"]) == ("team", ["jobs:read"], True)
    assert old.get("/jobs").status_code == 200
    assert client.get("/jobs", headers={"authorization": f"Bearer {new['key']}"}).status_code == 200
    assert admin.get(f"/keys/{old.key_id}").json()["expires_at"] is not None
    assert admin.post(f"/keys/{old.key_id}/rotate", json={"overlap_seconds": 0}).status_code == 201
    assert_problem(old.get("/jobs"), status=401, code="unauthenticated")
    assert_problem(admin.post(f"/keys/{old.key_id}/rotate", json={}), status=409, code="conflict")
    assert_problem(admin.post("/keys/none/rotate", json={}), status=404, code="key_not_found")
    assert new["expires_at"] is None


def test_limits_that_are_none(admin: Holder) -> None:
    for name, value in (("jobs", -1), ("jobs", "3"), ("tokens", 2**53), ("unknown", 1)):
        assert fields(admin.post("/keys", json={"name": "x", "limits": {name: value}})).keys() == {f"limits.{name}"}


def test_a_key_that_replaces_another_lives_as_long(admin: Holder) -> None:
    old = admin.post("/keys", json={"name": "x", "expires_in_seconds": 60, "limits": {"jobs": 3}}).json()
    assert admin.post(f"/keys/{old['id']}/rotate", json={}).json()["limits"]["jobs"] == 3
    again = admin.post(f"/keys/{old['id']}/rotate", json={"overlap_seconds": 0}).json()
    assert again["expires_at"] > old["expires_at"]
    ended = admin.get(f"/keys/{old['id']}").json()
    assert (ended["is_live"], ended["revoked_at"]) == (False, None)


def test_a_revoked_key_opens_nothing_and_after_seconds_in_no_process(
    client: TestClient, settings: Settings, admin: Holder, monkeypatch: pytest.MonkeyPatch
) -> None:
    with TestClient(create_app(settings)) as other:
        theirs = {"authorization": f"Bearer {admin.text}"}
        assert other.get("/jobs", headers=theirs).status_code == 200
        assert admin.delete(f"/keys/{admin.key_id}").json()["is_live"] is False
        for ended in (admin, client):  # the last key opens nothing, and one is still needed
            assert_problem(ended.get("/jobs"), status=401, code="unauthenticated")
        assert other.get("/jobs", headers=theirs).status_code == 200, "its cache still has the key"
        monkeypatch.setattr(callers.time, "monotonic", lambda now=callers.time.monotonic: now() + 5.1)
        assert_problem(other.get("/jobs", headers=theirs), status=401, code="unauthenticated")


def test_other_machines_need_a_key(settings: Settings) -> None:
    with TestClient(create_app(settings), client=("203.0.113.9", 1)) as client:
        assert_problem(client.get("/jobs"), status=401, code="unauthenticated")
    with TestClient(create_app(settings), client=("127.0.0.1", 1)) as client:
        assert client.get("/jobs").status_code == 200
        through_a_proxy = client.get("/jobs", headers={"x-forwarded-for": "127.0.0.1"})
        assert_problem(through_a_proxy, status=401, code="unauthenticated")
    agreed = settings.model_copy(update={"allow_unauthenticated": True})
    with TestClient(create_app(agreed), client=("203.0.113.9", 1)) as client:
        assert client.get("/jobs").status_code == 200
    with TestClient(create_app(agreed.model_copy(update={"require_key": True}))) as client:
        assert_problem(client.get("/jobs"), status=401, code="unauthenticated")
        assert client.get("/health").status_code == 200


def test_the_service_may_be_mounted_below_a_path(settings: Settings) -> None:
    with TestClient(create_app(settings), root_path="/models") as client:
        holder = hold_key(client, settings, owner="a", scopes=["jobs:read"])
        assert_problem(holder.get("/keys"), status=403, code="missing_scope")
        assert holder.get("/jobs").status_code == 200
        assert client.get("/health").status_code == 200


def test_the_last_use_is_written(admin: Holder) -> None:
    def is_written() -> bool:
        return admin.get(f"/keys/{admin.key_id}").json()["last_used_at"] is not None

    wait_until(is_written, seconds=10, what="the last use")


TOKEN = "hf_plantedplantedplanted"
ALL = ["jobs:read", "jobs:write"]


@pytest.mark.parametrize("wrong", ["hf_two words", "hf_planted\r\nX-More: 1", "hf_plant\u00e9d", " \n"])
def test_a_text_that_can_be_no_token_is_refused(client: TestClient, wrong: str) -> None:
    """Every job that names it would be refused, and one that is blank used the Hub without a token."""
    answer = client.put("/credentials/mine", json={"token": wrong})
    assert fields(answer) == {"token": "***"}
    assert "expected a token such as hf_" in answer.text and wrong.strip() not in answer.json()["detail"].split()
    assert client.get("/credentials").json()["items"] == []
    assert client.put("/credentials/mine", json={"token": f"{TOKEN}\n"}).status_code == 200
    described = client.get("/openapi.json").json()["components"]["schemas"]["CredentialRequest"]["properties"]["token"]
    assert not re.search(described["pattern"], wrong)
    assert re.search(described["pattern"], f"{TOKEN}\n")


def test_a_token_is_stored_and_never_shown(
    client: TestClient,
    settings: Settings,
    sqlite_database: Database,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
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
    with sqlite_database.session(read_only=True) as session:
        assert Owners(session).token("anonymous", "mine", box=settings.secrets_box()) == TOKEN
    stored = Path(settings.resolved_database_url.removeprefix("sqlite:///"))
    files = [path for path in stored.parent.rglob("*") if path.is_file()]
    assert stored in files
    assert [path for path in files if TOKEN.encode() in path.read_bytes()] == []
    captured = capfd.readouterr()
    assert TOKEN not in captured.out + captured.err + caplog.text
    assert client.delete("/credentials/mine").status_code == 204
    assert_problem(client.delete("/credentials/mine"), status=404, code="credential_not_found")
    assert fields(client.post("/jobs", json={**SMALLEST, "credential": "mine"})) == {"credential": "mine"}


def test_no_error_repeats_a_token(client: TestClient) -> None:
    for content in (
        f'{{"token": "{TOKEN}',
        f'{{"Token": "{TOKEN}"}}',
        f'{{"token": "{TOKEN}", "token": "{TOKEN}"}}',
        f'{{"token": "{TOKEN * 30}"}}',
        f'{{"token": {{"{TOKEN}": 1}}}}',
    ):
        answer = client.put("/credentials/mine", content=content, headers={"content-type": "application/json"})
        assert answer.status_code == 422
        assert TOKEN not in answer.text
    assert client.get("/credentials").json()["items"] == []


def test_a_service_without_a_key_keeps_nothing(settings: Settings) -> None:
    with TestClient(create_app(settings.model_copy(update={"encryption_key": SecretStr("")}))) as client:
        answer = client.put("/credentials/mine", json={"token": TOKEN})
        assert "REPLACEME_ENCRYPTION_KEY" in answer.text
        assert TOKEN not in answer.text
        assert fields(answer).keys() == {"token"}
        for path, body in (("/webhooks", HOOK), ("/jobs", {**SMALLEST, "webhook": HOOK})):
            answer = client.post(path, json=body)
            assert fields(answer).keys() == {"webhook"}
            assert "REPLACEME_ENCRYPTION_KEY" in answer.json()["detail"]
        assert client.post("/jobs", json=SMALLEST).status_code == 202


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


def test_a_row_that_was_moved_does_not_open(client: TestClient, settings: Settings, sqlite_database: Database) -> None:
    hold_key(client, settings, owner="a", scopes=ALL).put("/credentials/mine", json={"token": TOKEN})
    for owner, name in (("b", "mine"), ("a", "other")):
        with sqlite_database.session() as session:
            session.execute(update(CredentialRow).values(owner=owner, name=name))
        with sqlite_database.session(read_only=True) as session, pytest.raises(AccessDenied, match="another owner"):
            Owners(session).token(owner, name, box=settings.secrets_box())
