"""Memory over the time of a run: a thread of the runner looks at it, seldom enough to cost nothing."""

import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

_PAGES = Path("/proc/self/statm")
MOST_SAMPLES = 240
FIRST_SECONDS = 0.1
"""Between two looks; twice as long each time that there are `MOST_SAMPLES`, of which then every other one stays."""


@dataclass(frozen=True, kw_only=True)
class MemorySample:
    """`bytes` of resident memory, or of the accelerator's memory where one is used, `seconds` after the start."""

    seconds: float
    bytes: int
    stage: str

    def as_dict(self) -> dict[str, object]:
        return asdict(self)


class MemorySampler:
    """Takes samples from `start` to `stop`. `stage` tells which one is under way; between stages no sample is kept."""

    def __init__(self, device: torch.device, *, stage: Callable[[], str | None]) -> None:
        self._read = _reader(device)
        self._stage = stage
        self._samples: list[MemorySample] = []
        self._seconds = FIRST_SECONDS
        self._began = time.perf_counter()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._take, name="memory-samples", daemon=True)

    @property
    def samples(self) -> list[MemorySample]:
        """Those so far, at most `MOST_SAMPLES`; none where this is not Linux and there is no accelerator."""
        return list(self._samples)

    def start(self) -> None:
        if self._read is not None:
            self._thread.start()

    def stop(self) -> None:
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()

    def _take(self) -> None:
        while True:
            self._look()
            if self._ended.wait(self._seconds):
                return

    def _look(self) -> None:
        stage = self._stage()
        if stage is None or self._read is None:
            return
        with suppress(OSError):
            seconds = round(time.perf_counter() - self._began, 3)
            self._samples.append(MemorySample(seconds=seconds, bytes=self._read(), stage=stage))
        if len(self._samples) >= MOST_SAMPLES:
            self._samples = self._samples[::2]
            self._seconds *= 2


def _reader(device: torch.device) -> Callable[[], int] | None:
    if device.type != "cpu":
        return lambda: int(torch.get_device_module(device).memory_allocated(device))
    if not _PAGES.is_file():
        return None
    page = os.sysconf("SC_PAGE_SIZE")
    return lambda: int(_PAGES.read_text().split()[1]) * page
