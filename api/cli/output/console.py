"""What commands print: results on standard output, everything else on standard error."""

import json
from collections.abc import Mapping
from typing import Annotated

import typer
from rich.console import Console

from replaceme_core.json_values import json_safe

WIDTH_WITHOUT_TERMINAL = 80  # columns, whatever the environment says

JsonFlag = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")]


def make_console(*, stderr: bool) -> Console:
    """A console without markup; tables are 80 columns wide if it writes to a file or a pipe."""
    console = Console(stderr=stderr, highlight=False, emoji=False, markup=False)
    if not console.is_terminal:
        console = Console(stderr=stderr, highlight=False, emoji=False, markup=False, width=WIDTH_WITHOUT_TERMINAL)
    return console


def print_note(text: str) -> None:
    """Print one line on standard error."""
    typer.echo(text, err=True)


def print_json(value: Mapping[str, object]) -> None:
    """Print one JSON object on standard output. NaN and infinities are strings in it."""
    typer.echo(json.dumps(json_safe(value), indent=2, ensure_ascii=False, allow_nan=False))
