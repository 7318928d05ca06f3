"""The update where the discriminator is sure: exact gradients at any finite logit, and a count of such logits.

The reference is written out from the networks in `tests/helpers/variants.py`, as two backward passes, and computed in
float64. D's last bias moves all logits to one side, where one of its slopes vanishes; spread weights move them apart.

Run: `make test ARGS=tests/unit/training/test_far_logits.py`
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from ali_dist.model.ali import ALI
from ali_dist.model.losses import MINIMUM_SLOPE, OBJECTIVES, bound_slope
from ali_dist.training.step import LossWeights
from tests.helpers.networks import BATCH_SIZE, EXACT_RULES, relative_error, total_error
from tests.helpers.variants import (
    VARIANTS,
    Variant,
    compute_scores,
    expected_d_gradients,
    expected_g_gradients,
    run_update,
)

LOGITS = (0.0, 31.0, -31.0, 80.0, -80.0, 1000.0, -1000.0)
PLAIN = Variant()


def weights_for(way: str) -> LossWeights:
    penalties = {"r1": 0.7, "r2": 0.3} if way == "penalised" else {}
    return LossWeights(cycle_x=2.0, cycle_z=0.5, cycle_samples=1.5, **penalties)


def networks_with_logits_at(variant: Variant, logit: float, *, cycles: bool = True) -> ALI:
    """D's last bias is `logit`."""
    ali = variant.build(cycles=cycles)
    discriminator: Any = ali.discriminator
    torch.nn.init.constant_(discriminator.d_xz.layers[-1][-1].bias, logit)
    return ali


def networks_with_logits_apart(variant: Variant, largest: float) -> ALI:
    """D's last weights are so large that logits reach `largest`, some on either side, some near 0."""
    ali, batch = variant.build(), variant.make_batch()
    discriminator: Any = ali.discriminator
    last = discriminator.d_xz.layers[-1][-1]
    with torch.no_grad():
        z_hat, x_tilde = ali.encoder(batch.x, batch.epsilon)[0], ali.decoder(batch.z)
        d = torch.cat(
            [compute_scores(ali, variant, x, z, None).joint for x, z in ((batch.x, z_hat), (x_tilde, batch.z))]
        )
        factor = largest / (d - d.mean()).abs().max()
        last.bias.sub_(d.mean()).mul_(factor)
        last.weight.mul_(factor)
    return ali


def by_the_book(ali: ALI, variant: Variant, loss: str, weights: LossWeights) -> list[Tensor]:
    return expected_g_gradients(ali, variant, loss, weights) + expected_d_gradients(ali, variant, loss, weights)


def reference(variant: Variant, loss: str, weights: LossWeights, logit: float) -> list[Tensor]:
    """The gradients of both players in float64.

    In fp32 for relativistic pairs at 1,000: their slopes are of differences, which fp32 has to 6e-5 only.
    """
    ali = networks_with_logits_at(variant, logit, cycles=weights.cycle_x > 0)
    rounded = loss == "relativistic" and abs(logit) == 1000
    return [t.double() for t in by_the_book(ali if rounded else ali.double(), variant, loss, weights)]


def error_of(mine: list[Tensor], expected: list[Tensor], loss: str) -> float:
    """Largest relative error of a tensor, down to a size that no rounding reaches.

    Far above the error that bounded slopes make (1e-20), below every gradient that logits of 31 leave (3e-14). For
    relativistic pairs, whose last bias has a gradient that is 0 but for rounding, a hundredth of the largest.
    """
    floor = 1e-2 * max(t.norm().item() for t in expected) if loss == "relativistic" else 1e-15
    return relative_error([t.double() for t in mine], expected, floor)


@pytest.mark.parametrize("logit", LOGITS)
@pytest.mark.parametrize(("loss", "way"), EXACT_RULES)
def test_gradients_are_those_of_two_backward_passes_in_float64_at_every_logit(loss, way, logit):
    weights = weights_for(way)
    mine, _ = run_update(PLAIN, way, loss, weights, networks_with_logits_at(PLAIN, logit))
    assert error_of(mine, reference(PLAIN, loss, weights, logit), loss) < 1e-5


@pytest.mark.parametrize("logit", [31.0, -80.0, 120.0])
@pytest.mark.parametrize("name", ["packing", "k+1", "gan", "conditional-points"])
@pytest.mark.parametrize("loss", OBJECTIVES)
def test_in_every_game_the_scaled_rule_is_exact_at_far_logits(loss, name, logit):
    variant = VARIANTS[name]
    weights = LossWeights(supervised=1.3 if variant.classes else 0.0)
    mine, _ = run_update(variant, "scaled", loss, weights, networks_with_logits_at(variant, logit, cycles=False))
    assert error_of(mine, reference(variant, loss, weights, logit), loss) < 1e-5


@pytest.mark.parametrize("largest", [31.0, 80.0, 1000.0])
@pytest.mark.parametrize(("loss", "way"), EXACT_RULES)
def test_gradients_are_exact_where_logits_lie_far_apart(loss, way, largest):
    """Both sides sure at once, and for relativistic pairs the differences. The reference has the same fp32 logits."""
    ali = networks_with_logits_apart(PLAIN, largest)
    expected = by_the_book(ali, PLAIN, loss, LossWeights())
    mine, losses = run_update(PLAIN, way, loss, LossWeights(), ali)
    floor = 1e-3 * max(t.norm().item() for t in expected)
    assert relative_error(mine, expected, floor) < 1e-5
    assert losses.logits_beyond_30 > 0


@pytest.mark.parametrize("logit", LOGITS)
@pytest.mark.parametrize("loss", OBJECTIVES)
def test_in_bf16_the_scaled_rule_is_as_close_to_float64_as_two_backward_passes_are(loss, logit):
    expected = reference(PLAIN, loss, LossWeights(), logit)

    def error(way: str) -> float:
        ali = networks_with_logits_at(PLAIN, logit, cycles=False)
        mine, _ = run_update(PLAIN, way, loss, LossWeights(), ali, precision="bf16")
        return total_error([t.double() for t in mine], expected)

    rounding = error("coupled")
    assert 0 < rounding < 0.4
    assert error("scaled") < 1.2 * rounding


@pytest.mark.parametrize("sure", [50.0, 100.0, 1000.0])
def test_a_discriminator_that_is_right_about_everything_stands_still(sure):
    """Its true gradient is below 1e-20: what the bounded slopes make of it is no more than that for each logit."""
    game = OBJECTIVES["nonsaturating"]
    weight = torch.ones(3, requires_grad=True)
    d_q, d_p = sure * weight, -sure * weight
    slopes = [bound_slope(slope) for slope in game.d_slopes(d_q.detach(), d_p.detach())]
    ((d_q * slopes[0]).sum() + (d_p * slopes[1]).sum()).backward()
    assert weight.grad is not None
    assert 0 < weight.grad.abs().max().item() <= 2.01 * sure * MINIMUM_SLOPE


@pytest.mark.parametrize(
    ("logit", "share"), [(0.0, 0.0), (25.0, 0.0), (-25.0, 0.0), (35.0, 1.0), (-35.0, 1.0), (1000.0, 1.0)]
)
@pytest.mark.parametrize("name", ["plain", "packing"])
def test_logits_beyond_30_are_counted_over_both_sides(name, logit, share):
    variant = PLAIN if name == "plain" else VARIANTS[name]
    _, losses = run_update(variant, "scaled", "nonsaturating", LossWeights(), networks_with_logits_at(variant, logit))
    assert losses.logits_beyond_30.item() / BATCH_SIZE == share


def test_a_share_of_the_logits_is_counted_as_that_share():
    ali, batch = networks_with_logits_apart(PLAIN, 60.0), PLAIN.make_batch()
    with torch.no_grad():
        z_hat, x_tilde = ali.encoder(batch.x, batch.epsilon)[0], ali.decoder(batch.z)
        d = torch.cat([compute_scores(ali, PLAIN, x, z, None).joint for x, z in ((batch.x, z_hat), (x_tilde, batch.z))])
    share = (d.abs() > 30).float().mean().item()
    assert 0 < share < 1
    _, losses = run_update(PLAIN, "coupled", "nonsaturating", LossWeights(), ali)
    assert losses.logits_beyond_30.item() / BATCH_SIZE == pytest.approx(share)
