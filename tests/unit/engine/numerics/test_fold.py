"""The fold against applying the map beside the projection."""

import pytest
import torch

from replaceme_core.engine.numerics.solve import fold_norm, fold_projection
from replaceme_core.errors import NumericalFailure


@pytest.mark.parametrize("with_bias", [True, False])
def test_folded_is_applied(with_bias: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(6, 10, dtype=torch.float64, generator=generator)
    bias = torch.randn(6, dtype=torch.float64, generator=generator) if with_bias else None
    delta = torch.randn(6, 6, dtype=torch.float64, generator=generator)
    inputs = torch.randn(20, 10, dtype=torch.float64, generator=generator)
    write = torch.nn.functional.linear(inputs, weight, bias)
    folded, shifted = fold_projection(weight, bias, delta=delta)
    torch.testing.assert_close(torch.nn.functional.linear(inputs, folded, shifted), write + write @ delta)
    assert (shifted is None) == (bias is None)


@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_a_diagonal_map_goes_into_the_weight_of_a_norm(offset: float) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(6, dtype=torch.float64, generator=generator)
    delta = torch.randn(6, dtype=torch.float64, generator=generator).diag()
    normed = torch.randn(20, 6, dtype=torch.float64, generator=generator)
    write = normed * (offset + weight)
    folded = fold_norm(weight, delta=delta, offset=offset)
    torch.testing.assert_close(normed * (offset + folded), write + write @ delta)
    assert torch.equal(fold_norm(weight, delta=torch.zeros_like(delta), offset=offset), weight)


def test_a_norm_takes_no_other_map() -> None:
    with pytest.raises(AssertionError, match="diagonal"):
        fold_norm(torch.ones(2), delta=torch.ones(2, 2, dtype=torch.float64), offset=0.0)
    with pytest.raises(NumericalFailure, match=r"torch\.float16"):
        fold_norm(torch.ones(2).half(), delta=torch.eye(2, dtype=torch.float64) * 1e6, offset=0.0)


def test_it_is_rounded_once() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(6, 10, generator=generator).bfloat16()
    delta = torch.randn(6, 6, dtype=torch.float64, generator=generator)
    folded, _ = fold_projection(weight, None, delta=delta)
    assert folded.dtype == torch.bfloat16
    assert torch.equal(folded, (weight.double() + delta.T @ weight.double()).bfloat16())


def test_a_map_that_the_dtype_cannot_hold_is_an_error() -> None:
    with pytest.raises(NumericalFailure, match=r"torch\.float16"):
        fold_projection(torch.ones(2, 2).half(), None, delta=torch.full((2, 2), 1e6, dtype=torch.float64))
