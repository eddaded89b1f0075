"""One `Settings`, read from the environment (prefix `REPLACEME_`), `.env` or a directory of secrets."""

import ipaddress
import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from replaceme_core.admission.output import RESERVED_NAMESPACES, OutputRules
from replaceme_core.admission.worker_kind import WorkerKind
from replaceme_core.fields import REPOSITORY
from replaceme_core.runner.messages import CACHE_BYTES
from replaceme_core.spec import MOST_SHARDS

HUGGING_FACE = "https://huggingface.co"
RUN_JOB_TASK = "replaceme.run_job"  # name of the Celery task; its one argument is the job's id
_HOST = re.compile(r"\*|[A-Za-z0-9_.-]+|\[?[0-9A-Fa-f]*:[0-9A-Fa-f:.]+\]?")
_PATH = re.compile(r"(/[A-Za-z0-9._~-]+)+")
_ORIGIN = re.compile(r"https?://[a-z0-9.-]+(:\d{1,5})?|https?://\[[0-9a-f:.]+\](:\d{1,5})?")
SECRETS_DIRECTORY = Path("/run/secrets")


def _listed(value: object) -> object:
    """The names in a comma-separated list; `None` for an empty one."""
    if isinstance(value, str):
        return tuple(name.strip() for name in value.split(",") if name.strip()) or None
    return value


def _check_namespaces(names: tuple[str, ...] | None) -> tuple[str, ...] | None:
    for name in names or ():
        if not REPOSITORY.fullmatch(f"{name}/x") or name.lower() in RESERVED_NAMESPACES:
            raise ValueError(f"expected users or organisations of the Hub, separated by commas, got {name!r}")
    return names


def _check_hosts(names: tuple[str, ...] | None) -> tuple[str, ...] | None:
    for name in names or ():
        if not _HOST.fullmatch(name):
            raise ValueError(f"expected names or addresses without scheme and port, separated by commas, got {name!r}")
    return names


def _check_root_path(path: str) -> str:
    if path and not _PATH.fullmatch(path):
        raise ValueError(f"expected a path such as /replaceme, without a slash at its end, got {path!r}")
    return path


def _check_networks(names: tuple[str, ...] | None) -> tuple[str, ...] | None:
    for name in names or ():
        try:
            if name != "*":
                ipaddress.ip_network(name)
        except ValueError:
            raise ValueError(f"expected addresses or networks such as 10.0.0.0/8, or *, got {name!r}") from None
    return names


def _check_origins(names: tuple[str, ...] | None) -> tuple[str, ...] | None:
    for name in names or ():
        if not _ORIGIN.fullmatch(name):
            raise ValueError(f"expected origins such as https://example.org, separated by commas, got {name!r}")
    return names


Names = Annotated[tuple[str, ...] | None, NoDecode, BeforeValidator(_listed)]


class Settings(BaseSettings):
    """All settings of all processes. Values that are `None` are derived from `data`; see the properties below."""

    model_config = SettingsConfigDict(
        env_prefix="REPLACEME_",
        env_file=".env",
        extra="ignore",
        secrets_dir=SECRETS_DIRECTORY if SECRETS_DIRECTORY.is_dir() else None,
        frozen=True,
        populate_by_name=True,  # two settings have other names in the environment than here
    )

    data: Path = Field(default=Path("data"), description="database, broker, hub directory, workspace and cache")
    database_url: str | None = Field(default=None, description="postgresql+psycopg://... or sqlite:///...")
    broker_url: str | None = Field(default=None, description="redis://... or filesystem://")
    hub: str = Field(default=HUGGING_FACE, description="an endpoint, or dir:PATH for a directory that acts as one")
    hub_read_token: SecretStr | None = None
    hub_write_token: SecretStr | None = None
    output_namespaces: Annotated[Names, AfterValidator(_check_namespaces)] = Field(
        default=None, description="where results may go, separated by commas; None: the owner of the write token"
    )
    allow_overwrite: bool = Field(default=False, description="whether `overwrite` may be said of an output")
    allow_publishing_private: bool = Field(
        default=False, description="whether what was made from private repositories may be published"
    )
    calibration_root: Path | None = Field(default=None, description="directory of file: calibration texts")
    lease_seconds: float = Field(default=60, gt=0)
    sweep_seconds: float = Field(default=10, gt=0)
    max_attempts: int = Field(default=3, ge=1)
    default_worker_kind: WorkerKind | None = Field(
        default=None,
        validation_alias="REPLACEME_DEFAULT_ROUTE",
        description="cpu or gpu, for jobs that name no device; None: any worker",
    )
    worker_kinds: tuple[WorkerKind, ...] | None = Field(
        default=None,
        min_length=1,
        validation_alias="REPLACEME_ROUTES",
        description="the kinds of workers that exist; jobs for another kind are refused. None: all kinds",
    )
    allowed_hosts: Annotated[Names, AfterValidator(_check_hosts)] = Field(
        default=None,
        description="hosts that the API answers to besides this machine's own, separated by commas; *: any",
    )
    max_connections: int = Field(default=1000, ge=16, description="connections that the API keeps open at once")
    allow_unauthenticated: bool = Field(
        default=False, description="whether the API may listen where other machines can reach it"
    )
    root_path: Annotated[str, AfterValidator(_check_root_path)] = Field(
        default="", description="the path under which a proxy shows the API, such as /replaceme"
    )
    trusted_proxies: Annotated[Names, AfterValidator(_check_networks)] = Field(
        default=None,
        description="addresses or networks whose forwarded headers count, separated by commas; *: any",
    )
    cors_origins: Annotated[Names, AfterValidator(_check_origins)] = Field(
        default=None, description="origins whose pages may use the API from a browser, separated by commas"
    )
    idempotency_seconds: float = Field(default=86_400, gt=0, description="how long an Idempotency-Key is kept")
    retention_seconds: float | None = Field(
        default=None, gt=0, description="how long a finished job is kept; None: until somebody deletes it"
    )
    max_queue_seconds: float | None = Field(
        default=None, ge=1, le=31_536_000, description="for jobs that name none; None: no limit"
    )
    max_runtime_seconds: float = Field(default=604_800, ge=1, le=31_536_000, description="for jobs that name none")
    drain_seconds: float = Field(
        default=10, ge=0, description="how long a worker that shuts down continues its job before it releases it"
    )
    cancel_grace_seconds: float = Field(default=2, ge=0, description="between SIGTERM and SIGKILL to a runner")
    hub_patience_seconds: float = Field(default=120, ge=0, description="how long an unreachable Hub is retried")
    runner_command: tuple[str, ...] | None = Field(
        default=None,
        description="starts a runner in another way than `python -P -m worker.runner`: a container, a sandbox",
    )
    statistics_cache_bytes: int = Field(
        default=CACHE_BYTES, ge=0, description="limit of the activation cache for later jobs; 0: no cache"
    )

    shard_tokens: int = Field(
        default=4_194_304,
        ge=0,
        description="calibration tokens from which on a job is divided into shards; 0: only on request",
    )
    shards: int = Field(default=8, ge=2, le=MOST_SHARDS, description="the number of shards of such a job")

    def output_rules(self, *, is_own: Callable[[str, str], bool]) -> OutputRules:
        return OutputRules(
            namespaces=self.output_namespaces,
            allow_overwrite=self.allow_overwrite,
            allow_publishing_private=self.allow_publishing_private,
            is_own=is_own,
        )

    @property
    def resolved_data(self) -> Path:
        return self.data.expanduser().resolve()

    @property
    def resolved_database_url(self) -> str:
        return self.database_url or f"sqlite:///{self.resolved_data / 'replaceme.sqlite3'}"

    @property
    def resolved_broker_url(self) -> str:
        return self.broker_url or "filesystem://"

    @property
    def broker_directory(self) -> Path:
        return self.resolved_data / "broker"

    @property
    def workspace(self) -> Path:
        return self.resolved_data / "workspace"

    @property
    def hub_cache(self) -> Path:
        return self.resolved_data / "hub-cache"

    @property
    def statistics_cache(self) -> Path:
        return self.resolved_data / "cache" / "statistics"

    @property
    def uses_embedded_default(self) -> bool:
        """True when neither a database nor a broker was named."""
        return self.database_url is None and self.broker_url is None
