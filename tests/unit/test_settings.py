"""What is read from the environment and from `.env`."""

from pathlib import Path

import pytest

from replaceme_core.settings import Settings


@pytest.mark.parametrize("place", ["environment", ".env"])
def test_an_empty_value_is_as_none(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = [field.validation_alias or f"REPLACEME_{name.upper()}" for name, field in Settings.model_fields.items()]
    for name in names:
        monkeypatch.delenv(str(name), raising=False)
    plain = Settings()
    for name in names if place == "environment" else ():
        monkeypatch.setenv(str(name), "")
    (tmp_path / ".env").write_text("" if place == "environment" else "".join(f"{name}=\n" for name in names))
    found = Settings()
    assert found == plain
    assert not found.model_fields_set, "which decide about the Hub of the embedded default"
