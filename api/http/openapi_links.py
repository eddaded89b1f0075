"""Where a client may go from a response that names something new, for /openapi.json."""

from collections.abc import Mapping
from typing import Any

_OF_JOB = {
    "job": ("get_job", "The job."),
    "cancel": ("cancel_job", "Cancel it."),
    "events": ("list_events", "Its history, and what happens from now on."),
    "logs": ("list_log_lines", "The last lines of its runners."),
    "metrics": ("list_metrics", "What it measures."),
    "report": ("get_report", "What was done, once it has succeeded."),
    "retry": ("retry_job", "Make it again, once it has ended."),
    "delete": ("delete_job", "Delete it, once it has ended."),
}
_OF_WEBHOOK = {
    "webhook": ("get_webhook", "The webhook."),
    "change": ("change_webhook", "Change it."),
    "rotate": ("rotate_secret", "Make a new secret."),
    "deliveries": ("list_deliveries", "The messages to it."),
    "delete": ("delete_webhook", "Delete it."),
}
_OF_KEY = {
    "key": ("get_key", "The key."),
    "rotate": ("rotate_key", "Replace it."),
    "revoke": ("revoke_key", "Revoke it."),
}
_NAMES = {"name": "$response.body#/name"}
_LINKS: Mapping[str, tuple[str, str, Mapping[str, tuple[str, str]]]] = {
    "submit_job": ("202", "job_id", _OF_JOB),
    "retry_job": ("202", "job_id", _OF_JOB),
    "create_webhook": ("201", "webhook_id", _OF_WEBHOOK),
    "put_credential": ("200", "name", {"delete": ("delete_credential", "Delete it.")}),
    "create_key": ("201", "key_id", _OF_KEY),
}
"""Operation to the status of its response, the parameter that is its `id` or `name`, and what this leads to."""


def links_of(operation_id: str) -> dict[str, dict[str, Any]]:
    """Status of a response to its links."""
    if operation_id not in _LINKS:
        return {}
    status, parameter, targets = _LINKS[operation_id]
    links = {
        name: {
            "operationId": target,
            "parameters": {parameter: _NAMES.get(parameter, "$response.body#/id")},
            "description": text,
        }
        for name, (target, text) in targets.items()
    }
    return {status: links}
