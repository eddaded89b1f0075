"""The closed form against what it must minimise, the cosine fit against torch's autograd and Adam, bad statistics."""

import math

import pytest
import torch

from replaceme_core.engine.numerics import solve as module
from replaceme_core.engine.numerics.cosine import BATCH_TOKENS, CosineFit, annealed, cosine_tokens
from replaceme_core.engine.numerics.solve import choose_ridge, folded, solve_delta
from replaceme_core.engine.numerics.stream import Stream
from replaceme_core.engine.numerics.sums import Moments
from replaceme_core.errors import NumericalFailure
from replaceme_core.request.defaults import RIDGES

WIDTH, TOKENS = 12, 400


def streams(
    *, tokens: int = TOKENS, noise: float = 0.1, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """`write`, `kept`, `end` (tokens, d) in float32: the true change of the map is fixed, the noise is not."""
    true = torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(99)) * 0.4
    generator = torch.Generator().manual_seed(seed)
    write = torch.randn(tokens, WIDTH, generator=generator)
    kept = torch.randn(tokens, WIDTH, generator=generator)
    end = kept + write @ true + noise * torch.randn(tokens, WIDTH, generator=generator)
    return write, kept, end


def moments(parts: int = 1, **options: object) -> Moments:
    write, kept, end = streams(**options)  # type: ignore[arg-type]
    total = Moments.zeros(WIDTH, device=torch.device("cpu"))
    for some in zip(*(one.tensor_split(parts) for one in (write, kept, end)), strict=True):
        total.add(some[0], kept=Stream(some[1]), end=Stream(some[2]), weights=torch.ones(len(some[0])))
    return total


def test_without_ridge_it_is_least_squares() -> None:
    write, kept, end = (one.double() for one in streams())
    expected = torch.linalg.lstsq(write, end - kept).solution
    torch.testing.assert_close(solve_delta(moments(), ridge=0.0), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("ridge", [0.0, 0.1])
def test_a_diagonal_map_is_a_regression_in_each_channel(ridge: float) -> None:
    write, kept, end = (one.double() for one in streams())
    delta = solve_delta(moments(), ridge=ridge, diagonal=True)
    strength = ridge * float(write.square().sum(dim=0).mean())
    expected = (write * (end - kept)).sum(dim=0) / (write.square().sum(dim=0) + strength)
    torch.testing.assert_close(delta, expected.diag(), rtol=1e-4, atol=1e-5)
    best = moments().residual(delta)
    for sign in (-1, 1):
        if ridge == 0:
            assert moments().residual(delta + sign * 0.01 * torch.eye(WIDTH, dtype=torch.float64)) > best


def test_a_channel_that_is_never_written_to_is_left_alone() -> None:
    dead = moments()
    dead.gram[3], dead.gram[:, 3], dead.cross[3] = 0, 0, 0
    delta = solve_delta(dead, ridge=0.0, diagonal=True)
    assert delta[3, 3] == 0
    assert torch.isfinite(delta).all()


@pytest.mark.parametrize("ridge", [0.0, 0.3])
def test_where_nothing_is_written_there_is_no_map(ridge: float) -> None:
    dead = moments()
    dead.gram.zero_()
    dead.cross.zero_()
    assert not solve_delta(dead, ridge=ridge).any()


def test_the_ridge_pulls_toward_plain_removal_whatever_the_number_of_tokens() -> None:
    sizes = [float(solve_delta(moments(), ridge=ridge).norm()) for ridge in (0.0, 0.1, 10.0, 1e6)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] < 1e-4
    for diagonal in (False, True):
        assert not solve_delta(moments(), ridge=math.inf, diagonal=diagonal).any()
    tenfold = sum((moments() for _ in range(9)), moments())
    torch.testing.assert_close(solve_delta(tenfold, ridge=0.1), solve_delta(moments(), ridge=0.1))


@pytest.mark.parametrize("diagonal", [False, True])
def test_plain_removal_where_every_map_is_worse_on_held_out_tokens(diagonal: bool) -> None:
    """The fit tokens suggest the opposite of what the held-out tokens do."""
    write, kept, end = streams()
    against = Moments.zeros(WIDTH, device=torch.device("cpu"))
    against.add(write, kept=Stream(end), end=Stream(kept), weights=torch.ones(TOKENS))
    ridge, residual = choose_ridge(moments(), against, ridges=RIDGES, diagonal=diagonal)
    assert math.isinf(ridge)
    assert residual == against.residual(torch.zeros(WIDTH, WIDTH, dtype=torch.float64))


def test_the_residual_needs_no_second_pass() -> None:
    write, kept, end = (one.double() for one in streams())
    delta = solve_delta(moments(), ridge=0.01)
    left = (write @ delta - (end - kept)).square().sum() / end.square().sum()
    assert moments().residual(delta) == pytest.approx(float(left), rel=1e-4)


def test_small_batches_of_small_values_are_not_lost() -> None:
    """A float32 accumulator stops at 2**24 ones; float64 does not."""
    total = Moments.zeros(1, device=torch.device("cpu"))
    total.gram += 2.0**24
    one = torch.ones(1, 1)
    for _ in range(10):
        total.add(one, kept=Stream(one), end=Stream(one), weights=torch.ones(1))
    assert float(total.gram) == 2.0**24 + 10


def test_held_out_tokens_choose_the_ridge_and_none_is_tried_beyond_one_that_is_worse(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tried = list[float]()

    def solve(moments: Moments, *, ridge: float, diagonal: bool) -> torch.Tensor:
        tried.append(ridge)
        return solve_delta(moments, ridge=ridge, diagonal=diagonal)

    monkeypatch.setattr(module, "solve_delta", solve)
    many, against = moments(tokens=4000, noise=2.0, seed=2), moments(tokens=4000, noise=2.0, seed=3)
    few = moments(tokens=14, noise=2.0, seed=1)
    ridge, residual = choose_ridge(few, against, ridges=(1e-4, 10.0, 1e-2, 100.0, math.inf))
    assert ridge == 10.0, "with hardly more tokens than unknowns a strong ridge must win"
    assert residual == against.residual(solve_delta(few, ridge=ridge))
    assert tried == [math.inf, 100.0, 10.0, 1e-2]
    tried.clear()
    assert choose_ridge(many, against, ridges=(1e-4, 1.0))[0] == 1e-4
    assert tried == [1.0, 1e-4]


def test_statistics_that_determine_no_map_are_an_error() -> None:
    with pytest.raises(NumericalFailure, match="5 calibration tokens do not determine a map of width 12"):
        solve_delta(moments(tokens=5), ridge=0.0)
    with pytest.raises(NumericalFailure):
        choose_ridge(moments(tokens=5), moments(seed=1), ridges=(0.0,))
    assert choose_ridge(moments(tokens=5), moments(seed=1), ridges=(0.0, 0.1))[0] == 0.1, "a singular ridge is skipped"
    broken = moments()
    broken.cross[3, 4] = math.nan
    with pytest.raises(NumericalFailure, match="not finite"):
        solve_delta(broken, ridge=0.1)


@pytest.mark.parametrize("with_bias", [True, False])
def test_folded_is_applied(with_bias: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(6, 10, dtype=torch.float64, generator=generator)
    bias = torch.randn(6, dtype=torch.float64, generator=generator) if with_bias else None
    delta = torch.randn(6, 6, dtype=torch.float64, generator=generator)
    inputs = torch.randn(20, 10, dtype=torch.float64, generator=generator)
    write = torch.nn.functional.linear(inputs, weight, bias)
    turned, shifted = folded(weight, delta=delta, axis=0), None if bias is None else folded(bias, delta=delta)
    torch.testing.assert_close(torch.nn.functional.linear(inputs, turned, shifted), write + write @ delta)
    assert torch.equal(folded(weight.T, delta=delta, axis=1), turned.T)


@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_a_diagonal_map_goes_into_the_weight_of_a_norm(offset: float) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(6, dtype=torch.float64, generator=generator)
    delta = torch.randn(6, dtype=torch.float64, generator=generator).diag()
    normed = torch.randn(20, 6, dtype=torch.float64, generator=generator)
    write = normed * (offset + weight)
    turned = folded(weight, delta=delta, offset=offset)
    torch.testing.assert_close(normed * (offset + turned), write + write @ delta)
    assert torch.equal(folded(weight, delta=torch.zeros_like(delta), offset=offset), weight)


def test_it_is_rounded_once() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(6, 10, generator=generator).bfloat16()
    delta = torch.randn(6, 6, dtype=torch.float64, generator=generator)
    turned = folded(weight, delta=delta, axis=0)
    assert turned.dtype == torch.bfloat16
    assert torch.equal(turned, (weight.double() + (weight.double().T @ delta).T).bfloat16())


def test_a_map_that_the_dtype_or_the_norm_cannot_hold_is_an_error() -> None:
    large = torch.eye(2, dtype=torch.float64) * 1e6
    with pytest.raises(NumericalFailure, match=r"torch\.float16"):
        folded(torch.ones(2, 2).half(), delta=large, axis=0)
    with pytest.raises(NumericalFailure, match=r"torch\.float16"):
        folded(torch.ones(2).half(), delta=large, offset=0.0)
    with pytest.raises(AssertionError, match="diagonal"):
        folded(torch.ones(2), delta=torch.ones(2, 2, dtype=torch.float64), offset=0.0)


RATE = 3e-3
DIAGONAL = (False, True)


def turned_streams(tokens: int = TOKENS, *, seed: int = 0) -> dict[str, torch.Tensor]:
    """`write`, `kept`, `end` (tokens, d)."""
    generator = torch.Generator().manual_seed(seed)
    write, kept, noise = (torch.randn(tokens, WIDTH, generator=generator) for _ in range(3))
    change = torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(99)) * 0.3
    return {"write": write, "kept": kept, "end": kept + write @ change + 0.1 * noise}


def definition(data: dict[str, torch.Tensor], change: torch.Tensor, *, light: bool) -> torch.Tensor:
    """The loss as the paper writes it; `change` is (d, d) or (d,)."""
    whole = torch.eye(WIDTH) + (change.diag() if change.ndim == 1 else change)
    fixed = data["kept"] - data["write"]  # Y
    output, target = data["write"] @ whole, data["end"]
    output, target = (output, target - fixed) if light else (output + fixed, target)
    return 1 - torch.nn.functional.cosine_similarity(output, target).mean()


@pytest.mark.parametrize("light", [False, True])
@pytest.mark.parametrize("diagonal", DIAGONAL)
def test_the_steps_are_those_of_adam_on_the_loss_of_the_paper(diagonal: bool, light: bool) -> None:
    data = turned_streams()
    start = 0.1 * torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    tokens = cosine_tokens(**data, light=light)
    fit = CosineFit(start, diagonal=diagonal)
    change = (start.diagonal() if diagonal else start).float().clone().requires_grad_()
    adam = torch.optim.Adam([change], lr=RATE)
    order = torch.Generator().manual_seed(0)
    for _ in range(6):
        loss = definition(data, change, light=light)
        assert fit.loss(tokens) == pytest.approx(float(loss.detach()), rel=1e-4)
        adam.zero_grad()
        loss.backward()
        adam.step()
        fit.epoch(tokens, rate=RATE, order=order)
    torch.testing.assert_close(fit.delta, change.detach(), rtol=1e-3, atol=1e-4)


def test_a_token_with_a_massive_activation_counts_as_one_and_zeros_are_no_error() -> None:
    data = turned_streams()
    long = {name: values.clone() for name, values in data.items()}
    for values in long.values():
        values[0] *= 1e4
    fit = CosineFit(torch.zeros(WIDTH, WIDTH), diagonal=False)
    expected = fit.loss(cosine_tokens(**data, light=False))
    assert fit.loss(cosine_tokens(**long, light=False)) == pytest.approx(expected, rel=1e-5)
    zeros = cosine_tokens(**{name: torch.zeros_like(values) for name, values in data.items()}, light=False)
    fit.epoch(zeros, rate=RATE, order=torch.Generator().manual_seed(0))
    assert torch.isfinite(fit.delta).all()


def test_the_rate_falls_to_a_tenth() -> None:
    rates = [annealed(1.0, done=done) for done in (0.0, 0.25, 0.5, 1.0)]
    assert rates == sorted(rates, reverse=True)
    assert (rates[0], rates[-1]) == pytest.approx((1.0, 0.1))


def test_an_epoch_takes_every_token_once_in_batches() -> None:
    data = turned_streams(2 * BATCH_TOKENS + 5)
    fit = CosineFit(torch.zeros(WIDTH, WIDTH), diagonal=False)
    fit.epoch(cosine_tokens(**data, light=False), rate=RATE, order=torch.Generator().manual_seed(0))
    assert fit._adam.state[fit.delta]["step"] == 3
