"""The deepest cut that passes the gate: as brute force finds it, from one dense pass, and the same as a plain job's."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from replaceme_core.engine import pipeline
from replaceme_core.engine import run as run_module
from replaceme_core.engine.evaluation import compare
from replaceme_core.engine.evaluation.compare import Original
from replaceme_core.engine.evaluation.measure import SOURCE, Subject
from replaceme_core.engine.methods.task import Task
from replaceme_core.engine.results import checkpoint
from replaceme_core.errors import InvalidInput, NumericalFailure
from replaceme_core.request.gate import GateResult
from replaceme_core.runner.messages import Finished, RunnerRequest, Stage
from tests.fixtures.models.pipeline import request, run
from tests.fixtures.models.tiny import BLOCKS, BY_NAME, save_tiny, tiny_model

MOST = 4
SEARCH = {"max": 0.67}  # of 6 blocks, rounded
QUICK = {
    "calibration": {"dataset": "file:text.txt", "samples": 8, "max_length": 32},
    "evaluation": {"samples": 2},
    "method": {"name": "drop"},
}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose blocks add little, so that each one that goes makes it a little worse."""
    directory = save_tiny(tmp_path_factory.mktemp("source") / "model")
    model = tiny_model()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                parameter.mul_(0.2)
    model.save_pretrained(directory)
    return directory


def at(source: Path, place: Path, **fields: object) -> RunnerRequest:
    """A request whose result is in `place`."""
    return request(source, **{**QUICK, **fields}).model_copy(update={"output_directory": str(place)})


def verdict_of(finished: Finished) -> GateResult:
    found = GateResult.in_report(finished.report)
    assert found is not None
    return found


@pytest.fixture
def without_speed() -> Iterator[None]:
    """Speed and answers are measured once, of the result that is found: most of the time of these runs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Original, "finish", lambda _self, found, _after: found)
        yield


def each_depth(descending: Sequence[int], _found: bool, *, key: Callable[[int], bool]) -> int:
    """In place of bisection: all of them, the shallowest first."""
    return sum([not key(depth) for depth in reversed(descending)])


@pytest.fixture(scope="module")
def divergences(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, float]:
    """By depth, from trials of all depths."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_module, "bisect_left", each_depth)
        patch.setattr(Original, "finish", lambda _self, found, _after: found)
        place = tmp_path_factory.mktemp("all") / "out"
        found = verdict_of(run(at(source, place, ratio=SEARCH, gate={"divergence": {"max": 100}}))[0])
    values = {one.blocks: one.measured["divergence"] for one in found.trials}
    assert list(values) == list(range(1, MOST + 1))
    assert sorted(values.values()) == list(values.values())
    return values


@pytest.mark.usefixtures("without_speed")
@pytest.mark.parametrize("wanted", [0, 2, MOST])
def test_bisection_finds_what_brute_force_finds(
    source: Path, tmp_path: Path, divergences: dict[int, float], wanted: int
) -> None:
    """The limit is between two depths."""
    limit = (divergences.get(wanted, 0.0) + divergences.get(wanted + 1, 1.0)) / 2
    finished, recorder, out = run(at(source, tmp_path / "out", ratio=SEARCH, gate={"divergence": {"max": limit}}))
    found = verdict_of(finished)
    assert found.passed == (wanted > 0)
    assert len(finished.removed_blocks) == max(wanted, 1)
    assert len(found.trials) <= 3
    verdicts = {one.blocks: one.passed for one in found.trials}
    assert verdicts.get(wanted, True)
    assert verdicts.get(wanted + 1) is (None if wanted == MOST else False), "the depth above was seen to fail"
    for one in found.trials:
        assert one.passed == (divergences[one.blocks] <= limit)
        assert one.measured["divergence"] == divergences[one.blocks]
        assert (one.seconds > 0, len(one.removed_blocks)) == (True, one.blocks)
    names = [f"{one.blocks} block{'s' if one.blocks > 1 else ''}" for one in found.trials]
    reported = {(name, of): value for _, name, value, _, _, of in recorder.metrics if name.startswith("trial_")}
    assert [reported["trial_passed", name] for name in names] == [float(one.passed) for one in found.trials]
    assert [reported["trial_value", f"{name}: divergence"] for name in names] == [
        one.measured["divergence"] for one in found.trials
    ]
    selecting = [fraction for stage, fraction in recorder.fractions if stage is Stage.SELECT]
    assert selecting == sorted(selecting)
    assert "was looked for" in (out / "README.md").read_text()


def batches_run(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The name of the model for each pass over its blocks from now on, while texts are measured."""
    runs: list[str] = []
    stream = Subject.stream

    def counted(self: Subject, batch: torch.Tensor) -> torch.Tensor:
        runs.append(self.name)
        return stream(self, batch)

    monkeypatch.setattr(Subject, "stream", counted)
    return runs


@pytest.mark.parametrize("method", ["least_squares", "auto"])
def test_one_dense_pass_and_one_measurement_serve_all_trials(
    source: Path, tmp_path: Path, divergences: dict[int, float], monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    runs = batches_run(monkeypatch)
    gate = {"divergence": {"max": 100}}
    asked = {"method": {"name": method}, "gate": gate}
    searched, _, _ = run(at(source, tmp_path / "out", ratio=SEARCH, **asked))
    trials, of_source = len(verdict_of(searched).trials), runs.count(SOURCE)
    assert trials == 3
    assert len(runs) == of_source * (1 + trials)
    assert searched.report["reused"] == []
    runs.clear()
    plain, _, _ = run(at(source, tmp_path / "plain", ratio=0.67, **asked))
    assert runs.count(SOURCE) == of_source
    batches = 2  # one of fit tokens, one held out
    captured = searched.report["captured"]
    assert isinstance(captured, dict)
    assert captured["dense_block_runs"] == BLOCKS * batches + BLOCKS, "one pass, and the residual check on one sequence"
    # and the result is that of a job for one ratio
    for part in ("removed_blocks", "candidates", "result", "texts"):
        assert searched.report[part] == plain.report[part], part
    assert verdict_of(searched).criteria == verdict_of(plain).criteria


@pytest.mark.usefixtures("without_speed")
def test_a_later_attempt_goes_on_with_what_was_decided(
    source: Path, tmp_path: Path, divergences: dict[int, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker is lost in the second trial. Nothing is there; the first trial is not decided again."""
    place = tmp_path / "first" / "out"
    gate = {"divergence": {"max": divergences[MOST]}}
    asked = at(source, place, ratio=SEARCH, gate=gate).model_copy(
        update={"checkpoint_directory": str(tmp_path / "checkpoints")}
    )
    decided: list[int] = []
    find = checkpoint.find_method

    def spied(name: object) -> object:
        def calibrate(task: Task) -> object:
            decided.append(task.remove)
            if decided == [2, 3]:
                raise KeyboardInterrupt
            return find(name)(task)  # type: ignore[arg-type]

        return calibrate

    monkeypatch.setattr(checkpoint, "find_method", spied)
    with pytest.raises(KeyboardInterrupt):
        run(asked)
    assert list(place.parent.iterdir()) == [], "neither a result nor a trial is left behind"
    resumed, _, _ = run(asked)
    assert decided == [2, 3, 3, 4]
    fresh, _, _ = run(at(source, tmp_path / "second", ratio=SEARCH, gate=gate))
    assert resumed.report["result"] == fresh.report["result"]
    assert [one.blocks for one in verdict_of(resumed).trials] == [2, 3, 4]


@pytest.mark.usefixtures("without_speed")
def test_a_depth_that_cannot_be_measured_has_failed(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compare = Original.compare

    def broken(self: object, after: Subject, **rest: object) -> object:
        if after.model.config.num_hidden_layers < BLOCKS - 1:
            raise NumericalFailure("the perplexity of the pruned model is infinite")
        return compare(self, after, **rest)  # type: ignore[arg-type]

    monkeypatch.setattr(Original, "compare", broken)
    gate = {"divergence": {"max": 100}}
    finished, _, _ = run(at(source, tmp_path / "out", ratio=SEARCH, gate=gate))
    found = verdict_of(finished)
    assert [(one.blocks, one.passed, one.problem is None) for one in found.trials] == [
        (2, False, False),
        (1, True, True),
    ]
    assert found.passed

    def always_broken(*_: object, **__: object) -> None:
        raise NumericalFailure("the perplexity of the pruned model is infinite")

    monkeypatch.setattr(Original, "compare", always_broken)
    with pytest.raises(NumericalFailure, match="infinite"):
        run(at(source, tmp_path / "nothing", ratio=SEARCH, gate=gate))
    assert not (tmp_path / "nothing").exists()


@pytest.mark.usefixtures("without_speed")
def test_what_could_not_be_measured_of_another_trial_is_no_warning(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_before: object, after: PreTrainedModel, *_: object, **__: object) -> None:
        raise InvalidInput(f"{after.config.num_hidden_layers} blocks are left")

    monkeypatch.setattr(compare, "changed_experts", broken)
    finished, _, _ = run(at(source, tmp_path / "out", ratio=SEARCH, gate={"divergence": {"max": 100}}))
    assert [one.blocks for one in verdict_of(finished).trials] == [2, 3, MOST]
    warnings: Any = finished.report["warnings"]
    (found,) = [one["message"] for one in warnings if one["code"] == "not_measured"]
    assert found.endswith(f"could not be measured: {BLOCKS - MOST} blocks are left")


@pytest.mark.usefixtures("without_speed")
def test_a_depth_at_which_the_blocks_may_not_go_has_failed(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def allows(removed: Sequence[int]) -> bool:
        return not {1, 2, 3}.intersection(removed)

    monkeypatch.setattr(pipeline, "keep_pattern", lambda spec, *_, **__: (spec, allows))
    finished, _, _ = run(at(source, tmp_path / "out", ratio=SEARCH, gate={"divergence": {"max": 100}}))
    trials = verdict_of(finished).trials
    assert [(one.blocks, one.passed) for one in trials] == [(2, True), (3, False)]
    assert "remove fewer" in (trials[1].problem or "")


@pytest.mark.usefixtures("without_speed")
def test_only_depths_that_keep_the_pattern_anywhere_are_tried(tmp_path: Path) -> None:
    """Every third block has full attention: 1, 2, 4 or 5 blocks could go near the end only."""
    changes = {"num_hidden_layers": 12, "sliding_window_pattern": 3}
    source = save_tiny(tmp_path / "model", variant=BY_NAME["gemma3"], **changes)
    compute = {"threads": 1, "dtype": "float32", "pattern_safe": True}
    gate = {"divergence": {"max": 100}}
    finished, _, _ = run(at(source, tmp_path / "out", ratio={"max": 0.5}, gate=gate, compute=compute))
    assert [one.blocks for one in verdict_of(finished).trials] == [3, 6]
