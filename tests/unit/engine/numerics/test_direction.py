"""What a projection should give so that the norm after it points where it should."""

import torch

from replaceme_core.engine.numerics.stream import target_before_norm


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
