"""What `replaceme doctor` finds: on a service that works, and on one whose parts do not answer."""

import json
import ssl
from pathlib import Path

import pytest
import torch
import trustme
from huggingface_hub import close_session
from typer.testing import CliRunner

from api.cli.main import app
from benchmarks.harness.fake_hub.access import READ_TOKEN, WRITE_TOKEN
from benchmarks.harness.fake_hub.server import FakeHub
from replaceme_core.ledger.migrate import upgrade
from replaceme_core.settings import Settings

SECRET = "never-to-be-seen"


@pytest.fixture
def without_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Python that has none, and need not import it."""
    monkeypatch.setattr("replaceme_core.hardware.sys.executable", "/usr/bin/false")


def found(*options: str) -> tuple[int, dict[str, list[tuple[str, str]]], str]:
    """The exit code, state and text of what was found by name, and all that was printed."""
    done = CliRunner().invoke(app, ["doctor", "--json", *options])
    rows: dict[str, list[tuple[str, str]]] = {}
    for one in json.loads(done.stdout)["findings"]:
        rows.setdefault(one["name"], []).append((one["state"], one["text"]))
    return done.exit_code, rows, done.output


def test_a_service_that_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DATABASE_URL", "BROKER_URL", "HUB"):
        monkeypatch.delenv(f"REPLACEME_{name}", raising=False)
    data = tmp_path / "100% of data?"
    data.mkdir()
    upgrade(Settings(data=data).resolved_database_url)
    code, rows, _ = found("--data", str(data))
    assert code == 0, rows
    rows.pop("settings", None)  # of variables that are for these tests
    assert list(rows) == ["software", "torch", "memory", "disk", "sandbox", "hub", "database", "broker"]
    assert str(torch.__version__) in rows["torch"][0][1]
    assert {one[0] for name in ("memory", "hub", "database", "broker") for one in rows[name]} == {"ok"}


@pytest.mark.usefixtures("without_torch")
def test_parts_that_do_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (
        ("DATABASE_URL", f"postgresql+psycopg://user:{SECRET}@127.0.0.1:1/x"),
        ("BROKER_URL", f"redis://:{SECRET}@127.0.0.1:1/0"),
        ("HUB", f"dir:{tmp_path / 'none'}"),
        ("SANDBOX", "user"),
        ("REQUIRE_KEYS", SECRET),
    ):
        monkeypatch.setenv(f"REPLACEME_{name}", value)
    code, rows, printed = found("--data", str(tmp_path / "data"))
    states = {name: [state for state, _ in one] for name, one in rows.items()}
    assert code == 2
    assert {name for name, one in states.items() if "problem" in one} == {"sandbox", "hub", "database", "broker"}
    assert ("warning", "REPLACEME_REQUIRE_KEYS is no setting of this release, and is ignored") in rows["settings"]
    assert states["torch"] == ["warning"] and "can run the API, but no worker" in rows["torch"][0][1]
    assert SECRET not in printed
    assert str(tmp_path / "none") in rows["hub"][0][1]
    assert "Connection refused" in rows["database"][0][1], "the operator may read the reason"


@pytest.mark.usefixtures("without_torch")
def test_places_that_cannot_be_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A data directory that is a file, and a broker of an unknown kind."""
    data = tmp_path / "data"
    data.touch()
    monkeypatch.setenv("REPLACEME_HUB", f"dir:{data / 'hub'}")
    monkeypatch.setenv("REPLACEME_BROKER_URL", "http://x")
    code, rows, _ = found("--data", str(data))
    assert code == 2
    assert rows["disk"] == [("problem", f"the data directory {data} is a file; choose another with --data")]
    assert rows["hub"] == [("problem", f"{data / 'hub'}: Not a directory")]
    assert rows["broker"] == [("problem", "the broker's URL must be redis://HOST:PORT/NUMBER or filesystem://")]
    table = CliRunner().invoke(app, ["doctor", "--data", str(data)])
    assert table.exit_code == 2 and "Not a directory" in table.stdout


@pytest.mark.parametrize(
    ("read", "write", "state", "says"),
    [
        (READ_TOKEN, WRITE_TOKEN, "ok", "answers"),
        ("hf_expired", WRITE_TOKEN, "problem", "the Hub refuses the token while looking up model"),
        (
            READ_TOKEN,
            "hf_expired",
            "problem",
            "the Hub refuses the token while looking up the owner of the write token",
        ),
    ],
)
@pytest.mark.usefixtures("without_torch")
def test_tokens_that_the_hub_refuses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fake_hub: FakeHub, read: str, write: str, state: str, says: str
) -> None:
    for name, value in (("HUB", fake_hub.url), ("HUB_READ_TOKEN", read), ("HUB_WRITE_TOKEN", write)):
        monkeypatch.setenv(f"REPLACEME_{name}", value)
    code, rows, printed = found("--data", str(tmp_path / "data"))
    assert [text for each, text in rows["hub"] if each == state and says in text], rows["hub"]
    assert (code == 2) is (state == "problem")
    assert read not in printed and write not in printed


@pytest.mark.usefixtures("without_torch")
def test_a_hub_whose_certificate_is_of_a_private_authority(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    authority, tls = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(tls)
    authority.cert_pem.write_to_path(str(tmp_path / "authority.pem"))
    with FakeHub(tmp_path / "hub", tls=tls) as hub:
        monkeypatch.setenv("REPLACEME_HUB", hub.url)
        for trusted, says in ((None, "unable to get local issuer certificate"), ("authority.pem", "answers")):
            if trusted is not None:
                monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / trusted))
            close_session()  # the client reads the variable when it is made
            _, rows, _ = found("--data", str(tmp_path / "data"))
            assert says in rows["hub"][0][1]
    close_session()
