"""The products that the sums are made of."""

import pytest
import torch

from replaceme_core.engine.numerics.sums import gram_of


@pytest.mark.parametrize("width", [0, 1, 3, 4, 5, 16, 41])
def test_a_gram_matrix_is_whole_and_symmetric(width: int) -> None:
    """It is put together from panels, whose number does not divide every width."""
    values = torch.randn(50, width, generator=torch.Generator().manual_seed(width))
    found = gram_of(values)
    torch.testing.assert_close(found, values.T @ values)
    assert torch.equal(found, found.T)
    assert found.dtype == values.dtype
