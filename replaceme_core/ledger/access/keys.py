"""All SQL about API keys. Times are the database's."""

from contextlib import suppress
from uuid import uuid4

from sqlalchemy import ColumnElement, and_, case, delete, exists, insert, or_, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from replaceme_core.errors import Conflict, InvalidInput, KeyNotFound
from replaceme_core.ledger.access.key_text import SHOWN_CHARACTERS, hash_of, new_key
from replaceme_core.ledger.access.records import ApiKey, CreatedKey, KeyLimits, NewKey, Scope
from replaceme_core.ledger.access.tables import ApiKeyRow, EndedSessionRow
from replaceme_core.ledger.clock import now
from replaceme_core.ledger.records import Page
from replaceme_core.ledger.transitions import is_job_id
from replaceme_core.ledger.webhooks.tables import WebhookRow

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
        text, limits, seconds = new_key(), new.limits, new.expires_in_seconds
        key_id = str(uuid4())
        self._session.execute(
            insert(ApiKeyRow).values(
                id=key_id,
                owner=new.owner,
                name=new.name,
                hash=hash_of(text),
                start=text[:SHOWN_CHARACTERS],
                scopes=sorted(new.scopes),
                is_local=new.is_local,
                requests_per_minute=limits.requests_per_minute,
                jobs=limits.jobs,
                running_jobs=limits.running_jobs,
                model_bytes=limits.model_bytes,
                tokens=limits.tokens,
                lifetime_seconds=seconds,
                created_at=now(),
                expires_at=None if seconds is None else now(plus_seconds=seconds),
            )
        )
        return CreatedKey(key=self.get(key_id), text=text)

    def find_live(self, key_hash: str, session_id: str = "") -> ApiKey | None:
        """The key with this hash, unless it is revoked or has expired, or the session was ended."""
        is_ended = exists().where(EndedSessionRow.id == session_id)
        return self._one(ApiKeyRow.hash == key_hash, _IS_LIVE, *([~is_ended] if session_id else []))

    def end_session(self, session_id: str, *, seconds: float) -> None:
        """Accept a session of the dashboard no more, which would have ended by itself after `seconds` at the latest."""
        self._session.execute(delete(EndedSessionRow).where(EndedSessionRow.expires_at <= now()))
        with suppress(IntegrityError), self._session.begin_nested():  # it may have been ended before
            self._session.execute(insert(EndedSessionRow).values(id=session_id, expires_at=now(plus_seconds=seconds)))

    def get(self, key_id: str) -> ApiKey:
        """Raises `KeyNotFound`."""
        found = self._one(ApiKeyRow.id == key_id) if is_job_id(key_id) else None
        if found is None:
            raise KeyNotFound(f"there is no key {key_id!r}")
        return found

    def may(self, key_id: str, scope: Scope) -> bool:
        """Whether a key is live and has this scope."""
        found = self._one(ApiKeyRow.id == key_id)
        return found is not None and found.is_live and scope in found.scopes

    def page(self, *, limit: int, cursor: str | None = None, owner: str | None = None) -> Page[ApiKey]:
        """The newest keys first, revoked ones included. Raises `InvalidInput` (field `cursor`)."""
        query = select(ApiKeyRow, _IS_LIVE).order_by(ApiKeyRow.number.desc()).limit(limit + 1)
        if owner is not None:
            query = query.where(ApiKeyRow.owner == owner)
        if cursor is not None:
            last = select(ApiKeyRow.number).where(ApiKeyRow.id == cursor)
            number = self._session.scalar(last) if is_job_id(cursor) else None
            if number is None:
                raise InvalidInput(
                    "the cursor must be the next_cursor of an earlier page, unchanged", field="cursor", value=cursor
                )
            query = query.where(ApiKeyRow.number < number)
        found = [_to_key(row, is_live=is_live) for row, is_live in self._session.execute(query)]
        return Page(items=tuple(found[:limit]), next_cursor=found[limit - 1].id if len(found) > limit else None)

    def revoke(self, key_id: str) -> ApiKey:
        """End a key; it may be repeated. Raises `KeyNotFound`."""
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
        if old.is_local:
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
                scopes=old.scopes,
                limits=old.limits,
                expires_in_seconds=lifetime[0],
            )
        )
        self._session.execute(update(WebhookRow).where(WebhookRow.key_id == key_id).values(key_id=created.key.id))
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
        found = self._session.execute(
            select(ApiKeyRow, _IS_LIVE).where(*conditions), execution_options={"populate_existing": True}
        ).one_or_none()
        return None if found is None else _to_key(found[0], is_live=bool(found[1]))


def _to_key(row: ApiKeyRow, *, is_live: bool) -> ApiKey:
    return ApiKey(
        id=row.id,
        owner=row.owner,
        name=row.name,
        start=row.start,
        scopes=frozenset(Scope(scope) for scope in row.scopes),
        limits=KeyLimits(
            requests_per_minute=row.requests_per_minute,
            jobs=row.jobs,
            running_jobs=row.running_jobs,
            model_bytes=row.model_bytes,
            tokens=row.tokens,
        ),
        is_local=row.is_local,
        is_live=is_live,
        created_at=row.created_at,
        expires_at=row.expires_at,
        last_used_at=row.last_used_at,
        revoked_at=row.revoked_at,
    )
