"""Credentials: tokens for the Hub that owners keep here."""

from datetime import datetime
from typing import Annotated, Self

from pydantic import Field, SecretStr, StringConstraints

from api.schemas.body import Body
from replaceme_core.ledger.keys import Credential
from replaceme_core.request.fields import CREDENTIAL_NAME, Frozen

CredentialPath = Annotated[str, StringConstraints(min_length=1, max_length=63, pattern=CREDENTIAL_NAME)]


class CredentialRequest(Frozen):
    """A token for the Hub. It is stored encrypted and never shown again."""

    token: SecretStr = Field(min_length=1, max_length=500)


class CredentialBody(Body):
    """A credential without its token."""

    name: str
    created_at: datetime
    updated_at: datetime

    @classmethod
    def of(cls, credential: Credential) -> Self:
        return cls(name=credential.name, created_at=credential.created_at, updated_at=credential.updated_at)
