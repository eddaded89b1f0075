"""What a result must be worth, on the command line."""

from collections.abc import Sequence
from typing import Annotated

import typer

from replaceme_core.gate.text import read_criteria

Gate = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME<=LIMIT",
        help="What the result must be worth, else it is rejected (exit code 4): perplexity_ratio<=1.6, "
        "worst_perplexity_ratio<=2, divergence<=0.5, agreement>=0.7, size_ratio<=0.8, "
        "accuracy_kept>=0.9 or tasks.NAME>=0.95. Repeatable.",
    ),
]


def parse_gate(criteria: Sequence[str] | None) -> dict[str, object] | None:
    """The field `gate` of a specification; `None` without criteria."""
    try:
        return read_criteria(criteria or ()) or None
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--gate") from None
