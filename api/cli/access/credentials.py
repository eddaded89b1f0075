"""`credentials`: tokens for the Hub that a service keeps for you, to name them in jobs."""

import sys
from typing import Annotated

import typer

from api.cli.output.console import JsonFlag, describe_time, print_json, print_line, print_note
from api.cli.service import ApiKeyOption, Url, connect
from api.client.client import DEFAULT_URL

app = typer.Typer(no_args_is_help=True, add_completion=False)

Name = Annotated[str, typer.Argument(help="Name of the credential.")]


@app.command("set")
def set_credential(
    name: Name, *, url: Url = DEFAULT_URL, api_key: ApiKeyOption = None, as_json: JsonFlag = False
) -> None:
    """Store a token, read from standard input: an argument would be seen by others on this machine."""
    token = typer.prompt("Token", hide_input=True, err=True) if sys.stdin.isatty() else sys.stdin.readline().strip()
    with connect(url, api_key=api_key, as_json=as_json) as client:
        stored = client.credentials.set(name, token)
    if as_json:
        print_json(stored.model_dump(mode="json"))
    else:
        print_note(f"the credential {stored.name} is stored")


@app.command("list")
def list_credentials(*, url: Url = DEFAULT_URL, api_key: ApiKeyOption = None, as_json: JsonFlag = False) -> None:
    """List the names of your credentials."""
    with connect(url, api_key=api_key, as_json=as_json) as client:
        found = client.credentials.list()
    if as_json:
        print_json({"items": [one.model_dump(mode="json") for one in found], "next_cursor": None})
    elif found:
        for one in found:
            print_line(f"{one.name:<40} {describe_time(one.updated_at)}")
    else:
        print_note("no credentials")


@app.command()
def delete(name: Name, *, url: Url = DEFAULT_URL, api_key: ApiKeyOption = None, as_json: JsonFlag = False) -> None:
    """Delete a credential."""
    with connect(url, api_key=api_key, as_json=as_json) as client:
        client.credentials.delete(name)
    if as_json:
        print_json({"deleted": name})
    else:
        print_note(f"the credential {name} is deleted")
