"""`keys`: API keys, in the database of the settings or with `--url` in a service; `credentials`: tokens of the Hub."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Group, RenderableType
from rich.table import Table

from api.cli.output.console import describe_time, print_line
from api.cli.output.jobs import list_table
from api.cli.service import Service, asks_service
from api.client.client import KeysClient
from replaceme_core.settings import read_settings
from replaceme_core.shapes import ApiKey, CreatedApiKey, Credential

if TYPE_CHECKING:
    from api.cli.direct_keys import DirectKeys

DAY_SECONDS = 86_400

app = typer.Typer(no_args_is_help=True, add_completion=False)

_WITHOUT = (
    "URL of a service to ask, with a key that has the scope admin. Without it, the database of the settings is used."
)
KeyId = Annotated[str, typer.Argument(metavar="ID", help="ID of the key, as `keys list` shows it.")]


@app.command()
@asks_service(without=_WITHOUT)
def create(
    service: Service,
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
    with _keys(service) as keys:
        _print_created(service, keys, keys.create(request | ({"scopes": scope} if scope else {})))


@app.command("list")
@asks_service(without=_WITHOUT)
def list_keys(
    service: Service,
    *,
    owner: Annotated[str | None, typer.Option(help="Only keys of this owner.")] = None,
) -> None:
    """List keys, newest first."""
    with _keys(service) as keys:
        found = list(keys.list(owner=owner))
    service.show_list(found, keys_table, nothing="no keys")


@app.command()
@asks_service(without=_WITHOUT)
def revoke(service: Service, key_id: KeyId) -> None:
    """End a key. Processes that have used it in the last seconds may accept it a few seconds longer."""
    with _keys(service) as keys:
        key = keys.revoke(key_id)
    service.show(key, f"key {key.id} ({key.name}) is revoked")


@app.command()
@asks_service(without=_WITHOUT)
def rotate(
    service: Service,
    key_id: KeyId,
    *,
    overlap_days: Annotated[float, typer.Option(min=0, max=30, help="Days that the old key is still valid.")] = 1,
) -> None:
    """Replace a key by a new one with the same rights, and print it."""
    with _keys(service) as keys:
        _print_created(service, keys, keys.rotate(key_id, overlap_seconds=round(overlap_days * DAY_SECONDS)))


@app.command("outputs")
@asks_service(without=_WITHOUT)
def set_outputs(
    service: Service,
    owner: Annotated[str, typer.Argument(help="The owner of keys and jobs.")],
    namespaces: Annotated[
        list[str] | None, typer.Argument(help="Users or organisations of the Hub. None: those of everybody.")
    ] = None,
) -> None:
    """Say under which users or organisations of the Hub the results of an owner may go."""
    with _keys(service) as keys:
        found = keys.set_output_namespaces(owner, tuple(namespaces) if namespaces else None)
    service.show(found, f"{owner}: {', '.join(found.output_namespaces or ()) or 'as for everybody'}")


@contextmanager
def _keys(service: Service) -> "Iterator[KeysClient | DirectKeys]":
    if service.url is not None:
        yield service.client.keys
        return
    # imported here: it imports SQLAlchemy and alembic, which a client does not need
    from api.cli.direct_keys import DirectKeys

    with closing(DirectKeys(read_settings())) as direct:
        yield direct


def _print_created(service: Service, keys: "KeysClient | DirectKeys", created: CreatedApiKey) -> None:
    try:
        service.show(
            created, f"key {created.id} of {created.owner}, {', '.join(created.scopes)}; it is shown only now:"
        )
        if not service.as_json:
            print_line(created.key)
    except OSError:  # a full disk, or a pipe that is closed: nobody has seen the key
        keys.revoke(created.id)
        raise


def keys_table(keys: Sequence[ApiKey]) -> Table:
    """Three lines for each key, so that ids are whole in 80 columns."""

    def row(key: ApiKey) -> tuple[RenderableType, ...]:
        ends = f"until {key.expires_at.astimezone():%Y-%m-%d}" if key.expires_at else "live"
        state = ends if key.is_live else ("revoked" if key.revoked_at else "expired")
        about = Group(key.id, f"  {key.name}", f"  {key.owner}, {key.start}…")
        return about, Group(*key.scopes), Group(state, describe_time(key.last_used_at))

    return list_table((Group("id", "name", "owner, key"), "scopes", Group("state", "last used")), map(row, keys))


credentials_app = typer.Typer(no_args_is_help=True, add_completion=False)

Name = Annotated[str, typer.Argument(help="Name of the credential.")]


@credentials_app.command("set")
@asks_service()
def set_credential(service: Service, name: Name) -> None:
    """Store a token, read from standard input: an argument would be seen by others on this machine."""
    token = typer.prompt("Token", hide_input=True, err=True) if sys.stdin.isatty() else sys.stdin.readline().strip()
    stored = service.client.credentials.set(name, token)
    service.show(stored, f"the credential {stored.name} is stored")


@credentials_app.command("list")
@asks_service()
def list_credentials(service: Service) -> None:
    """List the names of your credentials."""

    def table(credentials: Sequence[Credential]) -> Group:
        return Group(*(f"{one.name:<40} {describe_time(one.updated_at)}" for one in credentials))

    service.show_list(service.client.credentials.list(), table, nothing="no credentials")


@credentials_app.command()
@asks_service()
def delete(service: Service, name: Name) -> None:
    """Delete a credential."""
    service.client.credentials.delete(name)
    service.show({"deleted": name}, f"the credential {name} is deleted")
