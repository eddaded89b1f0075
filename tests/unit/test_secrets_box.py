import base64
import errno
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest.mock import Mock

import pytest
from pydantic import SecretStr

from replaceme_core.errors import SecretUnreadable
from replaceme_core.secrets_box import SecretsBox, key_in_file
from replaceme_core.settings import Settings


def a_key() -> str:
    return base64.b64encode(os.urandom(32)).decode()


def test_keys_can_be_rotated() -> None:
    old, new = a_key(), a_key()
    sealed = SecretsBox(old).seal("x", field="webhook")
    assert SecretsBox(old).seal("x", field="webhook") != sealed
    assert SecretsBox(f"{new}, {old}").open(sealed) == "x"
    with pytest.raises(SecretUnreadable):
        SecretsBox(new).open(sealed)
    with pytest.raises(SecretUnreadable):
        SecretsBox("").open(sealed)
    with pytest.raises(SecretUnreadable):
        SecretsBox(new).open("nonsense")


def test_keys_are_32_bytes_in_base64_of_either_alphabet() -> None:
    key = base64.b64encode(b"\xfb\xff" * 16).decode()
    other = base64.urlsafe_b64encode(b"\xfb\xff" * 16).decode()
    assert key != other
    assert SecretsBox(key).open(SecretsBox(other).seal("x", field="webhook")) == "x"
    for bad in ("short", "!" * 44, base64.b64encode(b"x" * 31).decode()):
        with pytest.raises(ValueError, match="openssl rand") as caught:
            SecretsBox(f"{key},{bad}")
        assert bad not in str(caught.value)


def test_the_key_in_a_file_is_made_once_and_is_private(tmp_path: Path) -> None:
    path = tmp_path / "data" / "encryption-key"
    with ThreadPoolExecutor(8) as threads:  # those that send webhooks ask for it at the same time
        [key] = set(threads.map(key_in_file, [path] * 8))
    assert key_in_file(path) == key
    assert SecretsBox(key).has_keys
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(path.parent.iterdir()) == [path]


def test_a_key_that_is_not_on_the_disk_has_no_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a power cut it would be an empty file, and what it has sealed could never be opened again."""
    monkeypatch.setattr(os, "fsync", Mock(side_effect=OSError(errno.ENOSPC, "No space left on device")))
    with pytest.raises(OSError, match="No space left"):
        key_in_file(tmp_path / "encryption-key")
    assert list(tmp_path.iterdir()) == []


def test_the_settings_name_no_key_that_is_not_right(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REPLACEME_ENCRYPTION_KEY", "planted-key")
    with pytest.raises(ValueError, match="32 random bytes") as caught:
        Settings(_env_file=None)  # type: ignore[call-arg]
    assert "planted" not in str(caught.value)


def test_an_embedded_database_has_its_key_beside_it_and_another_one_has_none(tmp_path: Path) -> None:
    embedded = Settings(data=tmp_path)
    sealed = embedded.secrets_box().seal("x", field="webhook")
    assert embedded.secrets_box().open(sealed) == "x"
    assert (tmp_path / "encryption-key").exists()
    server = Settings(data=tmp_path, database_url="postgresql+psycopg://nobody@127.0.0.1/none")
    with pytest.raises(SecretUnreadable):
        server.secrets_box().open(sealed)
    key = (tmp_path / "encryption-key").read_text()
    given = server.model_copy(update={"encryption_key": SecretStr(key)})
    assert given.secrets_box().open(sealed) == "x"
