"""`families`: which models can be compressed."""

from typing import Annotated

import typer

from api.cli.output.console import JsonFlag, print_json, print_line
from api.cli.service import ApiKeyOption, connect
from api.client.models import Family, Page
from replaceme_core.families.table import listing


def families(
    *,
    url: Annotated[
        str | None,
        typer.Option(
            "--url",
            envvar="REPLACEME_URL",
            help="URL of a service to ask. Without it, the list of this version is printed.",
        ),
    ] = None,
    api_key: ApiKeyOption = None,
    as_json: JsonFlag = False,
) -> None:
    if url is None:
        from api.bodies import FamilyBody  # here: it imports SQLAlchemy, which takes half a second

        found = tuple(Family.model_validate(FamilyBody.of(row).model_dump(mode="json")) for row in listing())
    else:
        with connect(url, api_key=api_key, as_json=as_json) as client:
            found = client.families()
    if as_json:
        print_json(Page[Family](items=found).model_dump(mode="json"))
        return
    for family in found:
        structures = f"maps: {', '.join(family.structures)}" if family.structures else None
        details = "; ".join(filter(None, (", ".join(family.methods), structures, family.reason)))
        print_line(f"{family.model_type:<20} {details}")
    print_line(f"{'any other':<20} not supported: where its blocks write to the residual stream is unknown")
