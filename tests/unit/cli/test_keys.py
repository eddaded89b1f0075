"""`keys` on the database of the settings, and the key that the client sends."""

import json
import stat
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from api.cli.launch import provide_api_key
from api.cli.main import app
from api.client.client import Client
from api.client.connection import find_key
from api.client.errors import NotAllowed
from replaceme_core.ledger.database import Database
from replaceme_core.ledger.keys import Keys, hash_of, is_key, new_key
from replaceme_core.ledger.migrate import upgrade
from replaceme_core.settings import Settings
from tests.fixtures.cli.stub_service import JOB_ID, StubService, a_job, a_problem, run_at


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory, and no settings."""
    for name in ("API_KEY", "DATA", "DATABASE_URL", "BROKER_URL", "URL"):
        monkeypatch.delenv(f"REPLACEME_{name}", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments)


def test_the_life_of_a_key_in_the_database(here: Path) -> None:
    created = run("keys", "create", "ci", "--owner", "team", "--scope", "jobs:read", "--expires-in-days", "2")
    assert created.exit_code == 0, created.output
    text = created.stdout.strip()
    assert is_key(text)
    shown = json.loads(run("keys", "list", "--json").stdout)["items"]
    assert [(key["name"], key["owner"], key["scopes"], key["is_live"]) for key in shown] == [
        ("ci", "team", ["jobs:read"], True)
    ]
    assert text[:8] in run("keys", "list").stdout
    rotated = json.loads(run("keys", "rotate", shown[0]["id"], "--overlap-days", "0", "--json").stdout)
    assert is_key(rotated["key"])
    assert run("keys", "revoke", rotated["id"]).exit_code == 0
    listed = run("keys", "list", "--json").stdout
    assert [key["is_live"] for key in json.loads(listed)["items"]] == [False, False]
    assert text not in listed and rotated["key"] not in listed
    assert json.loads(run("keys", "outputs", "team", "a", "b", "--json").stdout)["output_namespaces"] == ["a", "b"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["create", "ci", "--scope", "root"], "expected one of jobs:read"),
        (["create", "ci", "--owner", "a b"], "owner"),
        (["revoke", "none"], "there is no key 'none'"),
        (["rotate", "none"], "there is no key 'none'"),
        (["outputs", "team", "a b"], "output_namespaces"),
    ],
)
def test_bad_input_of_keys(here: Path, arguments: list[str], words: str) -> None:
    done = run("keys", *arguments)
    assert done.exit_code == 2
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_refused_key_has_its_own_exit_code(here: Path, service: StubService) -> None:
    for status, code in ((401, "unauthenticated"), (403, "missing_scope")):
        service.answers["GET /jobs"] = service.answers["GET /keys"] = [(status, a_problem(status, code=code))]
        for command in (("list",), ("keys", "list")):
            assert run_at(service, *command, "--api-key", "rmk_x").exit_code == 8


@pytest.fixture
def kept(here: Path) -> None:
    """The key of this machine, in its file."""
    (here / "data").mkdir()
    (here / "data" / "api-key").write_text("rmk_file\n")


@pytest.mark.parametrize(
    ("given", "environment", "expected"),
    [
        (None, None, "rmk_file"),
        (None, "rmk_environment", "rmk_environment"),
        ("rmk_given", "rmk_environment", "rmk_given"),
    ],
)
def test_the_key_is_sent(
    kept: None,
    service: StubService,
    monkeypatch: pytest.MonkeyPatch,
    given: str | None,
    environment: str | None,
    expected: str,
) -> None:
    service.answers[f"GET /jobs/{JOB_ID}"] = [(200, a_job())]
    if environment is not None:
        monkeypatch.setenv("REPLACEME_API_KEY", environment)
    with Client(service.url, api_key=given) as client:
        client.job(JOB_ID)
    assert service.authorizations == [f"Bearer {expected}"]


def test_a_key_that_nobody_named_may_be_of_another_service(
    kept: None, service: StubService, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused, job = (401, a_problem(401)), (200, a_job())
    service.answers[f"GET /jobs/{JOB_ID}"] = [refused, job]
    with Client(service.url) as client:
        assert client.job(JOB_ID).id == JOB_ID
        assert service.authorizations == ["Bearer rmk_file", None]
        client.job(JOB_ID)
        assert service.authorizations[2:] == [None]
    monkeypatch.setenv("REPLACEME_API_KEY", "rmk_named")
    service.answers[f"GET /jobs/{JOB_ID}"] = [refused]
    with Client(service.url) as client, pytest.raises(NotAllowed):
        client.job(JOB_ID)


def test_a_key_of_this_machine_is_not_sent_elsewhere(kept: None) -> None:
    assert find_key(None, is_local=False, environ={}) is None
    with pytest.raises(ValueError, match="characters") as caught:
        find_key("rmk_\nplanted", is_local=False, environ={})
    assert "planted" not in str(caught.value)
    assert run("list", "--api-key", "rmk_a b").exit_code == 2


def test_serve_makes_one_key_for_this_machine(here: Path) -> None:
    settings = Settings.model_validate({"data": here / "data"})
    upgrade(settings.resolved_database_url)

    def live(text: str) -> bool:
        database = Database(settings.resolved_database_url)
        with database.session(read_only=True) as session:
            found = Keys(session).find_live(hash_of(text))
            assert not Keys(session).is_any_issued()
        database.close()
        return found is not None

    provide_api_key(settings)
    first = settings.api_key_file.read_text().strip()
    assert stat.S_IMODE(settings.api_key_file.stat().st_mode) == 0o600
    assert live(first)
    provide_api_key(settings)
    assert settings.api_key_file.read_text().strip() == first
    settings.api_key_file.unlink()
    provide_api_key(settings)
    second = settings.api_key_file.read_text().strip()
    assert live(second) and not live(first)
    settings.api_key_file.write_text(new_key())  # of another database
    provide_api_key(settings)
    assert live(settings.api_key_file.read_text().strip()) and not live(second)
    assert [path.name for path in settings.resolved_data.iterdir() if path.name.startswith(".api-key")] == []
