"""The formulas of the objectives: identities of the paper, and derivatives compared with autograd.

Run: `make test ARGS=tests/unit/model/test_losses.py`
"""

import math

import pytest
import torch

from ali_dist.model.losses import MINIMUM_SLOPE, OBJECTIVES, bound_slope, jsd_estimate


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
    assert jsd_estimate(6 * math.log(2), logits=3) == pytest.approx(0.0)
    assert jsd_estimate(3 * math.log(2), logits=3) == pytest.approx(math.log(2) / 2)


def test_the_jsd_estimate_is_never_negative_and_hides_no_nan():
    """Of a D that is worse than chance the bound says nothing, and a divergence is at least 0."""
    assert jsd_estimate(2.5) == 0.0
    assert math.isnan(jsd_estimate(math.nan))


@pytest.mark.parametrize("player", ["d", "g"])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_slopes_are_the_derivatives_of_each_players_loss(name, player, logits):
    d_q, d_p = (t.requires_grad_() for t in logits)
    loss, slopes = (getattr(OBJECTIVES[name], f"{player}_{what}") for what in ("loss", "slopes"))
    by_autograd = torch.autograd.grad(loss(d_q, d_p).sum(), (d_q, d_p))
    for slope, expected in zip(slopes(d_q.detach(), d_p.detach()), by_autograd, strict=True):
        torch.testing.assert_close(slope, expected)


@pytest.mark.parametrize("player", ["d", "g"])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_slopes_and_what_they_are_divided_by_stay_finite_for_extreme_logits(name, player):
    far = torch.tensor([-1e30, -1000.0, -88.8, 88.8, 1000.0, 1e30])
    for slope in getattr(OBJECTIVES[name], f"{player}_slopes")(far, far.flip(0)):
        bounded = bound_slope(slope)
        assert slope.isfinite().all()
        assert (bounded.abs() >= MINIMUM_SLOPE).all()
        assert bounded.reciprocal().isfinite().all()
        torch.testing.assert_close(bounded, slope, rtol=0, atol=2 * MINIMUM_SLOPE)


def test_a_bounded_slope_keeps_its_sign_and_everything_that_is_large_enough():
    slopes = torch.tensor([0.5, -0.5, 1e-19, -1e-19, 1e-30, -1e-30, 0.0, -0.0])
    least = MINIMUM_SLOPE
    expected = torch.tensor([0.5, -0.5, 1e-19, -1e-19, least, -least, least, -least])
    torch.testing.assert_close(bound_slope(slopes), expected, rtol=1e-6, atol=0)
