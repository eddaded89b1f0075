"""The API key of the embedded default, in a file of the data directory that only its owner can read."""

import os
import tempfile
from pathlib import Path

from replaceme_core.errors import InvalidInput
from replaceme_core.ledger.database import Database
from replaceme_core.ledger.keys import DEFAULT_OWNER, Keys, NewKey, Scope, hash_of
from replaceme_core.settings import Settings

LOCAL_KEY_NAME = "local"
_OWNER_ONLY = 0o600


def provide_api_key(settings: Settings) -> None:
    """See that `DATA/api-key` has a key of this database, with all scopes. Makes one at the first start.

    Where the file is gone or its key has ended, the keys made before are revoked. Raises `InvalidInput` if the file
    cannot be read or written, and `DatabaseUnreachable`.
    """
    path = settings.api_key_file
    there = _read(path)
    database = Database(settings.resolved_database_url)
    try:
        with database.session() as session:
            keys = Keys(session)
            if there is not None and keys.find_live(hash_of(there)) is not None:
                return
            keys.revoke_local()
            new = NewKey(owner=DEFAULT_OWNER, name=LOCAL_KEY_NAME, scopes=frozenset(Scope), is_local=True)
            # before the commit: a key that nobody knows would be worse than a file with a key that is not known yet
            _write(path, keys.create(new).text)
    finally:
        database.close()


def _read(path: Path) -> str | None:
    try:
        text = path.read_text(encoding="utf-8").strip()
        path.chmod(_OWNER_ONLY)
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise _unusable(path, error) from error
    return text or None


def _write(path: Path, text: str) -> None:
    """Write the whole file at once."""
    try:
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")  # for its owner only
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(text + "\n")
            Path(temporary).replace(path)
        finally:
            Path(temporary).unlink(missing_ok=True)
    except OSError as error:
        raise _unusable(path, error) from error


def _unusable(path: Path, error: Exception) -> InvalidInput:
    return InvalidInput(f"{path} cannot be used: {error}", field="data", value=str(path))
