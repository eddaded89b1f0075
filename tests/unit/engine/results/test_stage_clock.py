"""Samples of memory: while a clock runs, with the stage, and never more than the limit."""

import threading
import time

import pytest
import torch

from replaceme_core.engine.results import stage_clock
from replaceme_core.engine.results.stage_clock import MemorySampler, StageClock, resident_bytes
from replaceme_core.errors import NumericalFailure
from replaceme_core.runner.messages import Stage
from tests.fixtures.models.recorder import Recorder

CPU = torch.device("cpu")


def test_a_clock_samples_while_it_is_entered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage_clock, "FIRST_SECONDS", 0.01)
    clock = StageClock(progress=Recorder(), device=CPU)
    with clock:
        for stage in (Stage.CALIBRATE, Stage.SELECT):
            clock.begin(stage)
            time.sleep(0.1)
        clock.end()
    samples = clock.times().memory
    assert {sample.stage for sample in samples} == {"calibrate", "select"}
    assert [sample.seconds for sample in samples] == sorted(sample.seconds for sample in samples)
    assert samples[-1].bytes == pytest.approx(resident_bytes(), rel=0.5)
    time.sleep(0.05)
    assert clock.times().memory == samples, "it has stopped"


def test_there_are_never_many(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each time half of them go, and the time between two doubles."""
    monkeypatch.setattr(stage_clock, "FIRST_SECONDS", 0.001)
    monkeypatch.setattr(stage_clock, "MOST_SAMPLES", 8)
    sampler = MemorySampler(CPU, stage=lambda: "solve")
    sampler.start()
    time.sleep(0.2)
    sampler.stop()
    seconds = [sample.seconds for sample in sampler.samples]
    assert 4 <= len(seconds) < 8
    assert seconds[-1] > 0.05


def test_a_run_that_fails_ends_its_sampling() -> None:
    clock = StageClock(progress=Recorder(), device=CPU)

    def fail() -> None:
        with clock:
            clock.begin(Stage.CALIBRATE)
            raise NumericalFailure("no map")

    with pytest.raises(NumericalFailure):
        fail()
    assert not [thread for thread in threading.enumerate() if thread.name == "memory-samples"]
