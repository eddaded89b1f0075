"""The distances of windows: of every two streams, over tokens that are no sinks, and bounded in number."""

import pytest
import torch

from replaceme_core.engine.activations.capture import Activations
from replaceme_core.engine.model.block_runner import BlockRunner
from replaceme_core.engine.numerics.stream import MeanAngle, Stream, mean_angles
from replaceme_core.engine.results import layer_angles as module
from replaceme_core.engine.results.layer_angles import layer_angles
from replaceme_core.families.resolve import resolve
from tests.fixtures.models.tiny import BLOCKS, tiny_model, token_ids


def activations() -> Activations:
    tokens = token_ids(4, 16)
    return Activations(
        block_runner=BlockRunner(resolved=resolve(tiny_model())),
        fit=tokens[:2],
        held_out=tokens[2:],
        batch_size=2,
        advance=lambda _: None,
    )


def test_the_angle_of_every_two_streams_is_that_of_the_selection() -> None:
    streams = torch.randn(4, 40, 8, generator=torch.Generator().manual_seed(0))
    found = mean_angles(torch.nn.functional.normalize(streams, dim=2))
    for one in range(4):
        for other in range(one, 4):
            expected = MeanAngle()
            expected.add(Stream(streams[one]), Stream(streams[other]), mask=torch.ones(40, dtype=torch.bool))
            assert float(found[one, other]) == pytest.approx(expected.value, abs=1e-3)
    assert torch.equal(found, found.T)


@torch.inference_mode()
def test_every_window_has_its_distance() -> None:
    found = layer_angles(activations())
    assert found is not None
    assert [len(row) for row in found.windows] == [BLOCKS - start for start in range(BLOCKS)]
    assert 0 < found.tokens <= 32
    if found.tokens == 32:  # then both are over the same tokens
        assert [row[0] for row in found.windows] == pytest.approx(found.blocks, abs=1e-3)
    assert all(0 < value < 1 for row in found.windows for value in row)


@torch.inference_mode()
def test_few_are_kept_where_streams_are_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_BYTES", 4 * 16 * (BLOCKS + 1) * 5)
    monkeypatch.setattr(module, "MOST_WINDOWS", BLOCKS + BLOCKS - 1)
    found = layer_angles(activations())
    assert found is not None
    assert found.tokens <= 5
    assert [len(row) for row in found.windows] == [2] * (BLOCKS - 1) + [1]
