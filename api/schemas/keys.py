"""API keys and their owners."""

from datetime import datetime
from typing import Annotated, Self

from pydantic import BeforeValidator, Field, StringConstraints

from api.schemas.body import Body, Query
from replaceme_core.ledger.keys import ApiKey, CreatedKey, KeyLimits, NewKey, Scope
from replaceme_core.request.admission import check_namespaces
from replaceme_core.request.fields import LONGEST_SECONDS, Frozen, Name, as_tuple, length, one_of

MOST_OVERLAP_SECONDS = 2_592_000  # 30 days
_LARGEST = 2**31 - 1
_LARGEST_SIZE = 2**53 - 1  # the largest whole number that every JSON reader keeps

KeyId = Annotated[str, StringConstraints(min_length=1, max_length=36)]
OwnerName = Annotated[str, StringConstraints(min_length=1, max_length=100, pattern=r"^[A-Za-z0-9][A-Za-z0-9_.@-]*$")]
Scopes = Annotated[tuple[Annotated[Scope, one_of(Scope)], ...], BeforeValidator(as_tuple), length(1, len(Scope))]
Namespaces = Annotated[
    tuple[Annotated[str, StringConstraints(max_length=96)], ...],
    BeforeValidator(as_tuple),
    length(1, 100),
    BeforeValidator(lambda names: check_namespaces(names) if _are_texts(names) else names),
]


def _are_texts(names: object) -> bool:
    return isinstance(names, list) and all(isinstance(name, str) for name in names)


class KeyLimitsBody(Frozen):
    """Limits of a key; null: the default of the service. 0: no limit."""

    requests_per_minute: int | None = Field(default=None, ge=0, le=_LARGEST)
    jobs: int | None = Field(default=None, ge=0, le=_LARGEST, description="queued and running")
    running_jobs: int | None = Field(
        default=None, ge=0, le=_LARGEST, description="running at the same time; null: no limit"
    )
    model_bytes: int | None = Field(default=None, ge=0, le=_LARGEST_SIZE, description="weights of a model")
    tokens: int | None = Field(default=None, ge=0, le=_LARGEST_SIZE, description="calibration tokens of a job")

    @classmethod
    def of(cls, limits: KeyLimits) -> Self:
        return cls(
            requests_per_minute=limits.requests_per_minute,
            jobs=limits.jobs,
            running_jobs=limits.running_jobs,
            model_bytes=limits.model_bytes,
            tokens=limits.tokens,
        )


class KeyRequest(Frozen):
    """A key to create. `owner` is the one whose jobs it sees, by default that of the key which creates it."""

    name: Annotated[Name, Field(max_length=100)]
    owner: OwnerName | None = None
    scopes: Scopes = (Scope.JOBS_READ, Scope.JOBS_WRITE)
    expires_in_seconds: int | None = Field(default=None, ge=1, le=10 * LONGEST_SECONDS, description="null: never")
    limits: KeyLimitsBody = KeyLimitsBody()

    def to_new(self, *, owner: str) -> NewKey:
        limits = KeyLimits(**dict(self.limits))
        return NewKey(
            owner=self.owner or owner,
            name=self.name,
            scopes=frozenset(self.scopes),
            limits=limits,
            expires_in_seconds=self.expires_in_seconds,
        )


class KeyRotationRequest(Frozen):
    """`overlap_seconds`: how long the old key is still valid."""

    overlap_seconds: int = Field(default=86_400, ge=0, le=MOST_OVERLAP_SECONDS)


class OwnerRequest(Frozen):
    """`output_namespaces`: where results of the owner may go; null: where those of everybody may."""

    output_namespaces: Namespaces | None


class KeyBody(Body):
    """An API key without its text. `start` is the beginning of the text, to recognise it by."""

    id: str
    owner: str
    name: str
    start: str
    scopes: tuple[Scope, ...]
    limits: KeyLimitsBody
    is_live: bool
    created_at: datetime
    expires_at: datetime | None
    last_used_at: datetime | None
    revoked_at: datetime | None

    @classmethod
    def of(cls, found: ApiKey, **more: object) -> Self:
        return cls(
            **more,
            id=found.id,
            owner=found.owner,
            name=found.name,
            start=found.start,
            scopes=tuple(sorted(found.scopes)),
            limits=KeyLimitsBody.of(found.limits),
            is_live=found.is_live,
            created_at=found.created_at,
            expires_at=found.expires_at,
            last_used_at=found.last_used_at,
            revoked_at=found.revoked_at,
        )


class CreatedKeyBody(KeyBody):
    """A new key. `key` is its text: it is shown here once, and cannot be shown again."""

    key: str

    @classmethod
    def created(cls, created: CreatedKey) -> Self:
        return cls.of(created.key, key=created.text)


class OwnerBody(Body):
    owner: str
    output_namespaces: tuple[str, ...] | None


class KeysQuery(Query):
    limit: Annotated[int, Field(ge=1, le=200)] = 50
    cursor: Annotated[str, Field(min_length=1, max_length=500)] | None = None
    owner: OwnerName | None = None
