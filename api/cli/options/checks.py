"""Checks of option values that several commands share."""

import math
from pathlib import Path

import typer

from replaceme_core.errors import InvalidInput
from replaceme_core.fields import BUILTIN_TEXTS

TEXT_SUFFIXES = (".txt", ".jsonl")


def finite(value: float | None) -> float | None:
    """A callback for options: refuses NaN and infinities."""
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter(f"expected a number, got {value}")
    return value


def check_text(path: Path, *, field: str) -> None:
    """Raises `InvalidInput` unless `path` is a readable text file."""
    if not path.is_file():
        hint = "" if field == "text" else f"; expected a .txt or .jsonl file, or {', '.join(BUILTIN_TEXTS)}"
        raise InvalidInput(f"there is no file {path}{hint}", field=field, value=str(path))
    if path.suffix not in TEXT_SUFFIXES:
        raise InvalidInput(f"{path} must end in .txt or .jsonl, which names its format", field=field)
    try:
        with path.open("rb"):
            pass
    except OSError as error:
        raise InvalidInput(f"{path} cannot be read: {error.strerror}", field=field, value=str(path)) from error
