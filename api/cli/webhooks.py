"""`webhooks ...`: who receives events, the log of messages, sending again."""

from typing import Annotated

import typer

from api.cli.job_request import parse_labels
from api.cli.output.console import JsonFlag, make_console, print_json, print_note
from api.cli.output.jobs import deliveries_table, webhook_table, webhooks_table
from api.cli.service import Cursor, Label, Url, connect, print_items
from api.client.client import DEFAULT_URL
from api.client.models import Webhook
from replaceme_core.shapes import Delivery

app = typer.Typer(no_args_is_help=True, add_completion=False)

WebhookId = Annotated[str, typer.Argument(metavar="ID", help="ID of the webhook.")]
Event = Annotated[
    list[str] | None,
    typer.Option("--event", help="Type of event. Repeatable. Default: succeeded, failed and cancelled."),
]
Full = Annotated[
    bool | None, typer.Option("--full/--thin", help="Whether messages contain the whole job. Default: --thin.")
]
Limit = Annotated[int | None, typer.Option(min=1, help="Maximum number of entries.")]


@app.command()
def create(
    to: Annotated[str, typer.Argument(metavar="URL", help="Receiver, as https://HOST/PATH.")],
    *,
    event: Event = None,
    label: Label = None,
    full: Full = None,
    url: Url = DEFAULT_URL,
    as_json: JsonFlag = False,
) -> None:
    """Create a standing webhook. Its secret is shown once."""
    with connect(url, as_json=as_json) as client:
        labels = parse_labels(label) if label else None
        made = client.webhooks.create(to, events=event or None, labels=labels, payload=_payload(full))
    _print(made, as_json=as_json)


@app.command("list")
def list_webhooks(
    *,
    job: Annotated[str | None, typer.Option(help="Those of this job.")] = None,
    limit: Limit = None,
    cursor: Cursor = None,
    url: Url = DEFAULT_URL,
    as_json: JsonFlag = False,
) -> None:
    """List standing webhooks, newest first."""
    with connect(url, as_json=as_json) as client:
        page = client.webhooks.page(job_id=job, limit=limit, cursor=cursor)
    print_items(page.items, webhooks_table, nothing="no webhooks", cursor=page.next_cursor, as_json=as_json)


@app.command()
def show(webhook_id: WebhookId, *, url: Url = DEFAULT_URL, as_json: JsonFlag = False) -> None:
    """Show a webhook."""
    with connect(url, as_json=as_json) as client:
        _print(client.webhooks.get(webhook_id), as_json=as_json)


@app.command()
def update(
    webhook_id: WebhookId,
    *,
    to: Annotated[str | None, typer.Option(metavar="URL", help="Another receiver.")] = None,
    event: Event = None,
    label: Label = None,
    full: Full = None,
    enabled: Annotated[
        bool | None, typer.Option("--enable/--disable", help="Whether it receives; --disable ends what is pending.")
    ] = None,
    url: Url = DEFAULT_URL,
    as_json: JsonFlag = False,
) -> None:
    """Change a webhook."""
    with connect(url, as_json=as_json) as client:
        changed = client.webhooks.update(
            webhook_id,
            url=to,
            events=event or None,
            labels=parse_labels(label) if label else None,
            payload=_payload(full),
            enabled=enabled,
        )
    _print(changed, as_json=as_json)


@app.command()
def rotate(
    webhook_id: WebhookId,
    *,
    overlap: Annotated[
        float | None,
        typer.Option(min=0, help="Seconds for which the old secret also signs; 0 revokes it. Default: a day."),
    ] = None,
    url: Url = DEFAULT_URL,
    as_json: JsonFlag = False,
) -> None:
    """Make a new secret, which is shown once."""
    with connect(url, as_json=as_json) as client:
        _print(client.webhooks.rotate(webhook_id, overlap_seconds=overlap), as_json=as_json)


@app.command()
def delete(webhook_id: WebhookId, *, url: Url = DEFAULT_URL, as_json: JsonFlag = False) -> None:
    """Delete a webhook with its log."""
    with connect(url, as_json=as_json) as client:
        client.webhooks.delete(webhook_id)
    if as_json:
        print_json({"id": webhook_id, "deleted": True})
    else:
        print_note(f"webhook {webhook_id} is deleted")


@app.command()
def deliveries(
    webhook_id: WebhookId,
    *,
    state: Annotated[str | None, typer.Option(help="Only those that are pending, delivered or failed.")] = None,
    limit: Limit = None,
    cursor: Cursor = None,
    url: Url = DEFAULT_URL,
    as_json: JsonFlag = False,
) -> None:
    """List the messages to a webhook, newest first."""
    with connect(url, as_json=as_json) as client:
        page = client.webhooks.deliveries(webhook_id, state=state, limit=limit, cursor=cursor)
    print_items(page.items, deliveries_table, nothing="no deliveries", cursor=page.next_cursor, as_json=as_json)


@app.command()
def redeliver(
    webhook_id: WebhookId,
    message: Annotated[list[str] | None, typer.Argument(metavar="MESSAGE...", help="IDs of messages.")] = None,
    *,
    failed: Annotated[bool, typer.Option("--failed", help="All messages that have failed.")] = False,
    url: Url = DEFAULT_URL,
    as_json: JsonFlag = False,
) -> None:
    """Send messages again, with the same ids and bodies."""
    if bool(message) == failed:
        raise typer.BadParameter("name messages, or give --failed", param_hint="MESSAGE")
    with connect(url, as_json=as_json) as client:
        ids, cursor = list(message or ()), None
        while failed:
            page = client.webhooks.deliveries(webhook_id, state="failed", limit=200, cursor=cursor)
            ids += [delivery.id for delivery in page.items]
            cursor = page.next_cursor
            if cursor is None:
                break
        sent: list[Delivery] = [client.webhooks.redeliver(webhook_id, one) for one in ids]
    print_items(sent, deliveries_table, nothing="no message has failed", as_json=as_json)


def print_secret(webhook: Webhook) -> None:
    """Print a new secret on standard error, where there is one."""
    if webhook.secret is not None:
        print_note(f"secret of webhook {webhook.id}, shown only now: {webhook.secret}")


def _payload(full: bool | None) -> str | None:
    return None if full is None else "full" if full else "thin"


def _print(webhook: Webhook, *, as_json: bool) -> None:
    if as_json:
        print_json(webhook.model_dump(mode="json"))
        return
    make_console(stderr=False).print(webhook_table(webhook))
    print_secret(webhook)
