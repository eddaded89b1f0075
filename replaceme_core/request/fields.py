"""The fields that specifications and settings are made of: how each is written, and what is said of a wrong one."""

import re
from enum import StrEnum
from types import UnionType
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints
from pydantic_core import PydanticCustomError

from replaceme_core.hub.port import REPOSITORY

BUILTIN_PREFIX, FILE_PREFIX = "builtin:", "file:"
GENERAL = "builtin:general"
PARTS_OF_GENERAL = ("builtin:prose", "builtin:dialogue", "builtin:code", "builtin:instructions")
BUILTIN_TEXTS = (GENERAL, *PARTS_OF_GENERAL, "builtin:pydoc-topics")
FILE_NAME = re.compile(r"file:(?!(?:.*/)?\.\.?/)[^/\x00-\x1f\x7f][^\x00-\x1f\x7f]*(?:\.(?:txt|jsonl)|(?<!/)/)")
MOST_NAMED_BLOCKS = 10_000
LONGEST_SECONDS = 31_536_000  # a year


class Frozen(BaseModel):
    """A part of a request.

    The docstring of a field describes it in the API; its first paragraph is the help of its command-line option.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


def wrong(field: str, message: str) -> PydanticCustomError:
    """What a validator of a whole object raises about one of its fields, a dotted path."""
    return PydanticCustomError("wrong", "{message}", {"field": field, "message": message})


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
            f"expected one of {known}, file:NAME.txt, file:NAME.jsonl, file:NAME/ (a directory of images) or a Hub "
            f"data set as org/name, got {value!r}"
        )
    return value


def as_tuple(value: object) -> object:
    """JSON has lists only; strict mode would refuse one where a tuple is declared."""
    return tuple(value) if isinstance(value, list) else value


def in_short(schema: Any, **kinds: type | UnionType) -> BeforeValidator:
    """Let a plain value of one of `kinds` stand for the object with nothing but this field; `schema` says both."""

    def lengthen(value: object) -> object:
        return next(({name: value} for name, kind in kinds.items() if isinstance(value, kind)), value)

    return BeforeValidator(lengthen, json_schema_input_type=schema)


def ending_of(job_id: str) -> str:
    """How the name of a repository ends that is named after this job, because its request names none."""
    return f"-{job_id[:8]}"


def length(least: int, most: int, *, description: str | None = None) -> Any:
    """How many items a list has. Behind a validator the bounds would not be in the JSON schema without `extra`."""
    extra: dict[str, Any] = {"minItems": least, "maxItems": most}
    return Field(min_length=least, max_length=most, description=description, json_schema_extra=extra)


def _few_blocks(drop: object) -> object:
    """Before each of them is looked at."""
    if isinstance(drop, list) and len(drop) > MOST_NAMED_BLOCKS:
        raise ValueError(f"name at most {MOST_NAMED_BLOCKS:,} blocks")
    return as_tuple(drop)


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


RepositoryId = Annotated[str, BeforeValidator(lambda v: _repository(v) if isinstance(v, str) else v)]
TextSource = Annotated[str, BeforeValidator(lambda v: _text_source(v) if isinstance(v, str) else v)]
Ratio = Annotated[float, Field(gt=0, lt=1)]
BlockIndices = Annotated[
    tuple[Annotated[int, Field(ge=0, le=MOST_NAMED_BLOCKS)], ...],
    BeforeValidator(_few_blocks),
    AfterValidator(_removable),
    Field(json_schema_extra={"minItems": 1, "uniqueItems": True}),  # which `_removable` checks, and says more
]
LabelText = Annotated[str, StringConstraints(min_length=1, max_length=63, pattern=r"^[A-Za-z0-9][A-Za-z0-9_./-]*$")]
MOST_LABELS = 32
Labels = Annotated[
    dict[LabelText, LabelText], Field(max_length=MOST_LABELS, json_schema_extra={"additionalProperties": False})
]
CREDENTIAL_NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]*$"
CredentialName = Annotated[str, StringConstraints(min_length=1, max_length=63, pattern=CREDENTIAL_NAME)]
Seconds = Annotated[float, Field(ge=1, le=LONGEST_SECONDS)]
# a revision, a column, a split ...: a database or a log cannot take every control character
Name = Annotated[str, StringConstraints(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f]+$")]
