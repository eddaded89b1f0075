"""Signals that end a process, for the command and the workers, which share nothing else above the core."""

import signal
from collections.abc import Callable
from types import FrameType

Handler = Callable[[int, FrameType | None], object]


def outlives_terminal() -> bool:
    """Whether `nohup` has the process ignore SIGHUP. A library may have changed that since the start."""
    return signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


def handle(handler: Handler, *numbers: signal.Signals) -> dict[signal.Signals, Handler | int | None]:
    """Handle these signals with `handler`, but for a SIGHUP that `nohup` has ignored; returns their former handlers."""
    is_kept = outlives_terminal()
    return {one: signal.signal(one, handler) for one in numbers if not (is_kept and one is signal.SIGHUP)}
