"""Webhooks and deliveries as frozen values, never rows. Every time is an aware UTC datetime."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from replaceme_core.ledger.states import EventType
from replaceme_core.ledger.webhooks.states import DEFAULT_EVENTS, DeliveryState, DisabledBy, Payload

_MESSAGE_ID = re.compile(r"evt_([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})-([1-9]\d{0,8})")


def message_id(job_id: str, seq: int) -> str:
    """The `webhook-id` of an event: the same at each try, and at each webhook, so that a receiver knows repetitions.

    >>> message_id("3f2b8c52-0000-4000-8000-000000000001", 4)
    'evt_3f2b8c52-0000-4000-8000-000000000001-4'
    """
    return f"evt_{job_id}-{seq}"


def parse_message_id(text: str) -> tuple[str, int] | None:
    """Job and `seq` of a `webhook-id`; `None` if it is none."""
    found = _MESSAGE_ID.fullmatch(text)
    return None if found is None else (found[1], int(found[2]))


@dataclass(frozen=True, kw_only=True)
class NewWebhook:
    """What a webhook is made of. A job must carry all of `labels`. `secret` is sealed.

    `signed_by`: the webhook whose secrets sign the messages, in place of its own. `key_id`: the API key that asks for
    it, `None` without one.
    """

    url: str = field(repr=False)
    secret: str = field(repr=False)
    events: tuple[EventType, ...] = DEFAULT_EVENTS
    labels: Mapping[str, str] = field(default_factory=dict)
    payload: Payload = Payload.THIN
    signed_by: str | None = None
    key_id: str | None = None


@dataclass(frozen=True, kw_only=True)
class Webhook:
    """A webhook without its secrets. `previous_expires_at`: until when the secret before the last rotation signs.

    Messages are sent as long as the key `key_id` may read jobs; `None`: it was made without a key.
    """

    id: str
    owner: str
    job_id: str | None
    url: str = field(repr=False)
    events: tuple[EventType, ...]
    labels: Mapping[str, str]
    payload: Payload
    signed_by: str | None
    key_id: str | None
    previous_expires_at: datetime | None
    disabled_at: datetime | None
    disabled_by: DisabledBy | None
    created_at: datetime


@dataclass(frozen=True, kw_only=True)
class Try:
    """One try to send a message: the status of the response, or a word for what went wrong. `number` counts from 1."""

    number: int
    at: datetime
    status: int | None
    error: str | None
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Delivery:
    """One message to one webhook, with all tries to send it."""

    webhook_id: str
    job_id: str
    seq: int
    type: EventType
    body: str = field(repr=False)
    state: DeliveryState
    next_try_at: datetime | None
    created_at: datetime
    finished_at: datetime | None
    tries: tuple[Try, ...]

    @property
    def message_id(self) -> str:
        return message_id(self.job_id, self.seq)


@dataclass(frozen=True, kw_only=True)
class ClaimedDelivery:
    """The right to send a message now. `secrets` are sealed; the later write is conditional on `token`.

    `tries` counts this one. `may_be_sent` is false if the key of the webhook may not read jobs any more.
    """

    number: int
    token: str
    webhook_id: str
    message_id: str
    tries: int
    may_be_sent: bool
    url: str = field(repr=False)
    body: str = field(repr=False)
    secrets: tuple[str, ...] = field(repr=False)
