"""`keys`: API keys, in the database of the settings or with `--url` in a service; `credentials`: tokens of the Hub."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer
from pydantic import ValidationError
from rich import box
from rich.console import Group
from rich.table import Table

from api.cli.exit_codes import ExitCode, Failure, failure_of, read_settings
from api.cli.output.console import JsonFlag, describe_time, print_json, print_line, print_note
from api.cli.service import ApiKeyOption, Url, connect, print_items
from api.client.client import DEFAULT_URL, KeysClient
from replaceme_core.errors import ReplaceMeError
from replaceme_core.shapes import ApiKey, CreatedApiKey

if TYPE_CHECKING:
    from api.cli.direct_keys import DirectKeys

DAY_SECONDS = 86_400

app = typer.Typer(no_args_is_help=True, add_completion=False)

KeyUrl = Annotated[
    str | None,
    typer.Option(
        "--url",
        envvar="REPLACEME_URL",
        help="URL of a service to ask, with a key that has the scope admin. Without it, the database of the settings "
        "is used.",
    ),
]
KeyId = Annotated[str, typer.Argument(metavar="ID", help="ID of the key, as `keys list` shows it.")]


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="What the key is for.")],
    *,
    owner: Annotated[
        str | None, typer.Option(help="Whose jobs the key sees. Default: those of the key that asks, or anonymous.")
    ] = None,
    scope: Annotated[
        list[str] | None,
        typer.Option(
            help="jobs:read, jobs:write, webhooks:write or admin. Repeatable. Default: jobs:read and jobs:write."
        ),
    ] = None,
    expires_in_days: Annotated[int | None, typer.Option(min=1, help="Days until it expires. Default: never.")] = None,
    requests_per_minute: Annotated[int | None, typer.Option(min=0, help="Limit of requests; 0: none.")] = None,
    jobs: Annotated[int | None, typer.Option(min=0, help="Limit of queued and running jobs; 0: none.")] = None,
    running_jobs: Annotated[
        int | None, typer.Option(min=0, help="Limit of jobs of this key that run at the same time; 0: none.")
    ] = None,
    model_bytes: Annotated[int | None, typer.Option(min=0, help="Limit of a model's weights; 0: none.")] = None,
    tokens: Annotated[int | None, typer.Option(min=0, help="Limit of calibration tokens; 0: none.")] = None,
    url: KeyUrl = None,
    api_key: ApiKeyOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Create a key and print it. It cannot be shown again."""
    limits = {
        "requests_per_minute": requests_per_minute,
        "jobs": jobs,
        "running_jobs": running_jobs,
        "model_bytes": model_bytes,
        "tokens": tokens,
    }
    request: dict[str, object] = {
        "name": name,
        "owner": owner,
        "expires_in_seconds": None if expires_in_days is None else expires_in_days * DAY_SECONDS,
        "limits": limits,
    }
    with _keys(url, api_key, as_json=as_json) as keys:
        _print_created(keys.create(request | ({"scopes": scope} if scope else {})), as_json=as_json)


@app.command("list")
def list_keys(
    *,
    owner: Annotated[str | None, typer.Option(help="Only keys of this owner.")] = None,
    url: KeyUrl = None,
    api_key: ApiKeyOption = None,
    as_json: JsonFlag = False,
) -> None:
    """List keys, newest first."""
    with _keys(url, api_key, as_json=as_json) as keys:
        found = list(keys.list(owner=owner))
    print_items(found, keys_table, nothing="no keys", as_json=as_json)


@app.command()
def revoke(key_id: KeyId, *, url: KeyUrl = None, api_key: ApiKeyOption = None, as_json: JsonFlag = False) -> None:
    """End a key. Processes that have used it in the last seconds may accept it a few seconds longer."""
    with _keys(url, api_key, as_json=as_json) as keys:
        key = keys.revoke(key_id)
    if as_json:
        print_json(key.model_dump(mode="json"))
    else:
        print_note(f"key {key.id} ({key.name}) is revoked")


@app.command()
def rotate(
    key_id: KeyId,
    *,
    overlap_days: Annotated[float, typer.Option(min=0, max=30, help="Days that the old key is still valid.")] = 1,
    url: KeyUrl = None,
    api_key: ApiKeyOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Replace a key by a new one with the same rights, and print it."""
    with _keys(url, api_key, as_json=as_json) as keys:
        created = keys.rotate(key_id, overlap_seconds=round(overlap_days * DAY_SECONDS))
    _print_created(created, as_json=as_json)


@app.command("outputs")
def set_outputs(
    owner: Annotated[str, typer.Argument(help="The owner of keys and jobs.")],
    namespaces: Annotated[
        list[str] | None, typer.Argument(help="Users or organisations of the Hub. None: those of everybody.")
    ] = None,
    *,
    url: KeyUrl = None,
    api_key: ApiKeyOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Say under which users or organisations of the Hub the results of an owner may go."""
    with _keys(url, api_key, as_json=as_json) as keys:
        found = keys.set_output_namespaces(owner, tuple(namespaces) if namespaces else None)
    if as_json:
        print_json(found.model_dump(mode="json"))
    else:
        print_note(f"{owner}: {', '.join(found.output_namespaces or ()) or 'as for everybody'}")


@contextmanager
def _keys(url: str | None, api_key: str | None, *, as_json: bool) -> "Iterator[KeysClient | DirectKeys]":
    if url is not None:
        with connect(url, api_key=api_key, as_json=as_json) as client:
            yield client.keys
        return
    # imported here: it imports SQLAlchemy and alembic, which a client does not need
    from api.cli.direct_keys import DirectKeys

    try:
        direct = DirectKeys(read_settings())
        try:
            yield direct
        finally:
            direct.close()
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        raise Failure(f"{field}: {first['msg']}", ExitCode.BAD_INPUT, field=field, as_json=as_json) from error
    except ReplaceMeError as error:
        raise failure_of(error, as_json=as_json) from error


def _print_created(created: CreatedApiKey, *, as_json: bool) -> None:
    if as_json:
        print_json(created.model_dump(mode="json"))
        return
    print_note(f"key {created.id} of {created.owner}, {', '.join(created.scopes)}; it is shown only now:")
    print_line(created.key)


def keys_table(keys: Sequence[ApiKey]) -> Table:
    """Three lines for each key, so that ids are whole in 80 columns."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column(Group("id", "name", "owner, key"), overflow="fold")
    table.add_column("scopes", no_wrap=True)
    table.add_column(Group("state", "last used"), no_wrap=True)
    for key in keys:
        ends = f"until {key.expires_at.astimezone():%Y-%m-%d}" if key.expires_at else "live"
        state = ends if key.is_live else ("revoked" if key.revoked_at else "expired")
        about = Group(key.id, f"  {key.name}", f"  {key.owner}, {key.start}…")
        table.add_row(about, Group(*key.scopes), Group(state, describe_time(key.last_used_at)))
    return table


credentials_app = typer.Typer(no_args_is_help=True, add_completion=False)

Name = Annotated[str, typer.Argument(help="Name of the credential.")]


@credentials_app.command("set")
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


@credentials_app.command("list")
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


@credentials_app.command()
def delete(name: Name, *, url: Url = DEFAULT_URL, api_key: ApiKeyOption = None, as_json: JsonFlag = False) -> None:
    """Delete a credential."""
    with connect(url, api_key=api_key, as_json=as_json) as client:
        client.credentials.delete(name)
    if as_json:
        print_json({"deleted": name})
    else:
        print_note(f"the credential {name} is deleted")
