"""Values about who may do what: frozen, never rows, and never a secret that is stored as a hash or encrypted."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

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


@dataclass(frozen=True, kw_only=True)
class KeyLimits:
    """Limits of one key; `None`: that of the settings. 0: no limit.

    `requests_per_minute`; `jobs` that are queued or running; of the jobs that were submitted with this key,
    `running_jobs` at the same time (no setting has it); bytes of the weights of a model; calibration tokens.
    """

    requests_per_minute: int | None = None
    jobs: int | None = None
    running_jobs: int | None = None
    model_bytes: int | None = None
    tokens: int | None = None


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


@dataclass(frozen=True, kw_only=True)
class ApiKey:
    """What is known about a key; the key itself is not. `is_live`: neither revoked nor expired, when it was read."""

    id: str
    owner: str
    name: str
    start: str
    scopes: frozenset[Scope]
    limits: KeyLimits
    is_local: bool
    is_live: bool
    created_at: datetime
    expires_at: datetime | None
    last_used_at: datetime | None
    revoked_at: datetime | None


@dataclass(frozen=True, kw_only=True)
class CreatedKey:
    """A new key with its text, which is known only now."""

    key: ApiKey
    text: str


@dataclass(frozen=True, kw_only=True)
class Credential:
    """A credential without its token."""

    owner: str
    name: str
    created_at: datetime
    updated_at: datetime
