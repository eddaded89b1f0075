"""Options of `compress` and `submit` that describe the method, and the field `method` of the request."""

from typing import Annotated

import typer

from api.cli.options.checks import finite
from replaceme_core.method_spec import CosineLoss, Selection
from replaceme_core.method_traits import MapStructure, Method

METHOD_HELP = (
    f"Compression method: {', '.join(Method)}. Default: auto where it can run, which takes longer and gives a better "
    "model, else least_squares."
)

Ridge = Annotated[
    float | None,
    typer.Option(
        callback=finite,
        help="Regularization of the map toward plain removal. Default: chosen on held-out tokens; refit: 0.5.",
    ),
]
Replays = Annotated[
    int | None, typer.Option(help="Number of windows among which the held-out loss decides. Default: 6.")
]
Groups = Annotated[
    int | None,
    typer.Option(help="Number of cuts, separate runs of blocks (least_squares, cosine and refit only). Default: 1."),
]
Structure = Annotated[
    MapStructure | None,
    typer.Option(
        "--structure", help="Structure of the map (least_squares and cosine only). Default: full where possible."
    ),
]
Loss = Annotated[CosineLoss | None, typer.Option("--loss", help="Loss of the method cosine. Default: exact.")]
SelectionOption = Annotated[
    Selection | None,
    typer.Option("--selection", help="How the method refit selects blocks. Default: one_by_one."),
]
RidgeLater = Annotated[
    float | None,
    typer.Option(
        callback=finite,
        help="Regularization of the projections after the first removed block toward their old weights (refit and auto "
        "only). Default: 0.3.",
    ),
]
TimeBudget = Annotated[
    float | None,
    typer.Option(
        "--time-budget",
        callback=finite,
        help="Seconds available to the method auto, which skips candidates that would take longer.",
    ),
]
AS_PUBLISHED_HELP = "Run least_squares as the reference implementation does, for comparison."
AsPublished = Annotated[bool, typer.Option("--as-published", help=AS_PUBLISHED_HELP)]


def method_field(name: str | None, **options: float | str | bool | None) -> dict[str, object]:
    """The field `method` with the options that were given; empty if none was. An unset flag is left out.

    >>> method_field("cosine", groups=2, ridge=None)
    {'name': 'cosine', 'groups': 2}
    """
    given = {"name": name, **options}
    return {key: value for key, value in given.items() if value is not None and value is not False}
