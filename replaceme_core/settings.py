"""One `Settings`, read from the environment (prefix `REPLACEME_`), `.env` or a directory of secrets."""

import ipaddress
import json
import logging
import re
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Annotated
from urllib.parse import quote, urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, DotEnvSettingsSource, EnvSettingsSource, NoDecode, SettingsConfigDict

from replaceme_core.errors import InvalidInput
from replaceme_core.hardware import WorkerKind
from replaceme_core.hub.cache import CACHE_BYTES as HUB_CACHE_BYTES
from replaceme_core.hub.directory import DirectoryHub
from replaceme_core.hub.port import DIRECTORY_PREFIX, Hub, check_token
from replaceme_core.request.admission import OutputRules, check_namespaces
from replaceme_core.runner.memory_limit import MemoryLimit
from replaceme_core.runner.messages import CACHE_BYTES
from replaceme_core.runner.process import Confinement
from replaceme_core.runner.sandbox import SandboxMode, choose_sandbox
from replaceme_core.secrets_box import SecretsBox, key_in_file
from replaceme_core.telemetry import LogFormat
from replaceme_core.validation import in_plain_words

HUGGING_FACE = "https://huggingface.co"
RUN_JOB_TASK = "replaceme.run_job"  # name of the Celery task; its one argument is the job's id
_ENDPOINT = re.compile(r"https?://([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(:\d{1,5})?(/[A-Za-z0-9._~-]+)*/?")
_SHORTEST_KEY = 16
SECRETS_DIRECTORY = Path("/run/secrets")
NO_SETTING = "%s is no setting of this release, and is ignored"
_PREFIX = "REPLACEME_"
_OF_CLIENTS = ("REPLACEME_URL", "REPLACEME_API_KEY")
_OF_KUBERNETES = re.compile(r".*_(SERVICE_HOST|SERVICE_PORT.*|PORT|PORT_\d+_(TCP|UDP|SCTP).*)")
"""What a container of Kubernetes has for each Service of its namespace, such as one named `replaceme-api`."""

logger = logging.getLogger(__name__)


def _matching(pattern: str, expected: str) -> AfterValidator:
    """For a text, and for each of several."""
    whole = re.compile(pattern)

    def check(value: str | tuple[str, ...] | None) -> str | tuple[str, ...] | None:
        for one in (value,) if isinstance(value, str) else value or ():
            if not whole.fullmatch(one):
                raise ValueError(f"expected {expected}, got {one!r}")
        return value

    return AfterValidator(check)


_HOSTS = _matching(
    r"\*|[A-Za-z0-9_.-]+|\[?[0-9A-Fa-f]*:[0-9A-Fa-f:.]+\]?",
    "names or addresses without scheme and port, separated by commas",
)
_ROOT_PATH = _matching(r"(/[A-Za-z0-9._~-]+)*", "a path such as /replaceme, without a slash at its end")
_ORIGINS = _matching(
    r"https?://([a-z0-9.-]+|\[[0-9a-f:.]+\])(:\d{1,5})?", "origins such as https://example.org, separated by commas"
)


def check_networks(names: tuple[str, ...] | None, *, star: str | None = None) -> tuple[str, ...] | None:
    """Networks such as 10.0.0.0/8, and the `star` for any address. Raises `ValueError`."""
    for name in names or ():
        try:
            ipaddress.ip_network("0.0.0.0/0" if name == star else name)
        except ValueError:
            raise ValueError(f"expected networks such as 10.0.0.0/8, separated by commas, got {name!r}") from None
    return names


def check_hub(hub: str) -> str:
    """A directory, or an endpoint without name and password. Raises `ValueError`, which does not repeat it."""
    if not hub.startswith(DIRECTORY_PREFIX) and not _ENDPOINT.fullmatch(hub):
        raise ValueError(
            "expected dir:PATH, or an endpoint such as https://huggingface.co, without a name and a password: it is "
            "named in reports; a token is a setting of its own"
        )
    return hub


def check_server(url: str | None) -> str | None:
    """The address of a database or a broker, or several brokers with semicolons. Raises `ValueError`, which does not

    repeat it, where a part of its password would be taken for a host, a port or a path, and so be named in errors.
    """
    for one in [] if url is None or url.startswith("sqlite") else url.split(";"):
        try:
            parts = urlsplit(one)
            is_clear = parts.netloc.count("@") == ("@" in one) and "@" not in parts.path
            is_clear = is_clear and (parts.port is None or parts.hostname is not None)
        except ValueError:  # whose message has what it took for the port
            is_clear = False
        if not is_clear:
            raise ValueError(
                "expected an address such as redis://:PASSWORD@HOST:PORT; in its password, @ is written as %40, "
                "/ as %2F, : as %3A, ; as %3B, ? as %3F, # as %23, [ as %5B and % as %25"
            )
    return url


def _listed(value: object) -> object:
    """The names in a comma-separated list; `None` for an empty one."""
    if isinstance(value, str):
        return tuple(name.strip() for name in value.split(",") if name.strip()) or None
    return value


def _decoded(value: object) -> object:
    """What a text is in JSON; a text that is none as it is."""
    if isinstance(value, str):
        with suppress(ValueError):
            return json.loads(value)
    return value


def _check_keys(keys: SecretStr | None) -> SecretStr | None:
    return keys if keys is not None and SecretsBox(keys.get_secret_value()).has_keys else None


def _check_token(token: SecretStr | None) -> SecretStr | None:
    return check_token(token) if token is not None and token.get_secret_value().strip() else token


def _check_metrics_key(key: SecretStr | None) -> SecretStr | None:
    if key is not None and len(key) < _SHORTEST_KEY:
        raise ValueError(f"expected at least {_SHORTEST_KEY} characters, as `openssl rand -hex 32` prints them")
    return key


Names = Annotated[tuple[str, ...] | None, NoDecode, BeforeValidator(_listed)]
Seconds = Annotated[float, Field(le=3_153_600_000)]  # a hundred years: databases and clocks have no room for more


class Settings(BaseSettings):
    """All settings of all processes; `docs/reference/settings.md` says what each is for.

    A limit of 0 is none. The database and the broker are derived from `data` where they are `None`; see the properties
    below.
    """

    model_config = SettingsConfigDict(
        env_prefix=_PREFIX,
        env_file=".env",
        env_ignore_empty=True,  # `NAME=` is no URL, and no path: it would be the working directory
        extra="ignore",
        secrets_dir=SECRETS_DIRECTORY if SECRETS_DIRECTORY.is_dir() else None,
        frozen=True,
        hide_input_in_errors=True,  # it may be a key or a password
        populate_by_name=True,  # two settings have other names in the environment than here
    )

    data: Path = Path("data")
    database_url: Annotated[str | None, AfterValidator(check_server)] = None
    broker_url: Annotated[str | None, AfterValidator(check_server)] = None
    hub: Annotated[str, AfterValidator(check_hub)] = HUGGING_FACE
    hub_read_token: Annotated[SecretStr | None, AfterValidator(_check_token)] = None
    hub_write_token: Annotated[SecretStr | None, AfterValidator(_check_token)] = None
    output_namespaces: Annotated[Names, AfterValidator(check_namespaces)] = None
    allow_overwrite: bool = False
    allow_publishing_private: bool = False
    calibration_root: Path | None = None
    tasks_directory: Path | None = None
    lease_seconds: Seconds = Field(default=60, gt=0)
    sweep_seconds: Seconds = Field(default=10, gt=0)
    max_attempts: int = Field(default=3, ge=1)
    default_worker_kind: WorkerKind | None = Field(default=None, validation_alias="REPLACEME_DEFAULT_ROUTE")
    worker_kinds: Annotated[tuple[WorkerKind, ...] | None, NoDecode, BeforeValidator(_decoded)] = Field(
        default=None, min_length=1, validation_alias="REPLACEME_ROUTES"
    )
    allowed_hosts: Annotated[Names, _HOSTS] = None
    max_connections: int = Field(default=1000, ge=16)
    require_key: bool = False
    allow_unauthenticated: bool = False
    requests_per_minute: int = Field(default=30_000, ge=0)
    most_jobs: int = Field(default=10_000, ge=0)
    most_model_bytes: int = Field(default=0, ge=0)
    most_tokens: int = Field(default=268_435_456, ge=0)
    root_path: Annotated[str, _ROOT_PATH] = ""
    trusted_proxies: Annotated[Names, AfterValidator(partial(check_networks, star="*"))] = None
    cors_origins: Annotated[Names, _ORIGINS] = None
    log_format: LogFormat = LogFormat.JSON
    metrics_key: Annotated[SecretStr | None, AfterValidator(_check_metrics_key)] = None
    idempotency_seconds: Seconds = Field(default=86_400, gt=0)
    retention_seconds: Seconds | None = Field(default=None, gt=0)
    max_queue_seconds: float | None = Field(default=None, ge=1, le=31_536_000)
    max_runtime_seconds: float = Field(default=604_800, ge=1, le=31_536_000)
    stage_seconds: Seconds = Field(default=86_400, ge=0)
    drain_seconds: Seconds = Field(default=10, ge=0)
    cancel_grace_seconds: Seconds = Field(default=2, ge=0)
    hub_patience_seconds: Seconds = Field(default=120, ge=0)
    runner_command: Annotated[tuple[str, ...] | None, NoDecode, BeforeValidator(_decoded)] = Field(
        default=None, min_length=1
    )
    sandbox: SandboxMode = SandboxMode.AUTO
    sandbox_user: str | None = Field(default=None, min_length=1)
    runner_memory_bytes: int | None = Field(default=None, ge=0)
    statistics_cache_bytes: int = Field(default=CACHE_BYTES, ge=0)
    hub_cache_bytes: int = Field(default=HUB_CACHE_BYTES, gt=0)
    worker_memory_bytes: int | None = Field(default=None, ge=1)
    worker_gpu_memory_bytes: int | None = Field(default=None, ge=1)
    worker_disk_bytes: int | None = Field(default=None, ge=1)
    encryption_key: Annotated[SecretStr | None, AfterValidator(_check_keys)] = None
    deliver_webhooks: bool = True
    webhook_allow_http: bool = False
    webhook_networks: Annotated[Names, AfterValidator(check_networks)] = None
    webhook_timeout_seconds: float = Field(default=10, gt=0, le=60)
    webhook_log_seconds: Seconds = Field(default=1_209_600, gt=0)

    @model_validator(mode="before")
    @classmethod
    def _without_empty(cls, given: dict[str, object]) -> dict[str, object]:
        """An empty file is as none, as an empty variable is."""
        return {name: value for name, value in given.items() if value != ""}

    def output_rules(
        self, *, is_own: Callable[[str, str], bool], namespaces: tuple[str, ...] | None = None
    ) -> OutputRules:
        """The rules for an owner with these `namespaces`; `None`: those of everybody."""
        return OutputRules(
            namespaces=namespaces or self.output_namespaces,
            allow_overwrite=self.allow_overwrite,
            allow_publishing_private=self.allow_publishing_private,
            is_own=is_own,
        )

    def open_hub(self, *, token: str | None = None) -> Hub:
        """A directory hub for `dir:PATH`, else the Hub at that endpoint.

        With `token`, it is used for everything in place of the two of the settings. A directory hub uses none.
        """
        if self.hub_address is None:
            root = Path(self.hub.removeprefix(DIRECTORY_PREFIX)).expanduser().resolve()
            if root.is_relative_to(self.resolved_data):  # elsewhere it is not created: it may be a missing mount
                root.mkdir(parents=True, exist_ok=True)
            return DirectoryHub(root)
        # imported here because the library reads its environment, and takes half a second, at import
        from replaceme_core.hub.huggingface import HuggingFaceHub

        read, write = (
            token if token or stored is None else stored.get_secret_value()
            for stored in (self.hub_read_token, self.hub_write_token)
        )
        return HuggingFaceHub(
            self.hub_address,
            read_token=read,
            write_token=write,
            cache=self.hub_cache,
            cache_bytes=self.hub_cache_bytes,
        )

    def confinement(self) -> Confinement:
        """How runners are confined, tried on this machine. Raises `InvalidInput` as `choose_sandbox` does."""
        sandbox = choose_sandbox(self.sandbox, user=self.sandbox_user, own_command=self.runner_command is not None)
        return Confinement(sandbox=sandbox, memory=MemoryLimit.of_setting(self.runner_memory_bytes))

    def secrets_box(self) -> SecretsBox:
        """The box with the keys of the settings or, for a database that is a file here, one in a file in `data`."""
        if self.encryption_key is not None:
            return SecretsBox(self.encryption_key.get_secret_value())
        if self.resolved_database_url.startswith("sqlite"):
            return SecretsBox(key_in_file(self.resolved_data / "encryption-key"))
        return SecretsBox("")

    @property
    def resolved_data(self) -> Path:
        return self.data.expanduser().resolve()

    @property
    def resolved_database_url(self) -> str:
        return self.database_url or f"sqlite:///{quote(str(self.resolved_data / 'replaceme.sqlite3'))}"

    @property
    def resolved_broker_url(self) -> str:
        return self.broker_url or "filesystem://"

    @property
    def hub_address(self) -> str | None:
        """Where the pages of its repositories are; `None` for a directory."""
        return None if self.hub.startswith(DIRECTORY_PREFIX) else self.hub.rstrip("/")

    @property
    def broker_directory(self) -> Path:
        return self.resolved_data / "broker"

    @property
    def workspace(self) -> Path:
        return self.resolved_data / "workspace"

    @property
    def api_key_file(self) -> Path:
        """The key that `replaceme serve` makes on the embedded default, for the command line on this machine."""
        return self.resolved_data / "api-key"

    @property
    def tasks_path(self) -> str | None:
        return None if self.tasks_directory is None else str(self.tasks_directory.expanduser().resolve())

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

    @property
    def embedded_hub(self) -> Path | None:
        """The directory that acts as the Hub on the embedded default; `None` where a Hub was named."""
        return self.resolved_data / "hub" if self.uses_embedded_default and "hub" not in self.model_fields_set else None


def read_settings(**given: object) -> Settings:
    """The settings from the environment, overridden by those `given`. Raises `InvalidInput` that names a wrong one."""
    try:
        return Settings.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0]).upper().removeprefix(_PREFIX)  # two have their whole name as their alias
        raise InvalidInput(f"{_PREFIX}{name}: {in_plain_words(first['msg'])}") from error


def unknown_settings() -> list[str]:
    """Variables of the environment and of `.env` that have our prefix and are no setting, such as misspelt ones."""
    of_services = (str(field.validation_alias or _PREFIX + name) for name, field in Settings.model_fields.items())
    known = {*_OF_CLIENTS, *map(str.upper, of_services)}
    sources = (EnvSettingsSource(Settings), DotEnvSettingsSource(Settings))
    given = {name.upper() for source in sources for name in source.env_vars}
    unknown = (name for name in given - known if name.startswith(_PREFIX))
    return sorted(name for name in unknown if not _OF_KUBERNETES.fullmatch(name))


def warn_of_unknown_settings() -> None:
    """No error: while releases are exchanged, both have the same environment."""
    for name in unknown_settings():
        logger.warning(NO_SETTING, name)
