"""Which blocks to remove, on the command line."""

import math
from typing import Annotated

import typer

_LONGEST_RANGE = 10_000

DEEPEST = "max:"

Ratio = Annotated[
    str | None,
    typer.Option(
        metavar="RATIO|max:RATIO",
        help="Fraction of the blocks to remove, between 0 and 1; max:0.5 is the deepest cut that passes the gate, "
        "of at most half of the blocks.",
    ),
]
Drop = Annotated[str | None, typer.Option(help="Blocks to remove, instead of a ratio, counted from 0: 5,12-19.")]
PATTERN_SAFE_HELP = (
    "Of a model with several kinds of blocks, such as gemma3, remove only what leaves their pattern as it is: "
    "converters to GGUF, MLX and ONNX rely on it."
)
PatternSafe = Annotated[bool, typer.Option("--pattern-safe", help=PATTERN_SAFE_HELP)]


def parse_ratio(text: str | None) -> float | dict[str, object] | None:
    """The field `ratio` of a specification.

    >>> parse_ratio("0.25"), parse_ratio("max:0.5")
    (0.25, {'max': 0.5})
    """
    if text is None:
        return None
    number = text.removeprefix(DEEPEST)
    try:
        ratio = float(number)
    except ValueError:
        ratio = math.nan
    if not math.isfinite(ratio):
        raise typer.BadParameter(f"expected a number such as 0.25, or max:0.5, got {text!r}", param_hint="--ratio")
    return ratio if number == text else {"max": ratio}


def parse_drop(text: str | None) -> list[int] | None:
    """
    >>> parse_drop("3,12-14")
    [3, 12, 13, 14]
    """
    if text is None:
        return None
    blocks: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()) or len(part) > 20:
            raise typer.BadParameter(
                f"expected block numbers such as 12,13 or 12-19, got {text!r}", param_hint="--drop"
            )
        if dash and not int(first) <= int(last) < int(first) + _LONGEST_RANGE:
            raise typer.BadParameter(f"{part.strip()!r} is not a range of blocks", param_hint="--drop")
        blocks += range(int(first), int(last) + 1) if dash else [int(first)]
    return blocks
