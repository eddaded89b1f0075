"""Who may do what: API keys, what operators decide about owners, and the credentials that owners keep here.

The text of a key is `rmk_`, 256 random bits, and a checksum. The prefix lets scanners of code and logs find a key that
has leaked. The checksum lets the service refuse a mistyped or invented key without a look into the database.
"""

import hashlib
import json
import re
import secrets
import string
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from uuid import uuid4

from sqlalchemy import ColumnElement, and_, case, delete, exists, insert, or_, select, update
from sqlalchemy.orm import Session

from replaceme_core import shapes
from replaceme_core.errors import (
    AccessDenied,
    Conflict,
    CredentialNotFound,
    InvalidInput,
    KeyNotFound,
    SecretUnreadable,
)
from replaceme_core.hub.port import Hub
from replaceme_core.ledger.database import Database, change_or_insert, lock_until_commit, now
from replaceme_core.ledger.records import Page, after_place, page_of, to_place
from replaceme_core.ledger.tables import ApiKeyRow, CredentialRow, EndedSessionRow, OwnerRow, WebhookRow, is_uuid
from replaceme_core.secrets_box import SecretsBox
from replaceme_core.settings import Settings
from replaceme_core.shapes import Credential, KeyLimits

DEFAULT_OWNER = "anonymous"
"""Of jobs that were submitted without a key, and of the key that `replaceme serve` makes for its own machine."""


class Scope(StrEnum):
    """What a key allows. None includes another."""

    JOBS_READ = "jobs:read"
    JOBS_WRITE = "jobs:write"
    WEBHOOKS_WRITE = "webhooks:write"
    ADMIN = "admin"


OF_WEBHOOKS = Scope.JOBS_READ
"""What a key needs for each webhook that it makes or changes, then and as long as messages go there: they tell of jobs
what this scope reads."""


NO_LIMITS_OF_ITS_OWN = KeyLimits()


@dataclass(frozen=True, kw_only=True)
class NewKey:
    """A key to create. `expires_in_seconds`: `None`: never."""

    owner: str
    name: str
    scopes: frozenset[Scope]
    limits: KeyLimits = NO_LIMITS_OF_ITS_OWN
    expires_in_seconds: int | None = None
    is_local: bool = False


class ApiKey(shapes.ApiKey):
    """What is known about a key; the key itself is not. `is_live`: neither revoked nor expired, when it was read."""

    scopes: tuple[Scope, ...]


class CreatedKey(ApiKey, shapes.CreatedApiKey):
    """A new key."""


PREFIX = "rmk_"
SHOWN_CHARACTERS = 8
"""Characters of a key that are stored and shown: the prefix and 24 of its 256 bits."""

_DIGITS = string.digits + string.ascii_uppercase + string.ascii_lowercase
_RANDOM_DIGITS = 43  # 62 ** 43 is more than 2 ** 256
_CHECK_DIGITS = 6  # 62 ** 6 is more than 2 ** 32
_KEY = re.compile(rf"{PREFIX}[0-9A-Za-z]{{{_RANDOM_DIGITS + _CHECK_DIGITS}}}")


def new_key() -> str:
    """A random key."""
    body = PREFIX + _in_base_62(secrets.randbits(256), _RANDOM_DIGITS)
    return body + _checksum(body)


def is_key(text: str) -> bool:
    """Whether `text` has the form and the checksum of a key."""
    return _KEY.fullmatch(text) is not None and text[-_CHECK_DIGITS:] == _checksum(text[:-_CHECK_DIGITS])


def hash_of(text: str) -> str:
    """What is stored of a key: 64 hex digits."""
    return hashlib.sha256(text.encode()).hexdigest()


def _checksum(body: str) -> str:
    return _in_base_62(zlib.crc32(body.encode()), _CHECK_DIGITS)


def _in_base_62(number: int, digits: int) -> str:
    found = []
    for _ in range(digits):
        number, digit = divmod(number, len(_DIGITS))
        found.append(_DIGITS[digit])
    return "".join(reversed(found))


LAST_USED_SECONDS = 60.0
"""`last_used_at` of a key is written at most this often."""

_IS_LIVE: ColumnElement[bool] = and_(
    ApiKeyRow.revoked_at.is_(None), or_(ApiKeyRow.expires_at.is_(None), ApiKeyRow.expires_at > now())
)


class Keys:
    """The keys within one transaction."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def create(self, new: NewKey) -> CreatedKey:
        """A new key. Its text is returned here and nowhere else."""
        text, key_id, seconds = new_key(), str(uuid4()), new.expires_in_seconds
        self._session.execute(
            insert(ApiKeyRow).values(
                id=key_id,
                owner=new.owner,
                name=new.name,
                hash=hash_of(text),
                start=text[:SHOWN_CHARACTERS],
                scopes=sorted(new.scopes),
                is_local=new.is_local,
                **new.limits.model_dump(include=set(KeyLimits.model_fields)),
                lifetime_seconds=seconds,
                created_at=now(),
                expires_at=None if seconds is None else now(plus_seconds=seconds),
            )
        )
        return CreatedKey.of(self.get(key_id), key=text)

    def find_live(self, key_hash: str, session_id: str = "") -> ApiKey | None:
        """The key with this hash, unless it is revoked or has expired, or the session was ended."""
        is_ended = exists().where(EndedSessionRow.id == session_id)
        return self._one(ApiKeyRow.hash == key_hash, _IS_LIVE, *([~is_ended] if session_id else []))

    def end_session(self, session_id: str, *, seconds: float) -> None:
        """Accept a session of the dashboard no more, which would have ended by itself after `seconds` at the latest."""
        self._session.execute(delete(EndedSessionRow).where(EndedSessionRow.expires_at <= now()))
        until = {"expires_at": now(plus_seconds=seconds)}
        change_or_insert(self._session, EndedSessionRow, {"id": session_id}, change=until, new=until)

    def get(self, key_id: str) -> ApiKey:
        """Raises `KeyNotFound`."""
        found = self._one(ApiKeyRow.id == key_id) if is_uuid(key_id) else None
        if found is None:
            raise KeyNotFound(f"there is no key {key_id!r}")
        return found

    def may(self, key_id: str, scope: Scope) -> bool:
        """Whether a key is live and has this scope."""
        found = self._one(ApiKeyRow.id == key_id)
        return found is not None and found.is_live and scope in found.scopes

    def page(self, *, limit: int, cursor: str | None = None, owner: str | None = None) -> Page[ApiKey]:
        """The newest keys first, revoked ones included. Raises `InvalidInput` (field `cursor`)."""
        query = select(ApiKeyRow, _IS_LIVE).where(after_place(cursor, ApiKeyRow.number))
        if owner is not None:
            query = query.where(ApiKeyRow.owner == owner)
        rows = self._session.execute(query.order_by(ApiKeyRow.number.desc()).limit(limit + 1)).all()
        return page_of(rows, limit, lambda row: _to_key(row[0], is_live=row[1]), cursor=lambda row: to_place(row[0]))

    def revoke(self, key_id: str) -> ApiKey:
        """End a key; it may be repeated. Raises `KeyNotFound`."""
        self.get(key_id)
        self._session.execute(
            update(ApiKeyRow).where(ApiKeyRow.id == key_id, ApiKeyRow.revoked_at.is_(None)).values(revoked_at=now())
        )
        return self.get(key_id)

    def revoke_local(self) -> None:
        """End all keys that `replaceme serve` has made."""
        self._session.execute(
            update(ApiKeyRow).where(ApiKeyRow.is_local, ApiKeyRow.revoked_at.is_(None)).values(revoked_at=now())
        )

    def rotate(self, key_id: str, *, overlap_seconds: int) -> CreatedKey:
        """A new key with the rights, limits, lifetime and webhooks of this one, which ends after `overlap_seconds`.

        Raises `KeyNotFound`, and `Conflict` if the key has ended, or is the one of `replaceme serve`.
        """
        old = self.get(key_id)
        if self._session.scalar(select(ApiKeyRow.is_local).where(ApiKeyRow.id == key_id)):
            raise Conflict("`replaceme serve` made this key; to replace it, delete DATA/api-key and start it again")
        end = now(plus_seconds=overlap_seconds)
        lifetime = self._session.scalars(
            update(ApiKeyRow)
            .where(ApiKeyRow.id == key_id, _IS_LIVE)
            .values(expires_at=case((ApiKeyRow.expires_at < end, ApiKeyRow.expires_at), else_=end))
            .returning(ApiKeyRow.lifetime_seconds)
        ).all()
        if not lifetime:
            raise Conflict(f"key {key_id} is revoked or has expired; create a new one")
        created = self.create(
            NewKey(
                owner=old.owner,
                name=old.name,
                scopes=frozenset(old.scopes),
                limits=old.limits,
                expires_in_seconds=lifetime[0],
            )
        )
        self._session.execute(update(WebhookRow).where(WebhookRow.key_id == key_id).values(key_id=created.id))
        return created

    def is_any_issued(self) -> bool:
        """Whether a person has ever created a key. Ended keys count: to end the last one must open nothing."""
        return self._session.scalar(select(ApiKeyRow.id).where(~ApiKeyRow.is_local).limit(1)) is not None

    def is_any_live(self) -> bool:
        """Whether there is a key to call with, apart from that of `replaceme serve`."""
        return self._session.scalar(select(ApiKeyRow.id).where(~ApiKeyRow.is_local, _IS_LIVE).limit(1)) is not None

    def note_use(self, key_ids: list[str]) -> None:
        """Write `last_used_at`, unless it was written within `LAST_USED_SECONDS`."""
        earlier = ApiKeyRow.last_used_at
        is_due = or_(earlier.is_(None), earlier <= now(plus_seconds=-LAST_USED_SECONDS))
        self._session.execute(update(ApiKeyRow).where(ApiKeyRow.id.in_(key_ids), is_due).values(last_used_at=now()))

    def _one(self, *conditions: ColumnElement[bool]) -> ApiKey | None:
        found = self._session.execute(select(ApiKeyRow, _IS_LIVE).where(*conditions)).one_or_none()
        return None if found is None else _to_key(found[0], is_live=bool(found[1]))


def _to_key(row: ApiKeyRow, *, is_live: bool) -> ApiKey:
    return ApiKey.of(row, is_live=is_live, limits=KeyLimits.of(row))


MOST_CREDENTIALS = 100
"""Of one owner."""


class Owners:
    """The owners within one transaction."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def output_namespaces(self, owner: str) -> tuple[str, ...] | None:
        """Where the owner's results may go; `None`: where those of everybody may."""
        found = self._session.scalar(select(OwnerRow.output_namespaces).where(OwnerRow.owner == owner))
        return tuple(found) if found else None

    def set_output_namespaces(self, owner: str, names: Sequence[str] | None) -> None:
        """Replace what was set before; `None` or an empty list: as for everybody."""
        values = {"output_namespaces": list(names or ()) or None}
        change_or_insert(self._session, OwnerRow, {"owner": owner}, change=values, new=values)

    def credentials(self, owner: str) -> list[Credential]:
        """All credentials of the owner, by name."""
        rows = self._session.scalars(
            select(CredentialRow).where(CredentialRow.owner == owner).order_by(CredentialRow.name)
        )
        return [Credential.of(row) for row in rows]

    def put_credential(self, owner: str, name: str, token: str, *, box: SecretsBox) -> Credential:
        """Store a token under a name, in place of an earlier one; it is encrypted together with whose it is.

        Raises `InvalidInput`, also where the box has no key.
        """
        sealed = box.seal(json.dumps([owner, name, token]), field="token")
        lock_until_commit(self._session, f"credentials of {owner}")  # each of several at once counts
        there = [one.name for one in self.credentials(owner)]
        if name not in there and len(there) >= MOST_CREDENTIALS:
            raise InvalidInput(f"expected at most {MOST_CREDENTIALS} credentials; delete one first", field="name")
        values = {"sealed": sealed, "updated_at": now()}
        new = {**values, "created_at": now()}
        key = {"owner": owner, "name": name}
        return Credential.of(change_or_insert(self._session, CredentialRow, key, change=values, new=new))

    def delete_credential(self, owner: str, name: str) -> None:
        """Raises `CredentialNotFound`."""
        is_it = (CredentialRow.owner == owner, CredentialRow.name == name)
        if self._session.scalars(delete(CredentialRow).where(*is_it).returning(CredentialRow.name)).first() is None:
            raise CredentialNotFound(f"there is no credential {name!r}")

    def token(self, owner: str, name: str, *, box: SecretsBox) -> str:
        """The token of a credential. Raises `InvalidInput` (field `credential`) where there is none.

        And `AccessDenied` if the box has no key that fits, or if it was sealed for another owner or name.
        """
        sealed = self._session.scalar(
            select(CredentialRow.sealed).where(CredentialRow.owner == owner, CredentialRow.name == name)
        )
        if sealed is None:
            raise InvalidInput(f"there is no credential {name!r}", field="credential", value=name)
        try:
            *whose, token = json.loads(box.open(sealed))
        except SecretUnreadable:
            raise AccessDenied(
                f"the credential {name!r} cannot be decrypted here; store it again, or ask the operator whether all "
                "processes have the same REPLACEME_ENCRYPTION_KEY"
            ) from None
        if whose != [owner, name]:
            raise AccessDenied(f"the credential {name!r} was stored for another owner or under another name")
        return str(token)


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
    return settings.open_hub(token=token)
