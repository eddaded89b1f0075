"""`keys` on the database of the settings, and the key that the client sends."""

import io
import json
from pathlib import Path

import httpx2
import pytest
from typer.testing import CliRunner, Result

from api.cli.main import app
from api.client.client import Client
from api.client.connection import find_key
from api.client.errors import NotAllowed
from replaceme_core.ledger.keys import is_key
from tests.fixtures.cli.stub_service import JOB_ID, StubService, a_job, a_problem, run_at


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory, and no settings."""
    for name in ("API_KEY", "DATA", "DATABASE_URL", "BROKER_URL", "URL"):
        monkeypatch.delenv(f"REPLACEME_{name}", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def keys(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["keys", *arguments])


def test_the_life_of_a_key_in_the_database(here: Path) -> None:
    created = keys("create", "ci", "--owner", "team", "--scope", "jobs:read", "--expires-in-days", "2")
    assert created.exit_code == 0, created.output
    text = created.stdout.strip()
    assert is_key(text)
    (shown,) = json.loads(keys("list", "--json").stdout)["items"]
    assert [shown[name] for name in ("name", "owner", "scopes", "is_live")] == ["ci", "team", ["jobs:read"], True]
    assert text[:8] in keys("list").stdout
    rotated = json.loads(keys("rotate", shown["id"], "--overlap-days", "0", "--json").stdout)
    assert is_key(rotated["key"])
    assert keys("revoke", rotated["id"]).exit_code == 0
    listed = keys("list", "--json").stdout
    assert [key["is_live"] for key in json.loads(listed)["items"]] == [False, False]
    assert text not in listed and rotated["key"] not in listed
    assert json.loads(keys("outputs", "team", "a", "b", "--json").stdout)["output_namespaces"] == ["a", "b"]


@pytest.mark.parametrize("as_json", [[], ["--json"]])
def test_a_key_that_could_not_be_printed_is_revoked(
    here: Path, monkeypatch: pytest.MonkeyPatch, as_json: list[str]
) -> None:
    seen = json.loads(keys("create", "seen", "--json").stdout)["id"]
    for arguments in (["create", "unseen"], ["rotate", seen]):
        with (
            io.TextIOWrapper(Path("/dev/full").open("wb", buffering=0), write_through=True) as full,
            monkeypatch.context() as patched,
        ):
            patched.setattr("sys.stdout", full)
            with pytest.raises(SystemExit) as ended:
                app(["keys", *arguments, *as_json])
        assert ended.value.code == 2
    listed = json.loads(keys("list", "--json").stdout)["items"]
    assert {key["id"] for key in listed if key["is_live"]} == {seen}
    assert len(listed) == 3


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
    done = keys(*arguments, "--json")
    assert done.exit_code == 2
    (line,) = done.stderr.splitlines()
    assert words in line
    assert words in json.loads(done.stdout)["error"]["message"]


def test_a_refused_key_has_its_own_exit_code(here: Path, service: StubService) -> None:
    for status, code in ((401, "unauthenticated"), (403, "missing_scope")):
        service.answers["GET /jobs"] = service.answers["GET /keys"] = [(status, a_problem(status, code=code))]
        for command in (("list",), ("keys", "list")):
            assert run_at(service, *command, "--api-key", "rmk_x").exit_code == 8
    assert run_at(service, "list", "--api-key", "rmk_a b").exit_code == 2, "it cannot be sent"


@pytest.mark.parametrize("address", ["elsewhere.example?@127.0.0.1", "elsewhere.example#@127.0.0.1"])
def test_the_key_of_this_machine_is_sent_to_no_host_that_only_looks_like_it(here: Path, address: str) -> None:
    (here / "data").mkdir()
    (here / "data" / "api-key").write_text("rmk_file\n")
    sent: list[tuple[str, str | None]] = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        sent.append((request.url.host, request.headers.get("authorization")))
        return httpx2.Response(200, json=a_job())

    with Client(f"http://{address}", transport=httpx2.MockTransport(answer)) as client:
        client.job(JOB_ID)
    assert sent == [("elsewhere.example", None)]


def test_which_key_is_sent(here: Path, service: StubService, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one that is named, else the one in the file of this machine, which may be of another service."""
    (here / "data").mkdir()
    (here / "data" / "api-key").write_text("rmk_file\n")
    refused, job = (401, a_problem(401)), (200, a_job())
    service.answers[f"GET /jobs/{JOB_ID}"] = [job, refused, job]
    with Client(service.url) as client:
        for _ in range(3):
            client.job(JOB_ID)
    assert service.authorizations == ["Bearer rmk_file", "Bearer rmk_file", None, None]
    monkeypatch.setenv("REPLACEME_API_KEY", "rmk_environment")
    for given in (None, "rmk_given"):
        with Client(service.url, api_key=given) as client:
            client.job(JOB_ID)
    assert service.authorizations[4:] == ["Bearer rmk_environment", "Bearer rmk_given"]
    service.answers[f"GET /jobs/{JOB_ID}"] = [refused]
    with Client(service.url) as client, pytest.raises(NotAllowed):
        client.job(JOB_ID)
    monkeypatch.delenv("REPLACEME_API_KEY")
    assert find_key(None, is_local=False) == (None, False), "that of this machine is not sent elsewhere"
    with pytest.raises(ValueError, match="characters") as caught:
        find_key("rmk_\nplanted", is_local=False)
    assert "planted" not in str(caught.value)


def test_the_key_of_this_directory_is_found_by_its_settings(here: Path) -> None:
    (here / "elsewhere").mkdir()
    (here / "elsewhere" / "api-key").write_text("rmk_file\n")
    for settings, key in (("REPLACEME_DATA=elsewhere\n", "rmk_file"), ("REPLACEME_API_KEY=rmk_named\n", "rmk_named")):
        (here / ".env").write_text(settings)
        assert find_key(None, is_local=True)[0] == key
