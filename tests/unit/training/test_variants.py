"""Conditional, packed, semi-supervised, unary and plain-GAN games: formulas, gradients, and the trained networks.

Every gradient is compared with one written out from the networks in `tests/helpers/variants.py`.
Run: `make test ARGS=tests/unit/training/test_variants.py`
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ali_dist.model.gradient_gates import PassThrough, StopGradient
from ali_dist.model.losses import OBJECTIVES
from ali_dist.training.step import LossWeights
from tests.helpers.networks import BATCH, EXACT, LATENT, relative_error
from tests.helpers.variants import (
    UNARY,
    VARIANTS,
    Variant,
    d_gradients,
    decode,
    encode,
    g_gradients,
    scores,
    update,
)


def weights_for(variant: Variant, way: str) -> LossWeights:
    """All terms that the game and the way can have."""
    cycles = {"cycle_x": 2.0, "cycle_z": 0.5, "cycle_samples": 1.5} if variant.kind == "ali" else {}
    penalties = {"r1": 0.7, "r2": 0.3} if way == "penalised" else {}
    return LossWeights(**cycles, **penalties, supervised=1.3 if variant.classes else 0.0)


def assert_gradients_by_the_book(variant: Variant, loss: str, way: str) -> None:
    weights = weights_for(variant, way)
    ali = variant.build(cycles=weights.cycle_x > 0)
    expected = g_gradients(ali, variant, loss, weights) + d_gradients(ali, variant, loss, weights)
    mine, _ = update(variant, way, loss, weights)
    floor = 1e-3 * max(t.norm().item() for t in expected)  # what vanishes is measured against the largest
    assert relative_error(mine, expected, floor) < 2e-5


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize(("loss", "way"), EXACT)
def test_every_exact_way_has_the_gradients_by_the_book(loss, way, name):
    assert_gradients_by_the_book(VARIANTS[name], loss, way)


@pytest.mark.parametrize("name", UNARY)
@pytest.mark.parametrize("loss", OBJECTIVES)
def test_unary_scores_have_the_gradients_by_the_book(loss, name):
    """BigBiGAN: the discriminator pays for each score by itself, the generators for their sum."""
    assert_gradients_by_the_book(UNARY[name], loss, "coupled")


# ---- conditional ---------------------------------------------------------------------------------------------------


def test_discriminator_takes_the_embedding_as_a_constant():
    """Its loss reaches the embedding neither by way of D's input nor through E and G."""
    variant = VARIANTS["conditional"]
    ali, batch = variant.build(), variant.batch()
    pairs = ali(batch.x, batch.z, batch.epsilon, StopGradient(differentiable=False), batch.c)
    (pairs.d_q.sum() - pairs.d_p.sum()).backward()
    assert all(p.grad is None for p in ali.generator_parameters())
    assert all(p.grad is not None for p in ali.discriminator_parameters())


@pytest.mark.parametrize("network", ["encoder", "decoder"])
def test_embedding_is_trained_through_the_encoder_and_the_decoder(network):
    variant = VARIANTS["conditional"]
    ali, batch = variant.build(), variant.batch()
    assert batch.c is not None
    e = ali.embedding(batch.c)
    out = encode(ali, batch.x, batch.epsilon, e)[0] if network == "encoder" else decode(ali, batch.z, e)
    own = ali.encoder(batch.x, batch.epsilon, e)[0] if network == "encoder" else ali.decoder(batch.z, e)
    torch.testing.assert_close(own, out)
    own.sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in ali.embedding.parameters())


def test_each_network_answers_to_the_condition_of_its_own_row():
    """Changing one row's condition changes that row's output, and no other's."""
    variant = VARIANTS["conditional"]
    ali, batch = variant.build(), variant.batch()
    assert batch.c is not None
    other = batch.c.clone()
    other[2] = 1 - other[2]

    def outputs(c: Tensor) -> tuple[Tensor, ...]:
        pairs = ali(batch.x, batch.z, batch.epsilon, PassThrough(), c)
        z_hat, x_tilde = pairs.z_hat, pairs.x_tilde
        e = ali.embedding(c)
        same_pairs = ali.discriminator((batch.x,), batch.z, e).d
        return z_hat, x_tilde, same_pairs, pairs.d_q, pairs.d_p

    for before, after in zip(outputs(batch.c), outputs(other), strict=True):
        moved = [not torch.allclose(a, b, rtol=1e-4, atol=1e-7) for a, b in zip(before, after, strict=True)]
        assert moved == [row == 2 for row in range(BATCH)]


def test_mean_and_log_sigma_are_affine_in_the_embedding():
    variant = VARIANTS["conditional"]
    ali, batch = variant.build(), variant.batch()
    a, b = torch.randn(2, BATCH, 5, generator=torch.Generator().manual_seed(0))

    def both(e: Tensor) -> Tensor:
        _, mu, log_sigma = ali.encoder(batch.x, batch.epsilon, e)
        return torch.cat([mu, log_sigma], dim=1)

    torch.testing.assert_close(both(0.3 * a + 0.7 * b), 0.3 * both(a) + 0.7 * both(b), rtol=1e-4, atol=1e-5)


# ---- packing -------------------------------------------------------------------------------------------------------


def test_packs_are_of_adjacent_rows_and_mixed_with_no_other():
    variant = VARIANTS["packing"]
    ali, batch = variant.build(), variant.batch()
    before = ali(batch.x, batch.z, batch.epsilon, PassThrough())
    x = batch.x.clone()
    x[5] += 0.5
    after = ali(x, batch.z, batch.epsilon, PassThrough())
    assert before.d_q.shape == before.d_p.shape == (BATCH // 2,)
    assert (before.d_q != after.d_q).tolist() == [False, False, True, False]
    torch.testing.assert_close(before.d_p, after.d_p, rtol=0, atol=0)


@pytest.mark.parametrize("way", ["scaled", "penalised", "coupled"])
def test_losses_of_packs_count_for_each_of_their_samples(way):
    """What is logged divides by the number of samples, whatever the packing."""
    variant = VARIANTS["packing"]
    ali, batch = variant.build(), variant.batch()
    pairs = ali(batch.x, batch.z, batch.epsilon, PassThrough())
    _, losses = update(variant, way, "nonsaturating", LossWeights())
    game = OBJECTIVES["nonsaturating"]
    torch.testing.assert_close(losses.d_loss / BATCH, game.d_loss(pairs.d_q, pairs.d_p).mean().detach())
    torch.testing.assert_close(losses.g_loss / BATCH, game.g_loss(pairs.d_q, pairs.d_p).mean().detach())
    torch.testing.assert_close(losses.d_q / BATCH, pairs.d_q.sigmoid().mean().detach())
    torch.testing.assert_close(losses.d_p / BATCH, pairs.d_p.sigmoid().mean().detach())


def test_penalty_of_packs_is_a_mean_over_packs():
    variant = VARIANTS["packing"]
    ali, batch = variant.build(), variant.batch()
    x, z = batch.x.clone().requires_grad_(), encode(ali, batch.x, batch.epsilon, None)[0].detach().requires_grad_()
    squares = torch.zeros(BATCH // 2)
    for k, d in enumerate(scores(ali, variant, x, z, None).joint):
        squares[k] = sum(g.square().sum() for g in torch.autograd.grad(d, [x, z], retain_graph=True))
    _, losses = update(variant, "penalised", "nonsaturating", LossWeights(r1=0.8))
    torch.testing.assert_close(losses.penalty / BATCH, 0.4 * squares.mean())


# ---- all games -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*VARIANTS, *UNARY])
def test_the_players_losses_differ_by_the_mean_margin_of_all_scores(name):
    """L_g - L_d = mean(d_q - d_p), summed over the scores that D gives."""
    variant = (VARIANTS | UNARY)[name]
    ali, batch = variant.build(), variant.batch()
    e = None if batch.c is None else ali.embedding(batch.c)
    z_hat, x_tilde = encode(ali, batch.x, batch.epsilon, e)[0], decode(ali, batch.z, e)
    q, p = scores(ali, variant, batch.x, z_hat, e), scores(ali, variant, x_tilde, batch.z, e)
    margin = sum((a - b).mean() for a, b in zip((q.joint, *q.others), (p.joint, *p.others), strict=True))
    _, losses = update(variant, "coupled", "nonsaturating", LossWeights())
    torch.testing.assert_close((losses.g_loss - losses.d_loss) / BATCH, margin.detach(), rtol=1e-4, atol=1e-6)


# ---- plain GAN, inverse, BiGAN -------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["scaled", "penalised", "coupled"])
def test_in_a_gan_the_decoder_does_not_notice_the_encoder(way):
    """Other encoder weights: the same gradients of G and D."""
    variant = VARIANTS["gan"]
    mine, other = variant.build(), variant.build()
    for p in other.encoder.parameters():
        torch.nn.init.normal_(p, 0.0, 0.1)
    count = len(list(mine.encoder.parameters()))
    first, second = (update(variant, way, "nonsaturating", LossWeights(), ali)[0] for ali in (mine, other))
    assert relative_error(first[count:], second[count:]) == 0.0
    assert relative_error(first[:count], second[:count]) > 0.1


def test_a_gans_discriminator_has_no_part_for_z():
    ali = VARIANTS["gan"].build()
    assert not [name for name, _ in ali.discriminator.named_parameters() if name.startswith(("d_z", "unary"))]
    batch = VARIANTS["gan"].batch()
    first, second = (ali(batch.x, z, batch.epsilon, PassThrough()).d_q for z in (batch.z, -batch.z))
    assert torch.equal(first, second)


def test_the_inverse_mapping_trains_the_encoder_alone():
    variant = Variant(kind="inverse")
    ali, batch = variant.build(), variant.batch()
    assert not ali.discriminator_parameters()
    ali.decoder.requires_grad_(False)
    mine, losses = update(variant, "inverse", "nonsaturating", LossWeights(), ali)
    error = (encode(ali, decode(ali, batch.z, None), batch.epsilon, None)[1] - batch.z).square().mean()
    expected = torch.autograd.grad(error, list(ali.encoder.parameters()))
    assert relative_error(mine, expected) < 1e-5
    assert losses.cycle.item() / BATCH == pytest.approx(error.item(), rel=1e-5)


def test_a_deterministic_encoder_has_one_output_for_each_latent_variable():
    """BiGAN: z = E(x), so the pair is (x, E(x)) whatever the noise, and no layer makes a log sigma."""
    variant = VARIANTS["bigan"]
    ali, batch = variant.build(), variant.batch()
    assert ali.encoder.stack.out_shape == (LATENT, 1, 1)
    z_hat, mu, log_sigma = ali.encoder(batch.x, batch.epsilon)
    assert log_sigma is None
    torch.testing.assert_close(z_hat, ali.encoder.stack(batch.x).flatten(1))
    torch.testing.assert_close(z_hat, mu)
    pairs = ali(batch.x, batch.z, batch.epsilon * 7, PassThrough())
    torch.testing.assert_close(pairs.z_hat, z_hat)


# ---- unary ---------------------------------------------------------------------------------------------------------


def test_unary_scores_see_one_side_alone():
    variant = UNARY["unary"]
    ali, batch = variant.build(), variant.batch()

    def unary(x: Tensor, z: Tensor) -> Tensor:
        return ali.discriminator((x,), z).unary

    base, other_x, other_z = unary(batch.x, batch.z), unary(-batch.x, batch.z), unary(batch.x, -batch.z)
    assert base.shape == (BATCH, 2)
    assert torch.equal(base[:, 1], other_x[:, 1])
    assert torch.equal(base[:, 0], other_z[:, 0])
    assert bool((base[:, 0] != other_x[:, 0]).all())
    assert bool((base[:, 1] != other_z[:, 1]).all())
