"""What `compress` and `submit` take to describe a method, and the request's field made of it."""

from enum import StrEnum
from typing import Annotated

import typer

from api.cli.checks import finite
from replaceme_core.spec import Selection

Ridge = Annotated[
    float | None,
    typer.Option(callback=finite, help="Pulls a map toward plain removal; chosen on held-out tokens by default."),
]
Replays = Annotated[int | None, typer.Option(help="Windows that are judged by held-out loss; 6 by default.")]
Groups = Annotated[int | None, typer.Option(help="Cuts that the ratio is divided into (least_squares, cosine, refit).")]


class Structure(StrEnum):
    FULL = "full"
    DIAGONAL = "diagonal"


StructureOption = Annotated[Structure | None, typer.Option("--structure", help="Of the map; what fits by default.")]


class Loss(StrEnum):
    EXACT = "exact"
    LIGHT = "light"


LossOption = Annotated[Loss | None, typer.Option("--loss", help="Of cosine: exact by default.")]


SelectionOption = Annotated[
    Selection | None, typer.Option("--selection", help="Of refit: one block after the other (default), or a window.")
]
RidgeLater = Annotated[
    float | None,
    typer.Option(callback=finite, help="Of refit: pulls projections after the first cut to their old weight."),
]
TimeBudget = Annotated[
    float | None,
    typer.Option("--time-budget", callback=finite, help="Of auto, in seconds: what would take longer is left out."),
]
AsPublished = Annotated[
    bool, typer.Option("--as-published", help="least_squares as the reference implementation does it, to compare.")
]


def method_field(name: str | None, **options: float | str | bool | None) -> dict[str, object]:
    """The field `method` with what was given; empty if nothing was. A flag that was not set says nothing.

    >>> method_field("cosine", groups=2, ridge=None)
    {'name': 'cosine', 'groups': 2}
    """
    given = {"name": name, **options}
    return {key: value for key, value in given.items() if value is not None and value is not False}
