"""Requests for the runner, validated. Errors name the option's field as the HTTP API does."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from replaceme_core.errors import InvalidInput
from replaceme_core.validation import problems

M = TypeVar("M", bound=BaseModel)


def validated(model: type[M], fields: Mapping[str, object]) -> M:
    """A `model` with these fields. Raises `InvalidInput` that names the first invalid one."""
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        first = problems(error.errors(), sent=fields, schema=model.model_json_schema())[0]
        raise InvalidInput(
            f"{first['field']}: {first['message']}", field=first["field"], value=first["value"]
        ) from error


def clean_name(directory: Path) -> str:
    """The name of a directory as the name of a repository.

    >>> clean_name(Path("/models/my model (v2).git"))
    'my-model-v2'
    """
    name = re.sub(r"[^A-Za-z0-9_.]+", "-", directory.resolve().name.removesuffix(".git"))
    name = re.sub(r"([.-])[.-]+", r"\1", name)[:80].strip("._-")
    return name.removesuffix(".git").strip("._-") or "model"
