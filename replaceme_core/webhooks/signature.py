"""Secrets and signatures as Standard Webhooks describes them (https://www.standardwebhooks.com)."""

import base64
import os
from collections.abc import Sequence
from datetime import UTC, datetime

from standardwebhooks import Webhook

SECRET_PREFIX = "whsec_"
_SECRET_BYTES = 32


def new_secret() -> str:
    """A random secret: `whsec_` and 32 bytes in base64."""
    return SECRET_PREFIX + base64.b64encode(os.urandom(_SECRET_BYTES)).decode("ascii")


def signed_headers(*, message_id: str, body: str, secrets: Sequence[str], at: datetime) -> dict[str, str]:
    """The headers of a message that is sent at `at`, with one signature for each of `secrets`."""
    seconds = at.astimezone(UTC).replace(microsecond=0)
    signatures = (Webhook(secret).sign(message_id, seconds, body) for secret in secrets)
    return {
        "webhook-id": message_id,
        "webhook-timestamp": str(int(seconds.timestamp())),
        "webhook-signature": " ".join(signatures),
    }
