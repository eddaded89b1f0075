"""The fields that specifications and settings are made of: how each is written, and what is said of a wrong one."""

import ipaddress
import re
from enum import StrEnum
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints

_NAME = r"[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,94}[A-Za-z0-9_])?"
REPOSITORY = re.compile(f"{_NAME}/{_NAME}")
BUILTIN_PREFIX, FILE_PREFIX = "builtin:", "file:"
BUILTIN_TEXTS = (
    "builtin:general",
    "builtin:prose",
    "builtin:dialogue",
    "builtin:code",
    "builtin:instructions",
    "builtin:pydoc-topics",
)
FILE_NAME = re.compile(r"file:(?!(?:.*/)?\.\.?/)[^/\x00-\x1f\x7f][^\x00-\x1f\x7f]*\.(?:txt|jsonl)")
_HOST = re.compile(r"\*|[A-Za-z0-9_.-]+|\[?[0-9A-Fa-f]*:[0-9A-Fa-f:.]+\]?")
_PATH = re.compile(r"(/[A-Za-z0-9._~-]+)+")
_ORIGIN = re.compile(r"https?://[a-z0-9.-]+(:\d{1,5})?|https?://\[[0-9a-f:.]+\](:\d{1,5})?")
_ENDPOINT = re.compile(r"https?://([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(:\d{1,5})?(/[A-Za-z0-9._~-]+)*/?")
DIRECTORY_PREFIX = "dir:"
"""Of a Hub that is a directory."""
_MOST_NAMED_BLOCKS = 10_000
LONGEST_SECONDS = 31_536_000  # a year


class Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


def _repository(value: str) -> str:
    if not REPOSITORY.fullmatch(value) or ".." in value or "--" in value or value.endswith(".git"):
        raise ValueError(f'expected a repository as "org/name", got {value!r}')
    return value


def _text_source(value: str) -> str:
    if value in BUILTIN_TEXTS or FILE_NAME.fullmatch(value):
        return value
    if value.startswith(BUILTIN_PREFIX):
        raise ValueError(f"there is no built-in text {value!r}; available: {', '.join(BUILTIN_TEXTS)}")
    if value.startswith(FILE_PREFIX) or not REPOSITORY.fullmatch(value):
        known = ", ".join(BUILTIN_TEXTS)
        raise ValueError(
            f"expected one of {known}, file:NAME.txt, file:NAME.jsonl or a Hub data set as org/name, got {value!r}"
        )
    return value


def as_tuple(value: object) -> object:
    """JSON has lists only; strict mode would refuse one where a tuple is declared."""
    return tuple(value) if isinstance(value, list) else value


def ending_of(job_id: str) -> str:
    """How the name of a repository ends that is named after this job, because its request names none."""
    return f"-{job_id[:8]}"


def length(least: int, most: int, *, description: str | None = None) -> Any:
    """How many items a list has. Behind a validator the bounds would not be in the JSON schema without `extra`."""
    extra: dict[str, Any] = {"minItems": least, "maxItems": most}
    return Field(min_length=least, max_length=most, description=description, json_schema_extra=extra)


def _removable(drop: tuple[int, ...]) -> tuple[int, ...]:
    """The named blocks in order; whether they exist is known once the model's config is read."""
    if not drop:
        raise ValueError("name at least one block")
    if len(set(drop)) != len(drop):
        raise ValueError("a block is named twice")
    if 0 in drop:
        raise ValueError("block 0 cannot be removed: no kept block stands before it to take over its work")
    return tuple(sorted(drop))


def one_of(choices: type[StrEnum]) -> BeforeValidator:
    """JSON has strings only; strict mode would refuse one where an enum is declared."""

    def choose(value: object) -> object:
        if isinstance(value, str):
            try:
                return choices(value)
            except ValueError:
                raise ValueError(f"expected one of {', '.join(choices)}, got {value!r}") from None
        return value

    return BeforeValidator(choose)


def check_hosts(names: tuple[str, ...] | None) -> tuple[str, ...] | None:
    """Names or addresses of hosts; one star is any. Raises `ValueError`."""
    for name in names or ():
        if not _HOST.fullmatch(name):
            raise ValueError(f"expected names or addresses without scheme and port, separated by commas, got {name!r}")
    return names


def check_networks(names: tuple[str, ...] | None) -> tuple[str, ...] | None:
    """Networks such as 10.0.0.0/8. Raises `ValueError`."""
    for name in names or ():
        try:
            ipaddress.ip_network(name)
        except ValueError:
            raise ValueError(f"expected networks such as 10.0.0.0/8, separated by commas, got {name!r}") from None
    return names


def check_proxies(names: tuple[str, ...] | None) -> tuple[str, ...] | None:
    """Networks, or a star for any address. Raises `ValueError`."""
    check_networks(tuple(name for name in names or () if name != "*"))
    return names


def check_root_path(path: str) -> str:
    """A path without a slash at its end, or nothing. Raises `ValueError`."""
    if path and not _PATH.fullmatch(path):
        raise ValueError(f"expected a path such as /replaceme, without a slash at its end, got {path!r}")
    return path


def check_origins(names: tuple[str, ...] | None) -> tuple[str, ...] | None:
    """Origins of the web, such as https://example.org. Raises `ValueError`."""
    for name in names or ():
        if not _ORIGIN.fullmatch(name):
            raise ValueError(f"expected origins such as https://example.org, separated by commas, got {name!r}")
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
            is_clear = parts.netloc.count("@") == ("@" in one) and (parts.port is None or parts.hostname is not None)
        except ValueError:  # whose message has what it took for the port
            is_clear = False
        if not is_clear:
            raise ValueError(
                "expected an address such as redis://:PASSWORD@HOST:PORT; in its password, @ is written as %40, "
                "/ as %2F, : as %3A, ; as %3B, ? as %3F, # as %23, [ as %5B and % as %25"
            )
    return url


RepositoryId = Annotated[str, BeforeValidator(lambda v: _repository(v) if isinstance(v, str) else v)]
TextSource = Annotated[str, BeforeValidator(lambda v: _text_source(v) if isinstance(v, str) else v)]
Ratio = Annotated[float, Field(gt=0, lt=1)]
BlockIndices = Annotated[
    tuple[Annotated[int, Field(ge=0, le=_MOST_NAMED_BLOCKS)], ...],
    BeforeValidator(as_tuple),
    AfterValidator(_removable),
    Field(json_schema_extra={"minItems": 1, "uniqueItems": True}),  # which `_removable` checks, and says more
]
LabelText = Annotated[str, StringConstraints(min_length=1, max_length=63, pattern=r"^[A-Za-z0-9][A-Za-z0-9_./-]*$")]
Labels = Annotated[dict[LabelText, LabelText], Field(max_length=32, json_schema_extra={"additionalProperties": False})]
CREDENTIAL_NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]*$"
CredentialName = Annotated[str, StringConstraints(min_length=1, max_length=63, pattern=CREDENTIAL_NAME)]
Seconds = Annotated[float, Field(ge=1, le=LONGEST_SECONDS)]
# a revision, a column, a split ...: a database or a log cannot take every control character
Name = Annotated[str, StringConstraints(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f]+$")]
