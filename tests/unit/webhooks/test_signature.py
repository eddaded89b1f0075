"""Signatures are checked with the official verifier."""

from datetime import UTC, datetime, timedelta

import pytest
from standardwebhooks import Webhook, WebhookVerificationError

from replaceme_core.webhooks import new_secret, signed_headers

BODY = '{"type":"job.succeeded","data":{"job_id":"x","n":1.5}}'


def sign(*secrets: str, at: datetime | None = None) -> dict[str, str]:
    return signed_headers(message_id="evt_x-1", body=BODY, secrets=secrets, at=at or datetime.now(tz=UTC))


def verify(secret: str, headers: dict[str, str], body: str = BODY) -> object:
    return Webhook(secret).verify(body, headers)


def test_it_is_accepted() -> None:
    secret = new_secret()
    assert verify(secret, sign(secret)) == {"type": "job.succeeded", "data": {"job_id": "x", "n": 1.5}}
    berlin = datetime.now(tz=UTC).astimezone(tz=None)
    assert verify(secret, sign(secret, at=berlin)) == verify(secret, sign(secret))


def test_a_changed_byte_is_rejected_wherever_it_is() -> None:
    secret = new_secret()
    headers = sign(secret)
    for position in range(len(BODY)):
        changed = BODY[:position] + chr(ord(BODY[position]) ^ 1) + BODY[position + 1 :]
        with pytest.raises(WebhookVerificationError):
            verify(secret, headers, changed)
    with pytest.raises(WebhookVerificationError):
        verify(secret, {**headers, "webhook-id": "evt_x-2"})
    later = str(int(headers["webhook-timestamp"]) + 1)
    with pytest.raises(WebhookVerificationError):
        verify(secret, {**headers, "webhook-timestamp": later})


def test_an_old_timestamp_is_rejected() -> None:
    secret = new_secret()
    for minutes in (-6, 6):
        with pytest.raises(WebhookVerificationError, match="too"):
            verify(secret, sign(secret, at=datetime.now(tz=UTC) + timedelta(minutes=minutes)))


def test_two_live_secrets_are_both_accepted_and_a_revoked_one_is_not() -> None:
    old, new = new_secret(), new_secret()
    both = sign(new, old)
    assert verify(old, both) == verify(new, both)
    with pytest.raises(WebhookVerificationError, match="No matching"):
        verify(old, sign(new))


def test_secrets_are_random_and_long() -> None:
    secrets = {new_secret() for _ in range(100)}
    assert len(secrets) == 100
    assert all(secret.startswith("whsec_") and len(secret) == 50 for secret in secrets)
