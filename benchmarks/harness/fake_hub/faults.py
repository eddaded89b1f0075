"""Network faults for the fake Hub: which request fails, and how."""

import gzip
import json
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from benchmarks.harness.fake_hub.messages import Reply


class Fault(StrEnum):
    DROP = "drop"  # the connection is closed, the request is not carried out
    LOSE_REPLY = "lose_reply"  # the request is carried out, the connection is closed without a reply
    SPOIL_REPLY = "spoil_reply"  # the request is carried out and answered with the HTTP status in `value`
    STATUS = "status"  # not carried out, and answered with the HTTP status in `value`
    DELAY = "delay"  # carried out after `value` seconds
    TRUNCATE = "truncate"  # the reply's body ends after `value` bytes
    RESET = "reset"  # the same; then the connection is reset, after half a second
    CORRUPT = "corrupt"  # the reply's body has another last byte
    DRIP = "drip"  # the reply's body is sent a byte at a time, `value` seconds apart
    INFLATE = "inflate"  # the reply's body is packed by gzip, with `value` blanks before it
    WRONG_ETAG = "wrong_etag"  # the reply names another ETag than that of its body
    LIMIT = "limit"  # not carried out, and answered with 429 and `value` as Retry-After
    AWAY = "away"  # the same with 503
    REWRITE = "rewrite"  # `Rule.change` is called with the value of the reply's JSON, and may change it
    HOLD = "hold"  # carried out after `Rule.release`, even if the client has disconnected
    HOLD_REPLY = "hold_reply"  # carried out, and answered after `Rule.release`


@dataclass
class Rule:
    """A fault, and the requests that it applies to."""

    fault: Fault
    path: str = ""  # a regular expression, searched in the request's path
    method: str | None = None
    value: float = 0
    times: int = 1  # how many requests it applies to; negative: all
    change: Callable[[Any], object] = lambda _: None
    reached: threading.Event = field(default_factory=threading.Event)
    released: threading.Event = field(default_factory=threading.Event)
    forgotten: bool = False

    def release(self, *, carry_out: bool = True) -> None:
        """Let held requests continue; with `carry_out=False` they are dropped, as if they had never arrived."""
        self.forgotten = not carry_out
        self.released.set()

    def hold(self, stopping: threading.Event) -> None:
        """Block until `release`, or until the Hub stops. Called by the Hub."""
        self.reached.set()
        while not self.released.wait(0.02) and not stopping.is_set():
            pass


class Faults:
    """The rules in force, for all threads of the Hub."""

    def __init__(self) -> None:
        self._rules: list[Rule] = []
        self._lock = threading.Lock()

    def add(self, rule: Rule) -> None:
        with self._lock:
            self._rules.append(rule)

    def clear(self) -> None:
        with self._lock:
            for rule in self._rules:
                if not rule.released.is_set():
                    rule.release(carry_out=False)
            self._rules.clear()

    def take(self, method: str, path: str) -> Rule | None:
        """The first rule that applies to this request; it then applies to one request less."""
        with self._lock:
            for rule in self._rules:
                if rule.times != 0 and rule.method in (None, method) and re.search(rule.path, path):
                    rule.times -= 1
                    return rule
        return None


def falsified(reply: Reply, fault: Fault) -> Reply:
    """The reply with another ETag, or with another last byte."""
    if fault is Fault.WRONG_ETAG:
        return replace(reply, headers={**reply.headers, "ETag": f'"{"0" * 64}"', "X-Linked-Etag": f'"{"0" * 64}"'})
    body = reply.body.read_bytes() if isinstance(reply.body, Path) else reply.body
    return replace(reply, body=body[:-1] + bytes([body[-1] ^ 255])) if body else reply


def inflated(reply: Reply, blanks: int) -> Reply:
    """The reply with blanks before its body, which mean nothing in JSON, packed by gzip."""
    assert isinstance(reply.body, bytes)
    packed = gzip.compress(b" " * blanks + reply.body)
    return replace(reply, headers={**reply.headers, "Content-Encoding": "gzip"}, body=packed)


def rewritten(reply: Reply, change: Callable[[Any], object]) -> Reply:
    """The reply with the JSON that `change` makes of its own."""
    assert isinstance(reply.body, bytes)
    value = json.loads(reply.body)
    change(value)
    return replace(reply, body=json.dumps(value).encode())
