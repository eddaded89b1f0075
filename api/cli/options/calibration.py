"""Options of `compress` and `submit` that describe the calibration text."""

from pathlib import Path
from typing import Annotated

import typer

from api.cli.options.checks import check_text, finite
from replaceme_core.errors import InvalidInput
from replaceme_core.fields import BUILTIN_TEXTS

Samples = Annotated[
    int | None, typer.Option(help="Number of calibration sequences. Default: 64 on a CPU, 1024 on a GPU.")
]
MaxLength = Annotated[int | None, typer.Option(help="Tokens per sequence. Default: 512 on a CPU, 1024 on a GPU.")]
SelfGenerated = Annotated[
    float | None,
    typer.Option(
        callback=finite,
        help="Fraction of the calibration sequences that the model generates itself, 0 to 1. Default: 0.",
    ),
]


def find_calibration(calibration: str) -> Path | None:
    """The file that `--calibration` names; `None` for a built-in text. Raises `InvalidInput`."""
    if calibration in BUILTIN_TEXTS:
        return None
    if calibration.startswith("builtin:"):
        raise InvalidInput(
            f"there is no built-in text {calibration!r}; available: {', '.join(BUILTIN_TEXTS)}",
            field="calibration",
            value=calibration,
        )
    path = Path(calibration.removeprefix("file:")).expanduser()
    check_text(path, field="calibration")
    return path
