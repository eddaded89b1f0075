"""Which blocks to remove, on the command line."""

from typing import Annotated

import typer

from api.cli.options.checks import finite

_LONGEST_RANGE = 10_000

Ratio = Annotated[
    float | None, typer.Option(callback=finite, help="Fraction of the blocks to remove, between 0 and 1.")
]
Drop = Annotated[str | None, typer.Option(help="Blocks to remove, instead of a ratio, counted from 0: 5,12-19.")]
PATTERN_SAFE_HELP = (
    "Of a model with several kinds of blocks, such as gemma3, remove only what leaves their pattern as it is: "
    "converters to GGUF, MLX and ONNX rely on it."
)
PatternSafe = Annotated[bool, typer.Option("--pattern-safe", help=PATTERN_SAFE_HELP)]


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
