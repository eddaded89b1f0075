import pytest

from replaceme_core.plan.eta import LEAST_ERROR, Course, weights_of
from replaceme_core.request.calibration import CalibrationSpec
from replaceme_core.request.gate import DeepestCut, GateSpec, Limits
from replaceme_core.request.method import Method, MethodSpec, Selection
from replaceme_core.request.spec import CompressionSpec, EvaluationSpec, ModelRef
from replaceme_core.runner.messages import Stage


def spec(*, evaluate: bool) -> CompressionSpec:
    return CompressionSpec(
        model=ModelRef(repo_id="acme/tiny"),
        ratio=0.5,
        calibration=CalibrationSpec(dataset="builtin:pydoc-topics"),
        evaluation=EvaluationSpec(enabled=evaluate),
    )


def test_the_way_through_all_stages_is_the_whole() -> None:
    course = Course(weights=weights_of(spec(evaluate=True)), started=0)
    seen = []
    for stage in Stage:
        for fraction in (0.0, 0.5, 1.0):
            course.move(stage, fraction, 0)
            seen.append(course.overall)
    assert seen == sorted(seen)
    assert seen[0] == 0
    assert seen[-1] == pytest.approx(1)


def at_the_solve(**method: object) -> float:
    asked = spec(evaluate=True).model_copy(update={"method": MethodSpec.model_validate(method)})
    course = Course(weights=weights_of(asked), started=0)
    course.move(Stage.SOLVE, 0.0, 0)
    return course.overall


def test_a_method_that_solves_for_most_of_its_time_is_not_nearly_done_when_it_begins() -> None:
    assert at_the_solve(name=Method.LEAST_SQUARES) > 0.6
    assert at_the_solve(name=Method.AUTO) < 0.5
    assert at_the_solve(name=Method.REFIT, selection=Selection.WINDOW) < 0.5


def test_trials_are_a_part_of_the_selection() -> None:
    one = spec(evaluate=True)
    gate = GateSpec(divergence=Limits(max=1.0))
    search = one.model_copy(update={"ratio": DeepestCut(max=0.5), "gate": gate})
    plain, few, many = weights_of(one), weights_of(search, blocks=6), weights_of(search, blocks=80)
    assert weights_of(search) == weights_of(search, blocks=32)
    assert list(few) == list(plain)
    measuring = plain[Stage.EVALUATE] / 2
    each = measuring + sum(plain[stage] for stage in (Stage.SELECT, Stage.SOLVE, Stage.FOLD, Stage.SAVE))
    for found, trials in ((few, 2), (many, 6)):
        assert found[Stage.SELECT] == pytest.approx(trials * each + measuring)
    for stage in (Stage.DOWNLOAD, Stage.CALIBRATE, Stage.FOLD, Stage.SAVE, Stage.PUBLISH):
        assert many[stage] == plain[stage]


def test_there_is_no_estimate_before_the_plan() -> None:
    """Else a download that takes no time, and imports that do, are two hours left of a job of ten seconds."""
    course = Course(weights=weights_of(spec(evaluate=True)), started=100)
    course.move(Stage.DOWNLOAD, 1.0, 100.1)
    course.move(Stage.CALIBRATE, 0.0, 106)
    assert (course.eta_seconds(106), course.eta_error_seconds()) == (None, None)
    course.expect({Stage.CALIBRATE: 6.0, Stage.SAVE: 4.0}, 107)
    assert course.eta_seconds(107) == 10


def test_a_slow_job_with_a_plan_is_expected_to_be_between_its_plan_and_its_speed() -> None:
    course = Course(weights=weights_of(spec(evaluate=True)), started=50)
    course.expect({Stage.CALIBRATE: 40.0, Stage.SELECT: 20.0, Stage.SOLVE: 30.0, Stage.SAVE: 10.0}, 50)
    course.move(Stage.SELECT, 0.5, 150)
    eta = course.eta_seconds(150)
    assert eta is not None
    assert 60 < eta <= 100
    course.move(Stage.SAVE, 0.0, 151, resumed=True)
    assert course.eta_seconds(151) == pytest.approx(10), "what an earlier attempt has done does not make it faster"


def test_a_steady_run_has_a_small_error_and_one_that_slows_down_a_large_one() -> None:
    def course_at(times: list[float]) -> Course:
        course = Course(weights={Stage.SOLVE: 1.0}, started=0)
        course.expect({Stage.SOLVE: 400.0}, 0)
        for step, now in enumerate(times, 1):
            course.move(Stage.SOLVE, step / 40, now)
            course.eta_seconds(now)
        return course

    steady = course_at([10.0 * step for step in range(1, 21)])
    assert steady.eta_error_seconds() == pytest.approx(LEAST_ERROR * 200), "and never none"
    slower = course_at([10.0 * step for step in range(1, 11)] + [100.0 + 30 * step for step in range(1, 11)])
    error, eta = slower.eta_error_seconds(), slower.eta_seconds(400)
    assert error is not None
    assert eta is not None
    assert error > 3 * LEAST_ERROR * eta
    assert eta - error <= 400 / 20 * 20 <= eta + error  # the rest at the speed so far
