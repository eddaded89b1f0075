"""What is read from the environment and from `.env`."""

from pathlib import Path

import pytest

from replaceme_core.errors import InvalidInput
from replaceme_core.settings import Settings, read_settings


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
    for name in {*names} - {"REPLACEME_RUNNER_COMMAND"} if place == "files" else ():  # that is JSON
        (tmp_path / str(name).lower()).touch()
    found = Settings(_secrets_dir=tmp_path)
    assert found == plain
    assert not found.model_fields_set, "which decide about the Hub of the embedded default"


def test_a_setting_with_another_name_in_the_environment_is_named_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REPLACEME_DEFAULT_ROUTE", "tpu")
    with pytest.raises(InvalidInput, match=r"^REPLACEME_DEFAULT_ROUTE: "):
        read_settings()
