"""The formulas of the objectives: identities of the paper, and derivatives compared with autograd.

Run: `make test ARGS=tests/unit/model/test_losses.py`
"""

import math

import pytest
import torch

from ali_dist.model.losses import OBJECTIVES, jsd_estimate


@pytest.fixture
def logits() -> tuple[torch.Tensor, torch.Tensor]:
    """d_q and d_p of 64 pairs."""
    g = torch.Generator().manual_seed(0)
    return torch.randn(64, generator=g) * 3, torch.randn(64, generator=g) * 3


def test_the_two_losses_of_v_prime_differ_by_the_gap_of_the_logits(logits):
    d_q, d_p = logits
    objective = OBJECTIVES["nonsaturating"]
    torch.testing.assert_close(objective.g_loss(d_q, d_p) - objective.d_loss(d_q, d_p), d_q - d_p)


def test_both_losses_are_two_ln_two_for_an_undecided_discriminator():
    zero = torch.zeros(3)
    objective = OBJECTIVES["nonsaturating"]
    torch.testing.assert_close(objective.d_loss(zero, zero), torch.full((3,), 2 * math.log(2)))
    torch.testing.assert_close(objective.g_loss(zero, zero), torch.full((3,), 2 * math.log(2)))


def test_minimax_is_a_zero_sum_game(logits):
    objective = OBJECTIVES["minimax"]
    torch.testing.assert_close(objective.g_loss(*logits), -objective.d_loss(*logits))


def test_the_discriminators_loss_is_the_binary_cross_entropy_of_the_paper(logits):
    d_q, d_p = logits
    expected = -(d_q.sigmoid().log() + (1 - d_p.sigmoid()).log())
    for name in ("nonsaturating", "minimax"):
        torch.testing.assert_close(OBJECTIVES[name].d_loss(d_q, d_p), expected, rtol=1e-4, atol=1e-5)


def test_the_jsd_estimate_is_zero_at_chance_and_ln_two_when_d_is_certain():
    assert jsd_estimate(2 * math.log(2)) == pytest.approx(0.0)
    assert jsd_estimate(0.0) == pytest.approx(math.log(2))


@pytest.mark.parametrize("name", OBJECTIVES)
def test_slopes_are_the_derivatives_of_the_generators_loss(name, logits):
    d_q, d_p = (t.requires_grad_() for t in logits)
    by_autograd = torch.autograd.grad(OBJECTIVES[name].g_loss(d_q, d_p).sum(), (d_q, d_p))
    for slope, expected in zip(OBJECTIVES[name].g_slopes(d_q.detach(), d_p.detach()), by_autograd, strict=True):
        torch.testing.assert_close(slope, expected)


@pytest.mark.parametrize("name", [name for name, objective in OBJECTIVES.items() if objective.gradient_factors])
def test_factors_turn_discriminator_slopes_into_generator_slopes(name, logits):
    d_q, d_p = (t.requires_grad_() for t in logits)
    objective = OBJECTIVES[name]
    d_slopes = torch.autograd.grad(objective.d_loss(d_q, d_p).sum(), (d_q, d_p))
    g_slopes = torch.autograd.grad(objective.g_loss(d_q, d_p).sum(), (d_q, d_p))
    factors = objective.gradient_factors(d_q.detach(), d_p.detach())
    for factor, d_slope, g_slope in zip(factors, d_slopes, g_slopes, strict=True):
        torch.testing.assert_close(factor * d_slope, g_slope, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", [name for name, objective in OBJECTIVES.items() if objective.gradient_factors])
def test_factors_stay_finite_for_extreme_logits(name):
    extreme = torch.tensor([-1e4, 1e4])
    for factor in OBJECTIVES[name].gradient_factors(extreme, extreme.flip(0)):
        assert factor.isfinite().all()
