"""Expected times against a made-up machine: what stages take there is known, and the plans know its finished jobs."""

import random
from collections.abc import Mapping
from dataclasses import dataclass, field

import pytest

from replaceme_core.plan.duration import FIXED_SECONDS, Basis, Duration, expected_duration, inputs_of
from replaceme_core.request.calibration import SELF_GENERATED
from replaceme_core.request.method import Method
from replaceme_core.request.resolve import resolve_text
from replaceme_core.request.spec import CompressionRequest, Loading
from replaceme_core.runner.messages import PastJob, Stage
from tests.fixtures.models.headers import SMOLLM2, HeaderHub, LlamaSize, planner

STAGES = tuple(stage for stage in Stage if stage not in (Stage.RESOLVE, Stage.HEAL))
SIZES = {
    "org/tiny": LlamaSize(blocks=8, width=64, inner=128, key_values=64, heads=4, vocabulary=300),
    "org/small": SMOLLM2,
    "org/large": LlamaSize(blocks=28, width=1536, inner=4096, key_values=512, heads=12),
}
METHODS = (Method.AUTO, Method.LEAST_SQUARES, Method.REFIT, Method.DROP)
HUBS = {name: HeaderHub(size=size) for name, size in SIZES.items()}
JOBS, WEIRD_JOBS = 20, (6, 11, 16)
CLOSE = 1.5


@dataclass
class Machine:
    """`speed` times as slow as the model says, and each part of a stage up to a third slower or faster than that."""

    speed: float
    chance: random.Random
    history: list[PastJob] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.off = {(stage, part): self._about(self.speed, 1 / 3) for stage in STAGES for part in ("fixed", "rest")}
        self.off_by_method = {
            (method, stage): self._about(1.0, 1 / 3) for method in METHODS for stage in (Stage.SELECT, Stage.SOLVE)
        }

    def _about(self, value: float, part: float) -> float:
        return value * (1 + part) ** self.chance.uniform(-1, 1)

    def any_request(self) -> CompressionRequest:
        samples, length = self.chance.choice([(16, 128), (64, 512), (128, 512)])
        body = {
            "model": self.chance.choice(list(SIZES)),
            "ratio": self.chance.choice([0.125, 0.25]),
            "calibration": {"dataset": "builtin:general", "samples": samples, "max_length": length},
            "method": str(self.chance.choice(METHODS)),
            "evaluation": {"enabled": self.chance.random() < 0.8},
        }
        return CompressionRequest.model_validate(body)

    def plan(self, request: CompressionRequest) -> tuple[Method, Duration]:
        hub = HUBS[request.model.repo_id]
        found = planner(hub, history=self.history, is_remote=False).plan(request).estimate
        assert found is not None
        return found.work.method, found.duration

    def run(self, request: CompressionRequest, method: Method, duration: Duration, *, is_weird: bool) -> float:
        """Carry out a job; what it took, in seconds."""
        text = resolve_text(request.to_spec(), on_cpu=True, loading=Loading.WHOLE)
        inputs = inputs_of(request.to_spec().model_copy(update={"calibration": text}))
        cached = any(job.inputs == inputs for job in self.history)
        stages = {}
        for stage, modelled in duration.modelled.items():
            fixed = FIXED_SECONDS[stage]
            rest = (modelled - fixed) * self.off_by_method.get((method, stage), 1.0) * self.off[stage, "rest"]
            rest *= 0.1 if cached and stage is Stage.CALIBRATE else 1.0
            stages[stage] = modelled, self._about(fixed * self.off[stage, "fixed"] + rest, 0.1)
        if is_weird:  # a laptop slept, or a stage found its work done
            stage = self.chance.choice(list(stages))
            modelled, seconds = stages[stage]
            stages[stage] = modelled, self.chance.choice([8 * seconds, seconds + 1800, 0.1 * seconds])
        self.history.insert(0, PastJob(method=method, inputs=inputs, stages=stages))
        return sum(seconds for _, seconds in stages.values())


@pytest.mark.parametrize("speed", [0.4, 3.0])
def test_the_second_to_the_twentieth_job_of_mixed_sizes(speed: float) -> None:
    plans: list[tuple[Duration, float]] = []
    for seed in range(3):
        machine = Machine(speed, random.Random(seed))
        for number in range(1, JOBS + 1):
            request = machine.any_request()
            method, planned = machine.plan(request)
            took = machine.run(request, method, planned, is_weird=number in WEIRD_JOBS)
            if number > 1 and number not in WEIRD_JOBS:
                plans.append((planned, took))
    assert all(planned.basis is Basis.MEASURED for planned, _ in plans)
    off = [max(planned.seconds / took, took / planned.seconds) for planned, took in plans]
    assert sum(one <= CLOSE for one in off) >= 0.98 * len(off)
    assert max(off) < 2 * CLOSE
    assert sum(planned.low <= took <= planned.high for planned, took in plans) >= 0.9 * len(plans)


def past(modelled: Mapping[Stage, float], factor: float, name: str) -> PastJob:
    return PastJob(
        method=Method.AUTO, inputs=name, stages={stage: (each, factor * each) for stage, each in modelled.items()}
    )


def modelled_of(model: str) -> Mapping[Stage, float]:
    request = CompressionRequest.model_validate(
        {"model": model, "ratio": 0.25, "calibration": "builtin:general", "method": "auto"}
    )
    return Machine(1.0, random.Random(0)).plan(request)[1].modelled


def test_the_inputs_of_a_job_tell_whether_the_model_wrote_text_and_no_names() -> None:
    def inputs(**calibration: object) -> str:
        body = {"model": "org/secret-model", "ratio": 0.25, "calibration": {"dataset": "org/private", **calibration}}
        spec = CompressionRequest.model_validate(body).to_spec()
        text = resolve_text(spec, on_cpu=True, loading=Loading.WHOLE)
        return inputs_of(spec.model_copy(update={"calibration": text}))

    written, read = inputs(), inputs(self_generated=0.0)
    assert [SELF_GENERATED in one for one in (written, read)] == [True, False]
    for one in (written, read):
        assert not any(name in one for name in ("org", "secret", "private"))
    assert written == inputs() != inputs(seed=7)


def test_jobs_whose_text_came_about_in_the_same_way_say_more() -> None:
    """Slow where the model wrote text, as it says without, and a tenth of that where the text was known."""
    usual = modelled_of("org/large")

    def calibrated(factor: float, inputs: str) -> PastJob:
        stages = {stage: (each, each) for stage, each in usual.items()}
        stages[Stage.CALIBRATE] = usual[Stage.CALIBRATE], factor * usual[Stage.CALIBRATE]
        return PastJob(method=Method.DROP, inputs=inputs, stages=stages)

    def expected(inputs: str) -> float:
        found = expected_duration(usual, history, method=Method.AUTO, inputs=inputs)
        return found.stages[Stage.CALIBRATE] / usual[Stage.CALIBRATE]

    writing = [f"{name} {SELF_GENERATED}" for name in "abcde"]
    history = [calibrated(0.1, "known"), calibrated(1.0, "known"), *[calibrated(5.0, inputs) for inputs in writing]]
    assert expected("new") == pytest.approx(1.0, rel=0.3)
    assert expected(f"new {SELF_GENERATED}") == pytest.approx(5.0, rel=0.3)
    assert 0.05 < expected("known") < 0.3


def test_a_job_without_a_stage_of_the_plan_says_how_slow_the_machine_is() -> None:
    usual = {stage: seconds for stage, seconds in modelled_of("org/small").items() if stage is not Stage.EVALUATE}
    history = [past({Stage.EVALUATE: 50.0}, 3.0, "a")]
    found = expected_duration(usual, history, method=Method.AUTO, inputs="new")
    assert found.seconds == pytest.approx(3 * sum(usual.values()), rel=0.2)


@pytest.mark.parametrize("factor", [0.01, 0.1, 10.0, 100.0, 10_000.0])
def test_a_weird_job_moves_a_plan_by_a_bounded_factor(factor: float) -> None:
    usual = modelled_of("org/small")

    def moved(*history: PastJob) -> float:
        found = expected_duration(usual, history, method=Method.AUTO, inputs="new")
        return found.seconds / sum(usual.values())

    weird, ordinary = past(usual, factor, "weird"), [past(usual, 1.0, name) for name in "abc"]
    assert 1 / 5.1 <= moved(weird) <= 5.1
    assert 1 / 1.25 <= moved(weird, *ordinary[:1]) <= 1.25
    assert 1 / 1.06 <= moved(weird, *ordinary) <= 1.06
    again = moved(*[past(usual, factor, name) for name in "abcdefgh"])
    assert again == pytest.approx(factor, rel=0.05), "what is so each time is not weird"


def test_a_tiny_job_says_how_slow_the_machine_is_and_nothing_about_the_rate() -> None:
    """All that a tiny job takes is fixed: three times as much of it is not thousands of times as much of the rest."""
    usual, tiny = modelled_of("org/large"), modelled_of("org/tiny")
    history = [past(tiny, 3.0, name) for name in "abc"]
    found = expected_duration(usual, history, method=Method.AUTO, inputs="new")
    assert found.seconds == pytest.approx(3 * sum(usual.values()), rel=0.2)
    assert found.high / found.low > 2, "nothing of its size has run"
    like = expected_duration(usual, [past(usual, 3.0, name) for name in "abc"], method=Method.AUTO, inputs="new")
    assert like.high / like.low < 1.5
