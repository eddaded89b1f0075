"""The Hub as a job's owner may use it: with the service's tokens, or with a credential that the owner keeps here."""

from collections.abc import Callable

from replaceme_core.hub.open import open_hub
from replaceme_core.hub.port import Hub
from replaceme_core.ledger.access.owners import Owners
from replaceme_core.ledger.session import Database
from replaceme_core.settings import Settings


def owner_hub(
    owner: str, credential: str | None, *, settings: Settings, database: Database, default: Callable[[], Hub]
) -> Hub:
    """`default()` without a credential; else the Hub with that token alone, for reading and for publishing.

    Raises `InvalidInput` (field `credential`), `AccessDenied` and `DatabaseUnreachable`.
    """
    if credential is None:
        return default()
    box = settings.secrets_box()
    with database.session(read_only=True) as session:
        token = Owners(session).token(owner, credential, box=box)
    return open_hub(settings, token=token)
