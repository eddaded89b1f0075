"""Plain removal of a window: the distances against those of a pass that gathers everything."""

import pytest
import torch

from benchmarks.harness.specs import a_spec
from replaceme_core.engine.activations.cut_sums import capture_windows
from replaceme_core.engine.model.block_runner import BlockRunner
from replaceme_core.engine.model.changes import windows
from replaceme_core.families.resolve import resolve
from tests.fixtures.models.tasks import carry_out, make_task, mean_loss, operate
from tests.fixtures.models.tiny import BLOCKS, tiny_model, token_ids

FIT, HELD_OUT = token_ids(6, 24, seed=1), token_ids(4, 24, seed=2)
METHOD = {"name": "drop"}


@torch.inference_mode()
def test_the_window_of_least_distance_goes() -> None:
    statistics, _ = capture_windows(
        BlockRunner(resolved=resolve(tiny_model())),
        windows(BLOCKS, 2),
        fit=FIT,
        held_out=HELD_OUT,
        batch_size=4,
        advance=lambda _: None,
    )
    expected = {one.cut: one.angle.value for one in statistics}
    task, recorder = make_task(tiny_model(), remove=2, fit=FIT, held_out=HELD_OUT, method=METHOD)
    pruning = carry_out(task)
    assert {row.cut: row.distance for row in pruning.candidates} == pytest.approx(expected)
    nearest = min(expected, key=lambda cut: expected[cut])
    assert list(pruning.removed) == list(nearest.blocks)
    assert [row.cut for row in pruning.candidates if row.chosen] == [nearest]
    assert not pruning.folds
    pruned = operate(tiny_model(), pruning)
    assert recorder.value("result_held_out_loss") == pytest.approx(mean_loss(pruned, HELD_OUT), rel=1e-5)


def test_named_blocks_are_measured_by_run() -> None:
    pruning = carry_out(make_task(tiny_model(), fit=FIT, held_out=HELD_OUT, drop=[1, 3, 4], method=METHOD)[0])
    assert [(row.start, row.end, row.chosen) for row in pruning.candidates] == [(1, 1, True), (3, 4, True)]


@pytest.mark.parametrize(
    ("method", "expected"), [("drop", True), ("merge", True), ("least_squares", False), (None, False)]
)
def test_only_a_method_that_fits_something_has_a_mix_by_default(method: str | None, expected: bool) -> None:
    assert a_spec(method={"name": method}).one_text == expected
