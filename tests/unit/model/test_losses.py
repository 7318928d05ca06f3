"""The games' formulas: identities of the paper, and derivatives against autograd."""

import math

import pytest
import torch

from ali_dist.model.losses import OBJECTIVES, jsd_estimate


@pytest.fixture
def logits() -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    return torch.randn(64, generator=g) * 3, torch.randn(64, generator=g) * 3


def test_generator_and_discriminator_loss_of_v_prime_differ_by_the_mean_logit_gap(logits):
    d_q, d_p = logits
    game = OBJECTIVES["nonsaturating"]
    torch.testing.assert_close(game.g_loss(d_q, d_p) - game.d_loss(d_q, d_p), d_q - d_p)


def test_both_losses_are_two_ln_two_for_an_undecided_discriminator():
    zero = torch.zeros(3)
    game = OBJECTIVES["nonsaturating"]
    torch.testing.assert_close(game.d_loss(zero, zero), torch.full((3,), 2 * math.log(2)))
    torch.testing.assert_close(game.g_loss(zero, zero), torch.full((3,), 2 * math.log(2)))


def test_minimax_is_a_zero_sum_game(logits):
    game = OBJECTIVES["minimax"]
    torch.testing.assert_close(game.g_loss(*logits), -game.d_loss(*logits))


def test_discriminator_loss_is_the_binary_cross_entropy_of_the_paper(logits):
    d_q, d_p = logits
    expected = -(d_q.sigmoid().log() + (1 - d_p.sigmoid()).log())
    for name in ("nonsaturating", "minimax"):
        torch.testing.assert_close(OBJECTIVES[name].d_loss(d_q, d_p), expected, rtol=1e-4, atol=1e-5)


def test_jsd_estimate_is_zero_at_chance_and_ln_two_when_d_is_certain():
    assert jsd_estimate(2 * math.log(2)) == pytest.approx(0.0)
    assert jsd_estimate(0.0) == pytest.approx(math.log(2))


@pytest.mark.parametrize("name", OBJECTIVES)
def test_slopes_are_the_derivatives_of_the_generators_loss(name, logits):
    d_q, d_p = (t.requires_grad_() for t in logits)
    slopes = torch.autograd.grad(OBJECTIVES[name].g_loss(d_q, d_p).sum(), (d_q, d_p))
    for mine, theirs in zip(OBJECTIVES[name].g_slopes(d_q.detach(), d_p.detach()), slopes, strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("name", [n for n, game in OBJECTIVES.items() if game.gradient_factors])
def test_factors_turn_discriminator_slopes_into_generator_slopes(name, logits):
    d_q, d_p = (t.requires_grad_() for t in logits)
    game = OBJECTIVES[name]
    d_slopes = torch.autograd.grad(game.d_loss(d_q, d_p).sum(), (d_q, d_p))
    g_slopes = torch.autograd.grad(game.g_loss(d_q, d_p).sum(), (d_q, d_p))
    for factor, d_slope, g_slope in zip(
        game.gradient_factors(d_q.detach(), d_p.detach()), d_slopes, g_slopes, strict=True
    ):
        torch.testing.assert_close(factor * d_slope, g_slope, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", [n for n, game in OBJECTIVES.items() if game.gradient_factors])
def test_factors_stay_finite_for_extreme_logits(name):
    far = torch.tensor([-1e4, 1e4])
    for factor in OBJECTIVES[name].gradient_factors(far, far.flip(0)):
        assert factor.isfinite().all()
