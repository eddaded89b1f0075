"""What a command shows while a model is worked on here, and how it ends early."""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from api.cli.output.console import make_console
from api.cli.output.progress import progress_display
from replaceme_core.local.run import ShowProgress


@contextmanager
def shown_progress() -> Iterator[ShowProgress]:
    """Show progress on standard error. SIGTERM is handled like Ctrl-C: the runner ends, temporary files are removed."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        with progress_display(make_console(stderr=True), clock=time.monotonic) as show:
            yield show
    finally:
        signal.signal(signal.SIGTERM, before)
