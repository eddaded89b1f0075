"""Streams and what is summed of them: weights of tokens, angles, targets before a norm, and products."""

import pytest
import torch

from replaceme_core.engine.numerics.solve import solve_delta
from replaceme_core.engine.numerics.stream import (
    LONGEST_ORDINARY,
    MeanAngle,
    Stream,
    inverse_length_weights,
    target_before_norm,
    token_weights,
)
from replaceme_core.engine.numerics.sums import Moments, gram_of, products_of


def test_ordinary_tokens_count_in_full_and_sinks_as_the_longest_ordinary_one() -> None:
    stream = torch.randn(100, 8, generator=torch.Generator().manual_seed(0))
    stream[7] *= 1000  # not position 0: nothing may be assumed of where sinks are
    weights = token_weights(Stream(stream))
    assert (weights == 1).sum() == 99
    median = stream.norm(dim=1).median()
    assert float((stream[7] * weights[7]).norm() / median) == pytest.approx(LONGEST_ORDINARY, rel=1e-5)


def test_inverse_length_weights_shorten_long_tokens_to_the_median_and_sinks_to_more() -> None:
    stream = torch.randn(101, 8, generator=torch.Generator().manual_seed(0))
    stream[7] *= 1000
    weights = inverse_length_weights(Stream(stream))
    lengths = (stream * weights.unsqueeze(1)).norm(dim=1)
    median = float(stream.norm(dim=1).median())
    assert float(lengths[7]) == pytest.approx(LONGEST_ORDINARY * median)
    short = stream.norm(dim=1) <= median
    assert bool((weights[short] == 1).all())
    ordinary = lengths[~short & (torch.arange(101) != 7)]
    assert torch.allclose(ordinary, torch.full_like(ordinary, median))


def test_a_sink_neither_dominates_the_fit_nor_is_lost_by_it() -> None:
    """Unweighted it would rule the map for all; left out, its own long write would go anywhere."""
    generator = torch.Generator().manual_seed(0)
    true = torch.randn(8, 8, generator=generator) * 0.5
    true[0] = 0.0  # along the sink's direction nothing changes ...
    write, kept = torch.randn(2000, 8, generator=generator), torch.randn(2000, 8, generator=generator)
    write[:, 0] *= 1e-3  # ... and ordinary tokens hardly show it
    end = kept + write @ true + 0.05 * torch.randn(2000, 8, generator=generator)
    write[0], kept[0] = 0.0, 0.0
    write[0, 0] = kept[0, 0] = end[0, 0] = 2000.0
    end[0, 1:] = 0.0

    def fit(weights: torch.Tensor) -> torch.Tensor:
        moments = Moments.zeros(8, device=torch.device("cpu"))
        moments.add(write, kept=Stream(kept), end=Stream(end), weights=weights)
        return solve_delta(moments, ridge=0.0).float()

    left_out = torch.ones(2000)
    left_out[0] = 0.0
    scattered = (write[0] @ fit(left_out)).norm() / write[0].norm()
    weighted = fit(token_weights(Stream(kept), Stream(end)))
    assert scattered > 0.3
    assert (write[0] @ weighted).norm() / write[0].norm() < 0.01
    torch.testing.assert_close(weighted[1:], true[1:], rtol=0.1, atol=0.02)


def test_angles() -> None:
    right = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    other = torch.tensor([[2.0, 0.0], [0.0, 3.0], [-1.0, 0.0], [1.0, 1.0]])
    angle = MeanAngle()
    angle.add(Stream(right), Stream(other), mask=torch.tensor([True, True, True, False]))
    assert angle.tokens == 3
    assert angle.value == pytest.approx((0 + 0.5 + 1) / 3, abs=1e-4)


def test_large_values_in_float16_have_their_angles() -> None:
    """300 x 300 is more than float16 has."""
    right, other = torch.full((1, 8), 300.0), torch.tensor([[300.0, -300.0, *[300.0] * 6]])
    found = Stream(right.half()).cosine(Stream(other.half()))
    torch.testing.assert_close(found, torch.tensor([6 / 8]))


def norm(values: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return values * (values.shape[1] ** 0.5 / values.norm(dim=1, keepdim=True)) * weight


def test_the_norm_gives_the_wanted_direction_at_the_length_of_the_given_output() -> None:
    generator = torch.Generator().manual_seed(0)
    given, wanted = torch.randn(2, 5, 8, generator=generator)
    weight = torch.rand(8, generator=generator) + 0.1
    aim = target_before_norm(wanted, given=given, weight=weight)
    torch.testing.assert_close(aim.norm(dim=1), given.norm(dim=1))
    torch.testing.assert_close(torch.nn.functional.cosine_similarity(norm(aim, weight), wanted), torch.ones(5))


def test_what_is_right_stays_as_it_is() -> None:
    given, weight = torch.randn(5, 8, generator=torch.Generator().manual_seed(1)), torch.linspace(0.5, 2, 8)
    torch.testing.assert_close(target_before_norm(norm(given, weight), given=given, weight=weight), given)


def test_a_channel_that_the_norm_cuts_off_is_left_alone() -> None:
    given, weight = torch.randn(5, 8, generator=torch.Generator().manual_seed(2)), torch.ones(8)
    weight[3] = 0.0
    aim = target_before_norm(norm(given, weight) + 0.0, given=given, weight=weight)
    assert torch.isfinite(aim).all()
    torch.testing.assert_close(aim, given)


@pytest.mark.parametrize("width", [0, 1, 5, 16])
def test_a_gram_matrix_is_whole_and_symmetric(width: int) -> None:
    """It is put together from panels, whose number does not divide every width."""
    values = torch.randn(50, width, generator=torch.Generator().manual_seed(width))
    found = gram_of(values)
    torch.testing.assert_close(found, values.T @ values)
    assert torch.equal(found, found.T)
    assert found.dtype == values.dtype


def test_products_of_bfloat16_values_are_exact_to_float32_and_leave_no_setting() -> None:
    values = torch.randn(300, 40, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    before = torch.backends.mkldnn.matmul.fp32_precision
    with products_of(values.dtype):
        found = gram_of(values.to(torch.float32))
    assert torch.backends.mkldnn.matmul.fp32_precision == before
    exact = values.double().T @ values.double()
    assert float((found - exact).norm() / exact.norm()) < 1e-6
