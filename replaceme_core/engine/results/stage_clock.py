"""Time and peak memory of each stage, measured inside the runner process."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import torch

from replaceme_core.engine.model.allocator import release_memory
from replaceme_core.plan.duration import MODELLED
from replaceme_core.runner.messages import Progress, Stage

_STATUS = Path("/proc/self/status")
_RESET = Path("/proc/self/clear_refs")


@dataclass(frozen=True, kw_only=True)
class StageRecord:
    """`seconds` of wall time; `peak_bytes` of resident memory, or of the accelerator's memory where one is used."""

    name: str
    seconds: float
    peak_bytes: int


@dataclass(kw_only=True)
class StageClock:
    """Ends one stage when the next begins, and reports both to `progress`.

    `modelled` has the seconds of each stage by the stated model, to which the time of later jobs is fitted
    (`plan.duration`).
    """

    progress: Progress
    device: torch.device
    modelled: Mapping[Stage, float] = field(default_factory=dict)
    records: dict[Stage, StageRecord] = field(default_factory=dict)
    loading_seconds: float = 0.0
    """Time for reading models, in all stages together."""
    _current: Stage | None = None
    _began: float = 0.0

    def begin(self, stage: Stage, *, resumed_from: Stage | None = None) -> None:
        """End the present stage and begin `stage`; an earlier attempt may have left the result of `resumed_from`."""
        self.end()
        release_memory()
        self.progress.stage(stage, resumed_from=resumed_from)
        self._current, self._began = stage, time.perf_counter()
        _reset_peak(self.device)

    @contextmanager
    def loading(self) -> Iterator[None]:
        """Count the time in this context as loading."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.loading_seconds += time.perf_counter() - began

    def end(self) -> None:
        """Record the present stage, if there is one."""
        if self._current is None:
            return
        stage, seconds, peak = self._current, time.perf_counter() - self._began, _peak(self.device)
        self._current = None
        earlier = self.records.pop(stage, None)  # a stage that is entered twice has one row
        if earlier is not None:
            seconds, peak = earlier.seconds + seconds, max(earlier.peak_bytes, peak)
        record = self.records[stage] = StageRecord(name=stage, seconds=seconds, peak_bytes=peak)
        self.progress.metric("seconds", record.seconds, "s")
        self.progress.metric("peak_memory", record.peak_bytes, "bytes")
        if stage in self.modelled:
            self.progress.metric(MODELLED, self.modelled[stage], "s")


def resident_bytes() -> int:
    """Resident memory of this process now."""
    return int(psutil.Process().memory_info().rss)


def _peak(device: torch.device) -> int:
    if device.type != "cpu":
        return int(torch.get_device_module(device).max_memory_allocated(device))
    try:
        lines = _STATUS.read_text().splitlines()
    except OSError:
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


def _reset_peak(device: torch.device) -> None:
    if device.type != "cpu":
        torch.get_device_module(device).reset_peak_memory_stats(device)
        return
    # Where this is not Linux, or not allowed, the peak also covers the stages before this one.
    with suppress(OSError):
        _RESET.write_text("5")  # proc(5): resets the peak resident size to the present one
