"""What `compress` and `submit` take to describe the calibration text."""

from pathlib import Path
from typing import Annotated

import typer

from api.cli.checks import check_text, finite
from replaceme_core.errors import InvalidInput
from replaceme_core.fields import BUILTIN_TEXTS

Samples = Annotated[int | None, typer.Option(help="Sequences of text.")]
MaxLength = Annotated[int | None, typer.Option(help="Tokens in a sequence.")]
SelfGenerated = Annotated[
    float | None,
    typer.Option(callback=finite, help="Share of the samples that the model writes itself, 0 to 1; none by default."),
]


def find_calibration(calibration: str) -> Path | None:
    """The file that `--calibration` names; `None` for a built-in text. Raises `InvalidInput`."""
    if calibration in BUILTIN_TEXTS:
        return None
    if calibration.startswith("builtin:"):
        raise InvalidInput(
            f"there is no built-in text {calibration!r}; there is {', '.join(BUILTIN_TEXTS)}",
            field="calibration",
            value=calibration,
        )
    path = Path(calibration.removeprefix("file:")).expanduser()
    check_text(path, field="calibration")
    return path
