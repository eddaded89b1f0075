"""What the commands that run a model here share: options, the display of progress, how they end early."""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer

from api.cli.output.console import make_console
from api.cli.output.progress import progress_display
from replaceme_core.local.run import ShowProgress

MODEL_HELP = "a directory as save_pretrained writes it, or org/name on the Hub, also org/name@revision"
CacheDirectory = Annotated[
    Path | None,
    typer.Option(
        "--cache", help="Directory for what the dense model has computed, for later runs on the same model and text."
    ),
]
Device = Annotated[str | None, typer.Option(help="Device such as cpu, cuda or cuda:1. Default: the fastest available.")]
TasksDirectory = Annotated[
    Path | None,
    typer.Option(
        "--tasks-dir",
        exists=True,
        file_okay=False,
        help="Directory with the data of the tasks, as org/name, and with YAML files of tasks of your own.",
    ),
]


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
