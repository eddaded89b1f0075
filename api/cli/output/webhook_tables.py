"""Tables of webhooks and of their deliveries, for people."""

from collections.abc import Sequence

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from api.cli.output.times import describe_time
from api.client.models import Delivery, Webhook

_STATE_STYLE = {"delivered": "green", "failed": "red", "pending": "cyan"}


def webhooks_table(webhooks: Sequence[Webhook]) -> Table:
    table = _table(Group("id", "url"), "enabled", "events")
    for webhook in webhooks:
        table.add_row(Group(webhook.id, f"  {webhook.url}"), _enabled(webhook), Group(*webhook.events))
    return table


def webhook_table(webhook: Webhook) -> Table:
    rows = {
        "webhook": webhook.id,
        "url": webhook.url,
        "enabled": _enabled(webhook),
        "events": ", ".join(webhook.events),
        "labels": ", ".join(f"{name}={value}" for name, value in webhook.labels.items()),
        "payload": webhook.payload,
        "job": webhook.job_id or "",
        "signed by": webhook.signed_by or "",
        "key": webhook.key_id or "",
        "old secret": describe_time(webhook.previous_secret_expires_at),
        "created": describe_time(webhook.created_at),
    }
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows.items():
        if value:
            table.add_row(name, value)
    return table


def deliveries_table(deliveries: Sequence[Delivery]) -> Table:
    """Two lines for each message; `last` is the outcome of the last try."""
    table = _table(Group("message", "type"), Group("state", "next try"), Group("tries", "last"))
    for delivery in deliveries:
        last = delivery.tries[-1] if delivery.tries else None
        outcome = "" if last is None else str(last.status or last.error)
        at = "" if delivery.next_try_at is None else f"{delivery.next_try_at.astimezone():%m-%d %H:%M}"
        state = Text(delivery.state, style=_STATE_STYLE.get(delivery.state, ""))
        table.add_row(
            Group(delivery.id, f"  {delivery.type}"),
            Group(state, at),
            Group(f"{len(delivery.tries)}", outcome),
        )
    return table


def _enabled(webhook: Webhook) -> str:
    return "yes" if webhook.enabled else f"no, by {webhook.disabled_by}"


def _table(*names: RenderableType) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for number, name in enumerate(names):
        # the id is what the other commands need, so it is folded and never cut
        table.add_column(name, overflow="fold" if number == 0 else "ellipsis", no_wrap=number > 0)
    return table
