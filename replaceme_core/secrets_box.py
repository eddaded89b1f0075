"""Encryption of what the database stores but may not reveal: secrets of webhooks, tokens of owners.

A copy of the database alone then opens nothing. The keys are in the settings, or in a file beside an embedded database.
"""

import os
import tempfile
from pathlib import Path

from cryptography.fernet import Fernet, InvalidToken, MultiFernet

from replaceme_core.errors import InvalidInput, SecretUnreadable

_TO_URLSAFE = str.maketrans("+/", "-_")


class SecretsBox:
    """Seals texts with the first of `keys` and opens what any of them has sealed. Without keys it does neither."""

    def __init__(self, keys: str) -> None:
        """Keys are separated by commas, each 32 bytes in base64. Raises `ValueError`, which names no key."""
        try:
            boxes = [Fernet(key.strip().translate(_TO_URLSAFE)) for key in keys.split(",") if key.strip()]
        except ValueError:
            raise ValueError("expected 32 random bytes in base64, as `openssl rand -base64 32` prints them") from None
        self._box = MultiFernet(boxes) if boxes else None

    @property
    def has_keys(self) -> bool:
        return self._box is not None

    def seal(self, text: str, *, field: str) -> str:
        """`text` encrypted, as ASCII. Raises `InvalidInput` (the `field` of the request) without a key."""
        if self._box is None:
            raise InvalidInput(
                "this service can store no secrets, so it has no webhooks and no credentials: its operator must set "
                "REPLACEME_ENCRYPTION_KEY",
                field=field,
            )
        return self._box.encrypt(text.encode()).decode("ascii")

    def open(self, sealed: str) -> str:
        """What `seal` got. Raises `SecretUnreadable`."""
        try:
            if self._box is not None:
                return self._box.decrypt(sealed).decode()
        except InvalidToken:
            pass
        raise SecretUnreadable("a stored secret cannot be read with any key in REPLACEME_ENCRYPTION_KEY")


def key_in_file(path: Path) -> str:
    """The key in `path`, which is created with a random one (mode 0600) if it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        descriptor, fresh = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(Fernet.generate_key())
                file.flush()
                os.fsync(descriptor)  # what it seals is on the disk at once
            os.link(fresh, path)  # whole or not at all, and never over the key of another process or thread
        except FileExistsError:
            pass
        finally:
            Path(fresh).unlink()
    return path.read_text("ascii").strip()
