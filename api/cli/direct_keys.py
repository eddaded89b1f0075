"""API keys in the database itself: for the operator, who creates the first key when no key can ask for it yet."""

from collections.abc import Iterable, Mapping

from api.bodies import KeyRequest, KeyRotationRequest, OwnerRequest
from replaceme_core.ledger.database import Database
from replaceme_core.ledger.keys import DEFAULT_OWNER, Keys, Owners
from replaceme_core.ledger.migrate import upgrade
from replaceme_core.local.inputs import validated
from replaceme_core.settings import Settings
from replaceme_core.shapes import ApiKey, CreatedApiKey, OwnerSettings

_ALL = 10**9  # more keys than a database has


class DirectKeys:
    """The same methods as `api.client.client.KeysClient`. Raises errors of the core."""

    def __init__(self, settings: Settings) -> None:
        if settings.uses_embedded_default:  # the service may never have been started; another database is migrated
            upgrade(settings.resolved_database_url)
        self._database = Database(settings.resolved_database_url)

    def create(self, request: Mapping[str, object]) -> CreatedApiKey:
        new = validated(KeyRequest, request).to_new(owner=DEFAULT_OWNER)
        with self._database.session() as session:
            return CreatedApiKey.of(Keys(session).create(new))

    def list(self, *, owner: str | None = None) -> Iterable[ApiKey]:
        with self._database.session(read_only=True) as session:
            return Keys(session).page(limit=_ALL, owner=owner).items

    def revoke(self, key_id: str) -> ApiKey:
        with self._database.session() as session:
            return Keys(session).revoke(key_id)

    def rotate(self, key_id: str, *, overlap_seconds: int) -> CreatedApiKey:
        seconds = validated(KeyRotationRequest, {"overlap_seconds": overlap_seconds}).overlap_seconds
        with self._database.session() as session:
            return CreatedApiKey.of(Keys(session).rotate(key_id, overlap_seconds=seconds))

    def set_output_namespaces(self, owner: str, names: tuple[str, ...] | None) -> OwnerSettings:
        checked = validated(OwnerRequest, {"output_namespaces": names and [*names]}).output_namespaces
        with self._database.session() as session:
            Owners(session).set_output_namespaces(owner, checked)
            return OwnerSettings(owner=owner, output_namespaces=Owners(session).output_namespaces(owner))

    def close(self) -> None:
        self._database.close()
