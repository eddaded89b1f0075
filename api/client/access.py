"""Keys and credentials, as parts of the client: `client.keys`, `client.credentials`."""

from collections.abc import Iterator, Mapping

from api.client import flows
from api.client.connection import Connection
from api.client.models import ApiKey, CreatedApiKey, Credential, OwnerSettings
from api.client.requests import access as requests


class KeysClient:
    """API keys. The key that is sent needs the scope `admin`. All methods raise `api.client.errors.ServiceError`."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def create(self, request: Mapping[str, object]) -> CreatedApiKey:
        """Create a key (`POST /keys`); the fields of `request` are those of the HTTP reference."""
        return self._connection.send(requests.create_key(request))

    def list(self, *, owner: str | None = None) -> Iterator[ApiKey]:
        """All keys, newest first."""
        return self._connection.iterate(flows.pages(lambda cursor: requests.keys(owner=owner, cursor=cursor)))

    def revoke(self, key_id: str) -> ApiKey:
        return self._connection.send(requests.revoke_key(key_id))

    def rotate(self, key_id: str, *, overlap_seconds: int) -> CreatedApiKey:
        """Replace a key; the old one is valid for `overlap_seconds` more."""
        return self._connection.send(requests.rotate_key(key_id, overlap_seconds=overlap_seconds))

    def set_output_namespaces(self, owner: str, names: tuple[str, ...] | None) -> OwnerSettings:
        """Say where results of an owner may go; `None`: where those of everybody may."""
        return self._connection.send(requests.set_output_namespaces(owner, names))


class CredentialsClient:
    """Tokens for the Hub that the service keeps. No method returns one. All raise `ServiceError`."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def set(self, name: str, token: str) -> Credential:
        """Store a token under a name, in place of an earlier one."""
        return self._connection.send(requests.set_credential(name, token))

    def list(self) -> tuple[Credential, ...]:
        return self._connection.send(requests.credentials()).items

    def delete(self, name: str) -> None:
        self._connection.send(requests.delete_credential(name))
