"""What is read from the environment and from `.env`."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from replaceme_core.errors import InvalidInput
from replaceme_core.hardware import WorkerKind
from replaceme_core.ledger.database import parse_url
from replaceme_core.settings import Settings, read_settings, unknown_settings


@pytest.mark.parametrize("place", ["environment", ".env", "files"])
def test_an_empty_value_is_as_none(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = [field.validation_alias or f"REPLACEME_{name.upper()}" for name, field in Settings.model_fields.items()]
    for name in names:
        monkeypatch.delenv(str(name), raising=False)
    plain = Settings()
    for name in names if place == "environment" else ():
        monkeypatch.setenv(str(name), "")
    (tmp_path / ".env").write_text("".join(f"{name}=\n" for name in names) if place == ".env" else "")
    for name in names if place == "files" else ():
        (tmp_path / str(name).lower()).touch()
    found = Settings(_secrets_dir=tmp_path)
    assert found == plain
    assert not found.model_fields_set, "which decide about the Hub of the embedded default"


@pytest.mark.parametrize("place", ["environment", "files"])
def test_a_list_is_read_from_a_variable_and_from_a_file(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("REPLACEME_ROUTES", '["cpu"]'), ("REPLACEME_RUNNER_COMMAND", '["python", "-P"]')):
        if place == "environment":
            monkeypatch.setenv(name, value)
        else:
            (tmp_path / name.lower()).write_text(f"{value}\n")
    found = Settings(_secrets_dir=tmp_path)
    assert (found.worker_kinds, found.runner_command) == ((WorkerKind.CPU,), ("python", "-P"))


def test_a_file_without_a_list_is_refused_as_a_variable_is(tmp_path: Path) -> None:
    (tmp_path / "replaceme_runner_command").write_text("python\n")
    with pytest.raises(ValidationError, match="valid tuple"):
        Settings(_secrets_dir=tmp_path)


AN_ADDRESS = "expected an address such as redis://:PASSWORD@HOST:PORT; in its password, @ is written as %40, / as %2F"


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("DEFAULT_ROUTE", "tpu", "expected 'cpu' or 'gpu'"),
        ("ROUTES", "cpu", 'expected a list such as ["a", "b"]'),
        ("RUNNER_COMMAND", "python", 'expected a list such as ["a", "b"]'),
        ("LEASE_SECONDS", "inf", "expected less than or equal to 3153600000"),
        ("RETENTION_SECONDS", "1e12", "expected less than or equal to 3153600000"),
        ("HUB", "nowhere", "expected dir:PATH, or an endpoint"),
        ("HUB_READ_TOKEN", "hf_hun\nx", "expected a token such as hf_..., in ASCII"),
        ("HUB_WRITE_TOKEN", "hf_h\xe4", "expected a token such as hf_..., in ASCII"),
        ("BROKER_URL", "redis://:hun@ter/two@127.0.0.1:9/0", AN_ADDRESS),
        ("DATABASE_URL", "postgresql+psycopg://u:hun@ter/two@h/x", AN_ADDRESS),
    ],
)
def test_a_wrong_setting_is_named_once_with_what_is_expected(
    name: str, value: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not with a part of a password."""
    monkeypatch.setenv(f"REPLACEME_{name}", value)
    with pytest.raises(InvalidInput) as refused:
        read_settings()
    message = refused.value.message
    assert message.startswith(f"REPLACEME_{name}: {words}")
    assert [part for part in ("hun", "ter", "two") if part in message] == []


def test_a_runner_command_is_not_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else our own runner would get no sandbox, as that of an operator gets none."""
    monkeypatch.setenv("REPLACEME_RUNNER_COMMAND", "[]")
    with pytest.raises(InvalidInput, match="REPLACEME_RUNNER_COMMAND: expected at least 1 item"):
        read_settings()


@pytest.mark.parametrize("name", ["a?b=c", "a#b", "100%41", "a b@c:d", "\xe4"])
def test_the_embedded_database_lies_in_data_whatever_its_name(name: str, tmp_path: Path) -> None:
    data = tmp_path / name
    assert parse_url(Settings(data=data).resolved_database_url).database == str(data.resolve() / "replaceme.sqlite3")


def test_what_is_no_setting_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two settings have other names in the environment than in the code; others have variables with our prefix too."""
    monkeypatch.chdir(tmp_path)
    before = unknown_settings()
    of_a_service = ("API_SERVICE_HOST", "API_SERVICE_PORT_HTTP", "API_PORT", "API_PORT_8000_TCP_ADDR")
    of_ours = ("URL", "API_KEY", "DATA", "ROUTES", "DEFAULT_ROUTE")
    for name in (*of_a_service, *of_ours, "REQUIRE_KEYS", "WORKER_KINDS"):
        monkeypatch.setenv(f"REPLACEME_{name}", "1")
    (tmp_path / ".env").write_text("REPLACEME_HUB=x\nREPLACEME_SHARDS=2\nSHARDS=2\n")
    assert set(unknown_settings()) - set(before) == {
        "REPLACEME_REQUIRE_KEYS",
        "REPLACEME_SHARDS",
        "REPLACEME_WORKER_KINDS",
    }
