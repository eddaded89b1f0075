"""Webhooks: the fields of requests, the check of a URL before it is stored, and sending messages from the database.

docs/decisions/0040-webhooks.md says why there. A URL is checked again at each message, since names change.

Messages are written with their events by any process. Each API process claims those that are due, so any number of
them may run at once, and one that is killed loses none. Nothing is done here for a service without webhooks but one
read of an index in each second.
"""

import ipaddress
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime

import structlog

from replaceme_core.errors import HostUnknown, InvalidInput, ReplaceMeError, SecretUnreadable
from replaceme_core.ledger import webhooks
from replaceme_core.ledger.database import Database
from replaceme_core.ledger.webhooks import ClaimedDelivery
from replaceme_core.secrets_box import SecretsBox
from replaceme_core.settings import Settings
from replaceme_core.webhooks import (
    Outcome,
    Sender,
    TargetRules,
    addresses_of,
    parse_target,
    pause_after,
    signed_headers,
)

LOOK_UP_SECONDS = 2.0
KEY_ENDED = "key_ended"
"""The error of a message whose webhook belongs to a key that may not read jobs any more."""
SENDERS = 8
POLL_SECONDS = 1.0
LONGEST_POLL_SECONDS = 30.0  # while the database cannot be read
_CLAIM_SLACK_SECONDS = 1.0
_CLEAN_SECONDS = 300.0
_CLEAN_LIMIT = 1000  # rows in one transaction
_CLEAN_ROUNDS = 100  # transactions, one after the other
_STOP_SECONDS = 2.0
_log = structlog.get_logger(__name__)


def rules_of(settings: Settings) -> TargetRules:
    """Where webhooks may go."""
    networks = tuple(ipaddress.ip_network(name) for name in settings.webhook_networks or ())
    return TargetRules(allow_http=settings.webhook_allow_http, networks=networks)


def check_url(url: str, settings: Settings, *, field: str = "url") -> None:
    """Raises `InvalidInput` (`field`) for a URL to which no message would ever go.

    A name that has no address now may have one later, so that is no error.
    """
    rules = rules_of(settings)
    try:
        addresses_of(parse_target(url, rules), rules, seconds=LOOK_UP_SECONDS)
    except HostUnknown:
        return
    except InvalidInput as error:
        error.field = field
        raise


class Delivery:
    """Claims and sends until `stop`. All threads are daemons: what is on the way at a stop is claimed again later.

    `record` counts a try as `Monitoring.record_try` does.
    """

    def __init__(
        self,
        *,
        settings: Settings,
        sender: Sender | None = None,
        pause: Callable[..., float | None] = pause_after,
        record: Callable[..., None] | None = None,
        poll_seconds: float = POLL_SECONDS,
    ) -> None:
        self._database = Database(settings.resolved_database_url)
        self._open_box = settings.secrets_box
        self._box: SecretsBox | None = None
        self._sender = sender or Sender(rules=rules_of(settings), seconds=settings.webhook_timeout_seconds)
        self._claim_seconds = 2 * settings.webhook_timeout_seconds + _CLAIM_SLACK_SECONDS  # name and message
        self._log_seconds = settings.webhook_log_seconds
        self._pause = pause
        self._record = record
        self._poll_seconds = poll_seconds
        self._is_failing = False
        self._stopping = threading.Event()
        self._work = threading.Event()
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        jobs = [self._poll, *[self._send_all] * SENDERS]
        self._threads = [threading.Thread(target=job, name="webhooks", daemon=True) for job in jobs]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Take nothing more, wait a moment for what is on the way, and close the connections."""
        self._stopping.set()
        self._work.set()
        deadline = time.monotonic() + _STOP_SECONDS
        for thread in self._threads:
            thread.join(max(deadline - time.monotonic(), 0))
        self._database.close()

    def send_one(self) -> bool:
        """Claim one message and send it; returns false if none was due. Raises `DatabaseUnreachable`."""
        with self._database.session() as session:
            claimed = webhooks.claim(session, claim_seconds=self._claim_seconds)
        if claimed is None:
            return False
        outcome, retry_in = Outcome(error=KEY_ENDED), None
        if claimed.may_be_sent:
            outcome = self._send(claimed)
            retry_in = self._pause(claimed.tries, retry_after=outcome.retry_after)
        with self._database.session() as session:
            written = webhooks.record(
                session,
                claimed,
                status=outcome.status,
                error=outcome.error,
                seconds=outcome.seconds,
                retry_in=retry_in,
                is_gone=outcome.is_gone,
            )
        if written and self._record is not None:
            self._record(error=outcome.error, is_last=outcome.is_delivered or outcome.is_gone or retry_in is None)
        # never the URL: it may hold a password
        report = _log.info if outcome.is_delivered else _log.warning
        report(
            "webhook sent" if outcome.is_delivered else "webhook not delivered",
            webhook=claimed.webhook_id,
            message=claimed.message_id,
            tries=claimed.tries,
            status=outcome.status,
            error=outcome.error,
            seconds=round(outcome.seconds, 3),
            claim_lost=not written,
        )
        return True

    def _send(self, claimed: ClaimedDelivery) -> Outcome:
        try:
            if self._box is None:
                self._box = self._open_box()
            present, *replaced = claimed.secrets
            secrets = [self._box.open(present)]
            with suppress(SecretUnreadable):  # the new one was made because nobody can read this one
                secrets += [self._box.open(sealed) for sealed in replaced]
        except SecretUnreadable as error:
            _log.error("webhook not signed", webhook=claimed.webhook_id, error=error.message)
            return Outcome(error=SecretUnreadable.code)
        try:
            headers = signed_headers(
                message_id=claimed.message_id, body=claimed.body, secrets=secrets, at=datetime.now(tz=UTC)
            )
            return self._sender.send(claimed.url, body=claimed.body, headers=headers)
        except Exception as error:
            # a mistake of ours is a failure too: without an outcome the message would be claimed without end
            _log.error("webhook not sent", webhook=claimed.webhook_id, error=type(error).__name__)
            return Outcome(error=ReplaceMeError.code)

    def _poll(self) -> None:
        """Wake up the senders when something is due, and clean up from time to time."""
        clean_at = time.monotonic() + _CLEAN_SECONDS
        wait = self._poll_seconds
        while not self._stopping.wait(wait):
            found = self._attempt(self._has_due)
            # a database without tables, or none at all
            wait = min(2 * wait, LONGEST_POLL_SECONDS) if found is None else self._poll_seconds
            if found:
                self._work.set()
            if time.monotonic() >= clean_at:
                clean_at = time.monotonic() + _CLEAN_SECONDS
                self._attempt(self._clean)

    def _send_all(self) -> None:
        while True:
            self._work.wait()
            if self._stopping.is_set():
                return
            if not self._attempt(self.send_one):
                self._work.clear()

    def _has_due(self) -> bool:
        with self._database.session(read_only=True) as session:
            return webhooks.has_due(session)

    def _clean(self) -> bool:
        for _ in range(_CLEAN_ROUNDS):
            with self._database.session() as session:
                deleted = webhooks.delete_old(session, older_than_seconds=self._log_seconds, limit=_CLEAN_LIMIT)
            if deleted < _CLEAN_LIMIT or self._stopping.is_set():
                break
        return True

    def _attempt(self, work: Callable[[], bool]) -> bool | None:
        """What `work` returns; `None` if it failed: no error ends a thread. Of a series the first one is logged."""
        try:
            result = work()
        except ReplaceMeError as error:
            failure = error.message
        except Exception as error:
            failure = type(error).__name__  # its text may hold what a row holds
        else:
            self._is_failing = False
            return result
        if not self._is_failing:
            self._is_failing = True
            _log.warning("webhooks wait for the database", error=failure)
        return None
