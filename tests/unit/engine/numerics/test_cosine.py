"""Loss and steps against autograd and torch's own Adam."""

import pytest
import torch

from replaceme_core.engine.numerics.cosine import BATCH_TOKENS, CosineFit, CosineTokens, annealed

WIDTH, TOKENS, RATE = 12, 300, 3e-3
DIAGONAL = (False, True)


def streams(tokens: int = TOKENS, *, seed: int = 0) -> dict[str, torch.Tensor]:
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
    data = streams()
    start = 0.1 * torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    tokens = (CosineTokens.light if light else CosineTokens.exact)(**data)
    fit = CosineFit.start(start, diagonal=diagonal, rate=RATE)
    change = (start.diagonal() if diagonal else start).float().clone().requires_grad_()
    adam = torch.optim.Adam([change], lr=RATE)
    order = torch.Generator().manual_seed(0)
    for _ in range(6):
        loss = definition(data, change, light=light)
        assert fit.loss(tokens) == pytest.approx(float(loss.detach()), rel=1e-4)
        adam.zero_grad()
        loss.backward()
        adam.step()
        fit.epoch(tokens, order=order)
    torch.testing.assert_close(fit.delta, change.detach(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("diagonal", DIAGONAL)
def test_the_loss_goes_down_on_tokens_that_were_not_seen(diagonal: bool) -> None:
    fit = CosineFit.start(torch.zeros(WIDTH, WIDTH), diagonal=diagonal, rate=1e-2)
    seen, unseen = CosineTokens.exact(**streams(4000)), CosineTokens.exact(**streams(1000, seed=1))
    before, order = fit.loss(unseen), torch.Generator().manual_seed(0)
    for _ in range(20):
        fit.epoch(seen, order=order)
    assert fit.loss(unseen) < before * (0.98 if diagonal else 0.5)


def test_an_epoch_takes_every_token_once_in_batches() -> None:
    data = streams(2 * BATCH_TOKENS + 5)
    fit = CosineFit.start(torch.zeros(WIDTH, WIDTH), diagonal=False, rate=RATE)
    fit.epoch(CosineTokens.exact(**data), order=torch.Generator().manual_seed(0))
    assert fit._steps == 3


def test_a_token_with_a_massive_activation_counts_as_one() -> None:
    data = streams()
    long = {name: values.clone() for name, values in data.items()}
    for values in long.values():
        values[0] *= 1e4
    zero = torch.zeros(WIDTH, WIDTH)
    fit = CosineFit.start(zero, diagonal=False, rate=RATE)
    expected = fit.loss(CosineTokens.exact(**data))
    assert fit.loss(CosineTokens.exact(**long)) == pytest.approx(expected, rel=1e-5)


def test_a_stream_of_zeros_is_no_error() -> None:
    data = {name: torch.zeros(4, WIDTH) for name in ("write", "kept", "end")}
    fit = CosineFit.start(torch.zeros(WIDTH, WIDTH), diagonal=False, rate=RATE)
    fit.epoch(CosineTokens.exact(**data), order=torch.Generator().manual_seed(0))
    assert torch.isfinite(fit.delta).all()


def test_the_rate_falls_to_a_tenth() -> None:
    rates = [annealed(1.0, done=done) for done in (0.0, 0.25, 0.5, 1.0)]
    assert rates == sorted(rates, reverse=True)
    assert (rates[0], rates[-1]) == pytest.approx((1.0, 0.1))
