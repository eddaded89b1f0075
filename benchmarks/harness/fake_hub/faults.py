"""Faults on order: what goes wrong on a real network, at the request where a test wants it."""

import re
import threading
from dataclasses import dataclass, field
from enum import StrEnum


class Fault(StrEnum):
    DROP = "drop"  # the connection ends before the request is carried out
    LOSE_REPLY = "lose_reply"  # the request is carried out, its reply never arrives
    SPOIL_REPLY = "spoil_reply"  # the request is carried out and answered with the HTTP status in `value`
    STATUS = "status"  # not carried out, and answered with the HTTP status in `value`
    DELAY = "delay"  # carried out after `value` seconds
    TRUNCATE = "truncate"  # the reply's body ends after `value` bytes
    HOLD = "hold"  # carried out once it is released, whether its client is still there or not
    HOLD_REPLY = "hold_reply"  # carried out, and answered once it is released


@dataclass
class Rule:
    fault: Fault
    path: str = ""  # a regular expression, searched in the request's path
    method: str | None = None
    value: float = 0
    times: int = 1  # how many requests it strikes; below zero: all
    reached: threading.Event = field(default_factory=threading.Event)
    released: threading.Event = field(default_factory=threading.Event)
    forgotten: bool = False

    def release(self, *, carry_out: bool = True) -> None:
        """Let go of what is held. `carry_out=False`: the request never arrived."""
        self.forgotten = not carry_out
        self.released.set()

    def hold(self, stopping: threading.Event) -> None:
        """Called by the Hub: returns when released, or when the Hub stops."""
        self.reached.set()
        while not self.released.wait(0.02) and not stopping.is_set():
            pass


class Faults:
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
        """The first rule that strikes this request; it is then used up by one."""
        with self._lock:
            for rule in self._rules:
                if rule.times != 0 and rule.method in (None, method) and re.search(rule.path, path):
                    rule.times -= 1
                    return rule
        return None
