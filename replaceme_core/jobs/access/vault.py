"""Encrypts the tokens that owners keep here. The keys are settings, never in the database."""

import json

from cryptography.fernet import Fernet, InvalidToken, MultiFernet
from pydantic import SecretStr

from replaceme_core.errors import AccessDenied, InvalidInput


class Vault:
    """Seals with the first of `keys`, opens with any; so a new key is put in front of the old one.

    `keys`: as `Fernet.generate_key` makes them, separated by commas; `None`: nothing can be kept. Raises
    `InvalidInput`.
    """

    def __init__(self, keys: SecretStr | None) -> None:
        self._fernet: MultiFernet | None = None
        names = [name.strip() for name in (keys.get_secret_value() if keys else "").split(",")]
        found = [name for name in names if name]
        if found:
            try:
                self._fernet = MultiFernet([Fernet(name) for name in found])
            except ValueError:
                # without the value, and without the error that has it
                raise InvalidInput(
                    "expected keys of 32 bytes in URL-safe base64, separated by commas, in REPLACEME_CREDENTIAL_KEY",
                    field="credential_key",
                ) from None

    @property
    def is_open(self) -> bool:
        """Whether there is a key."""
        return self._fernet is not None

    def seal(self, token: str, *, owner: str, name: str) -> str:
        """The token, encrypted together with whose it is. Raises `InvalidInput` without a key."""
        if self._fernet is None:
            raise InvalidInput(
                "this service keeps no credentials; its operator can set REPLACEME_CREDENTIAL_KEY", field="token"
            )
        return self._fernet.encrypt(json.dumps([owner, name, token]).encode()).decode()

    def open(self, sealed: str, *, owner: str, name: str) -> str:
        """The token. Raises `AccessDenied` if no key fits, or if it was sealed for another owner or name."""
        try:
            if self._fernet is None:
                raise InvalidToken
            *whose, token = json.loads(self._fernet.decrypt(sealed))
        except InvalidToken:
            raise AccessDenied(
                f"the credential {name!r} cannot be decrypted here; store it again, or ask the operator whether all "
                "processes have the same REPLACEME_CREDENTIAL_KEY"
            ) from None
        if whose != [owner, name]:
            raise AccessDenied(f"the credential {name!r} was stored for another owner or under another name")
        return str(token)
