"""Metrics of the webhooks that this process sends."""

from prometheus_client import CollectorRegistry, Counter

from replaceme_core.ledger.states import DeliveryState

DELIVERED = "delivered"


class WebhookMetrics:
    """Counts messages to webhooks and each try to send one."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._tries = Counter(
            "replaceme_webhook_tries",
            "Tries to send a message, by what became of them: delivered, or what went wrong.",
            ("outcome",),
            registry=registry,
        )
        self._deliveries = Counter(
            "replaceme_webhook_deliveries",
            "Messages that are done: delivered, or failed after the last try.",
            ("state",),
            registry=registry,
        )
        for state in (DeliveryState.DELIVERED, DeliveryState.FAILED):
            self._deliveries.labels(state.value)  # shown before the first one

    def record(self, *, error: str | None, is_last: bool) -> None:
        """Count a try. `error` is one of the words of deliveries; `None`: delivered. `is_last`: no other follows."""
        self._tries.labels(error or DELIVERED).inc()
        if is_last:
            self._deliveries.labels((DeliveryState.FAILED if error else DeliveryState.DELIVERED).value).inc()
