"""Keys and credentials, as parts of the client: `client.keys`, `client.credentials`."""

from collections.abc import Iterator, Mapping
from urllib.parse import quote

from api.client.connection import Connection, QueryParameters
from api.client.models import ApiKey, CreatedApiKey, Credential, OwnerSettings, Page

_KEYS_PER_PAGE = 200


class KeysClient:
    """API keys. The key that is sent needs the scope `admin`. All methods raise `api.client.errors.ServiceError`."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def create(self, request: Mapping[str, object]) -> CreatedApiKey:
        """Create a key (`POST /keys`); the fields of `request` are those of the HTTP reference."""
        return self._connection.request(CreatedApiKey, "POST", "/keys", body=request)

    def list(self, *, owner: str | None = None) -> Iterator[ApiKey]:
        """All keys, newest first."""
        cursor: str | None = None
        while True:
            filters = {"owner": owner, "cursor": cursor, "limit": _KEYS_PER_PAGE}
            query: QueryParameters = [(name, value) for name, value in filters.items() if value is not None]
            page = self._connection.request(Page[ApiKey], "GET", "/keys", query=query)
            yield from page.items
            cursor = page.next_cursor
            if cursor is None:
                return

    def revoke(self, key_id: str) -> ApiKey:
        return self._connection.request(ApiKey, "DELETE", f"/keys/{quote(key_id, safe='')}")

    def rotate(self, key_id: str, *, overlap_seconds: int) -> CreatedApiKey:
        """Replace a key; the old one is valid for `overlap_seconds` more."""
        path = f"/keys/{quote(key_id, safe='')}/rotate"
        return self._connection.request(CreatedApiKey, "POST", path, body={"overlap_seconds": overlap_seconds})

    def set_output_namespaces(self, owner: str, names: tuple[str, ...] | None) -> OwnerSettings:
        """Say where results of an owner may go; `None`: where those of everybody may."""
        body = {"output_namespaces": names}
        return self._connection.request(OwnerSettings, "PUT", f"/owners/{quote(owner, safe='')}", body=body)


class CredentialsClient:
    """Tokens for the Hub that the service keeps. No method returns one. All raise `ServiceError`."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def set(self, name: str, token: str) -> Credential:
        """Store a token under a name, in place of an earlier one."""
        path = f"/credentials/{quote(name, safe='')}"
        return self._connection.request(Credential, "PUT", path, body={"token": token})

    def list(self) -> tuple[Credential, ...]:
        return self._connection.request(Page[Credential], "GET", "/credentials").items

    def delete(self, name: str) -> None:
        self._connection.request_nothing("DELETE", f"/credentials/{quote(name, safe='')}")
