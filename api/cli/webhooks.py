"""`webhooks ...`: who receives events, the log of messages, sending again."""

from typing import Annotated

import typer

from api.cli.job_request import parse_labels
from api.cli.output.console import print_note
from api.cli.output.jobs import deliveries_table, webhook_table, webhooks_table
from api.cli.service import Cursor, Label, Service, asks_service, finite
from api.client.models import Webhook
from replaceme_core.shapes import Delivery

app = typer.Typer(no_args_is_help=True, add_completion=False)

WebhookId = Annotated[str, typer.Argument(metavar="ID", help="ID of the webhook.")]
Event = Annotated[
    list[str] | None,
    typer.Option("--event", help="Type of event. Repeatable. Of a new webhook: succeeded, failed and cancelled."),
]
Full = Annotated[
    bool | None,
    typer.Option("--full/--thin", help="Whether messages contain the whole job. Those of a new webhook do not."),
]
Limit = Annotated[int | None, typer.Option(min=1, help="Maximum number of entries.")]


@app.command()
@asks_service()
def create(
    service: Service,
    to: Annotated[str, typer.Argument(metavar="URL", help="Receiver, as https://HOST/PATH.")],
    *,
    event: Event = None,
    label: Label = None,
    full: Full = None,
) -> None:
    """Create a webhook for all your jobs. Its secret is shown once."""
    labels = parse_labels(label) if label else None
    made = service.client.webhooks.create(to, events=event or None, labels=labels, payload=_payload(full))
    _print(service, made)


@app.command("list")
@asks_service()
def list_webhooks(
    service: Service,
    *,
    job: Annotated[str | None, typer.Option(help="Those of this job.")] = None,
    limit: Limit = None,
    cursor: Cursor = None,
) -> None:
    """List the webhooks for all your jobs, newest first."""
    page = service.client.webhooks.page(job_id=job, limit=limit, cursor=cursor)
    service.show_list(page.items, webhooks_table, nothing="no webhooks", cursor=page.next_cursor)


@app.command()
@asks_service()
def show(service: Service, webhook_id: WebhookId) -> None:
    """Show a webhook."""
    _print(service, service.client.webhooks.get(webhook_id))


@app.command()
@asks_service()
def update(
    service: Service,
    webhook_id: WebhookId,
    *,
    to: Annotated[str | None, typer.Option(metavar="URL", help="Another receiver.")] = None,
    event: Event = None,
    label: Label = None,
    full: Full = None,
    enabled: Annotated[
        bool | None, typer.Option("--enable/--disable", help="Whether it receives; --disable ends what is pending.")
    ] = None,
) -> None:
    """Change a webhook."""
    changed = service.client.webhooks.update(
        webhook_id,
        url=to,
        events=event or None,
        labels=parse_labels(label) if label else None,
        payload=_payload(full),
        enabled=enabled,
    )
    _print(service, changed)


@app.command()
@asks_service()
def rotate(
    service: Service,
    webhook_id: WebhookId,
    *,
    overlap: Annotated[
        float | None,
        typer.Option(
            min=0, callback=finite, help="Seconds for which the old secret also signs; 0 revokes it. Default: a day."
        ),
    ] = None,
) -> None:
    """Make a new secret, which is shown once."""
    _print(service, service.client.webhooks.rotate(webhook_id, overlap_seconds=overlap))


@app.command()
@asks_service()
def delete(service: Service, webhook_id: WebhookId) -> None:
    """Delete a webhook with its log."""
    service.client.webhooks.delete(webhook_id)
    service.show({"id": webhook_id, "deleted": True}, f"webhook {webhook_id} is deleted")


@app.command()
@asks_service()
def deliveries(
    service: Service,
    webhook_id: WebhookId,
    *,
    state: Annotated[str | None, typer.Option(help="Only those that are pending, delivered or failed.")] = None,
    limit: Limit = None,
    cursor: Cursor = None,
) -> None:
    """List the messages to a webhook, newest first."""
    page = service.client.webhooks.deliveries(webhook_id, state=state, limit=limit, cursor=cursor)
    service.show_list(page.items, deliveries_table, nothing="no deliveries", cursor=page.next_cursor)


@app.command()
@asks_service()
def redeliver(
    service: Service,
    webhook_id: WebhookId,
    message: Annotated[list[str] | None, typer.Argument(metavar="MESSAGE...", help="IDs of messages.")] = None,
    *,
    failed: Annotated[bool, typer.Option("--failed", help="All messages that have failed.")] = False,
) -> None:
    """Send messages again, with the same ids and bodies."""
    if bool(message) == failed:
        raise typer.BadParameter("name messages, or give --failed", param_hint="MESSAGE")
    ids, cursor = list(message or ()), None
    while failed:
        page = service.client.webhooks.deliveries(webhook_id, state="failed", limit=200, cursor=cursor)
        ids += [delivery.id for delivery in page.items]
        cursor = page.next_cursor
        if cursor is None:
            break
    sent: list[Delivery] = [service.client.webhooks.redeliver(webhook_id, one) for one in ids]
    service.show_list(sent, deliveries_table, nothing="no message has failed")


def print_secret(webhook: Webhook) -> None:
    """Print a new secret on standard error, where there is one."""
    if webhook.secret is not None:
        print_note(f"secret of webhook {webhook.id}, shown only now: {webhook.secret}")


def _payload(full: bool | None) -> str | None:
    return None if full is None else "full" if full else "thin"


def _print(service: Service, webhook: Webhook) -> None:
    service.show(webhook, webhook_table(webhook))
    if not service.as_json:
        print_secret(webhook)
