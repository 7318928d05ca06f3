"""Conditional, packed, semi-supervised, unary and plain-GAN games: formulas, gradients, and which networks learn.

Every gradient is compared with one that `tests/helpers/variants.py` derives anew from the networks.
Run: `make test ARGS=tests/unit/training/test_variants.py`
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ali_dist.model.gradient_gates import PassThrough, StopGradient
from ali_dist.model.losses import OBJECTIVES
from ali_dist.training.step import LossWeights
from tests.helpers.networks import BATCH_SIZE, EXACT_RULES, LATENT_SIZE, relative_error
from tests.helpers.variants import (
    EMBEDDING_SIZE,
    UNARY_VARIANTS,
    VARIANTS,
    Variant,
    compute_scores,
    decode_by_hand,
    encode_by_hand,
    expected_d_gradients,
    expected_g_gradients,
    run_update,
)


def weights_for(variant: Variant, rule: str) -> LossWeights:
    """All the terms that the game and the update rule can have."""
    cycles = {"cycle_x": 2.0, "cycle_z": 0.5, "cycle_samples": 1.5} if variant.kind == "ali" else {}
    penalties = {"r1": 0.7, "r2": 0.3} if rule == "penalised" else {}
    return LossWeights(**cycles, **penalties, supervised=1.3 if variant.classes else 0.0)


def assert_gradients_are_those_by_hand(variant: Variant, loss: str, rule: str) -> None:
    weights = weights_for(variant, rule)
    ali = variant.build(cycles=weights.cycle_x > 0)
    expected = expected_g_gradients(ali, variant, loss, weights) + expected_d_gradients(ali, variant, loss, weights)
    gradients, _ = run_update(variant, rule, loss, weights)
    floor = 1e-3 * max(t.norm().item() for t in expected)  # what vanishes is measured against the largest
    # Rounding alone gives up to 3e-5, depending on the processor's convolutions.
    assert relative_error(gradients, expected, floor) < 5e-5


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize(("loss", "rule"), EXACT_RULES)
def test_every_exact_rule_has_the_gradients_computed_by_hand(loss, rule, name):
    assert_gradients_are_those_by_hand(VARIANTS[name], loss, rule)


@pytest.mark.parametrize("name", UNARY_VARIANTS)
@pytest.mark.parametrize("loss", OBJECTIVES)
def test_games_with_unary_scores_have_the_gradients_computed_by_hand(loss, name):
    """BigBiGAN: the discriminator pays for each score by itself, the generators for their sum."""
    assert_gradients_are_those_by_hand(UNARY_VARIANTS[name], loss, "coupled")


# ---- conditional ---------------------------------------------------------------------------------------------------


def test_the_discriminator_takes_the_embedding_as_a_constant():
    """Its loss reaches the embedding neither through D's input nor through E and G."""
    variant = VARIANTS["conditional"]
    ali, batch = variant.build(), variant.make_batch()
    output = ali(batch.x, batch.z, batch.epsilon, StopGradient(differentiable=False), batch.c)
    (output.d_q.sum() - output.d_p.sum()).backward()
    assert all(p.grad is None for p in ali.generator_parameters())
    assert all(p.grad is not None for p in ali.discriminator_parameters())


@pytest.mark.parametrize("network", ["encoder", "decoder"])
def test_the_embedding_is_trained_through_the_encoder_and_the_decoder(network):
    variant = VARIANTS["conditional"]
    ali, batch = variant.build(), variant.make_batch()
    assert batch.c is not None
    e = ali.embedding(batch.c)
    if network == "encoder":
        output, _, _ = ali.encoder(batch.x, batch.epsilon, e)
        expected, _ = encode_by_hand(ali, batch.x, batch.epsilon, e)
    else:
        output = ali.decoder(batch.z, e)
        expected = decode_by_hand(ali, batch.z, e)
    torch.testing.assert_close(output, expected)
    output.sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in ali.embedding.parameters())


def test_each_network_depends_on_the_condition_of_its_own_row_alone():
    """Changing the condition of one row changes the output of that row and of no other."""
    variant = VARIANTS["conditional"]
    ali, batch = variant.build(), variant.make_batch()
    assert batch.c is not None
    other = batch.c.clone()
    other[2] = 1 - other[2]

    def outputs(c: Tensor) -> tuple[Tensor, ...]:
        output = ali(batch.x, batch.z, batch.epsilon, PassThrough(), c)
        d_of_the_same_pairs = ali.discriminator((batch.x,), batch.z, ali.embedding(c)).d
        return output.z_hat, output.x_tilde, d_of_the_same_pairs, output.d_q, output.d_p

    for before, after in zip(outputs(batch.c), outputs(other), strict=True):
        moved = [not torch.allclose(a, b, rtol=1e-4, atol=1e-7) for a, b in zip(before, after, strict=True)]
        assert moved == [row == 2 for row in range(BATCH_SIZE)]


def test_mu_and_log_sigma_are_affine_in_the_embedding():
    variant = VARIANTS["conditional"]
    ali, batch = variant.build(), variant.make_batch()
    a, b = torch.randn(2, BATCH_SIZE, EMBEDDING_SIZE, generator=torch.Generator().manual_seed(0))

    def parameters_of_z(e: Tensor) -> Tensor:
        _, mu, log_sigma = ali.encoder(batch.x, batch.epsilon, e)
        return torch.cat([mu, log_sigma], dim=1)

    mixed = 0.3 * parameters_of_z(a) + 0.7 * parameters_of_z(b)
    torch.testing.assert_close(parameters_of_z(0.3 * a + 0.7 * b), mixed, rtol=1e-4, atol=1e-5)


# ---- packing -------------------------------------------------------------------------------------------------------


def test_a_pack_consists_of_adjacent_rows_and_depends_on_no_other():
    variant = VARIANTS["packing"]
    ali, batch = variant.build(), variant.make_batch()
    before = ali(batch.x, batch.z, batch.epsilon, PassThrough())
    x = batch.x.clone()
    x[5] += 0.5
    after = ali(x, batch.z, batch.epsilon, PassThrough())
    assert before.d_q.shape == before.d_p.shape == (BATCH_SIZE // 2,)
    assert (before.d_q != after.d_q).tolist() == [False, False, True, False]
    torch.testing.assert_close(before.d_p, after.d_p, rtol=0, atol=0)


@pytest.mark.parametrize("rule", ["scaled", "penalised", "coupled"])
def test_the_loss_of_a_pack_counts_for_each_of_its_samples(rule):
    """Records divide by the number of samples, whatever the packing is."""
    variant = VARIANTS["packing"]
    ali, batch = variant.build(), variant.make_batch()
    output = ali(batch.x, batch.z, batch.epsilon, PassThrough())
    _, losses = run_update(variant, rule, "nonsaturating", LossWeights())
    objective = OBJECTIVES["nonsaturating"]
    torch.testing.assert_close(losses.d_loss / BATCH_SIZE, objective.d_loss(output.d_q, output.d_p).mean().detach())
    torch.testing.assert_close(losses.g_loss / BATCH_SIZE, objective.g_loss(output.d_q, output.d_p).mean().detach())
    torch.testing.assert_close(losses.d_q / BATCH_SIZE, output.d_q.sigmoid().mean().detach())
    torch.testing.assert_close(losses.d_p / BATCH_SIZE, output.d_p.sigmoid().mean().detach())


def test_penalty_of_packs_is_a_mean_over_packs():
    variant = VARIANTS["packing"]
    ali, batch = variant.build(), variant.make_batch()
    x, z = (
        batch.x.clone().requires_grad_(),
        encode_by_hand(ali, batch.x, batch.epsilon, None)[0].detach().requires_grad_(),
    )
    squares = torch.zeros(BATCH_SIZE // 2)
    for k, d in enumerate(compute_scores(ali, variant, x, z, None).joint):
        squares[k] = sum(g.square().sum() for g in torch.autograd.grad(d, [x, z], retain_graph=True))
    _, losses = run_update(variant, "penalised", "nonsaturating", LossWeights(r1=0.8))
    torch.testing.assert_close(losses.penalty_q / BATCH_SIZE, 0.4 * squares.mean())
    assert losses.penalty_p == 0


# ---- all games -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*VARIANTS, *UNARY_VARIANTS])
def test_the_two_losses_differ_by_the_mean_margin_of_all_scores(name):
    """g_loss - d_loss = mean(d_q - d_p), summed over the logits that D gives a pair."""
    variant = (VARIANTS | UNARY_VARIANTS)[name]
    ali, batch = variant.build(), variant.make_batch()
    e = None if batch.c is None else ali.embedding(batch.c)
    z_hat, _ = encode_by_hand(ali, batch.x, batch.epsilon, e)
    x_tilde = decode_by_hand(ali, batch.z, e)
    q = compute_scores(ali, variant, batch.x, z_hat, e).of_pairs_and_sides()
    p = compute_scores(ali, variant, x_tilde, batch.z, e).of_pairs_and_sides()
    margin = sum((d_q - d_p).mean() for d_q, d_p in zip(q, p, strict=True))
    _, losses = run_update(variant, "coupled", "nonsaturating", LossWeights())
    torch.testing.assert_close((losses.g_loss - losses.d_loss) / BATCH_SIZE, margin.detach(), rtol=1e-4, atol=1e-6)


# ---- plain GAN, inverse, BiGAN -------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", ["scaled", "penalised", "coupled"])
def test_in_a_gan_the_decoder_does_not_depend_on_the_encoder(rule):
    """With other weights in the encoder, G and D have the same gradients."""
    variant = VARIANTS["gan"]
    ali = variant.build()
    with_other_encoder = variant.build()
    for p in with_other_encoder.encoder.parameters():
        torch.nn.init.normal_(p, 0.0, 0.1)
    count = len(list(ali.encoder.parameters()))
    first, _ = run_update(variant, rule, "nonsaturating", LossWeights(), ali)
    second, _ = run_update(variant, rule, "nonsaturating", LossWeights(), with_other_encoder)
    assert relative_error(first[count:], second[count:]) == 0.0
    assert relative_error(first[:count], second[:count]) > 0.1


def test_the_discriminator_of_a_gan_has_no_part_for_z():
    ali = VARIANTS["gan"].build()
    assert not [name for name, _ in ali.discriminator.named_parameters() if name.startswith(("d_z", "unary"))]
    batch = VARIANTS["gan"].make_batch()
    first, second = (ali(batch.x, z, batch.epsilon, PassThrough()).d_q for z in (batch.z, -batch.z))
    assert torch.equal(first, second)


def test_the_inverse_mapping_trains_the_encoder_alone():
    variant = Variant(kind="inverse")
    ali, batch = variant.build(), variant.make_batch()
    assert not ali.discriminator_parameters()
    ali.decoder.requires_grad_(False)
    gradients, losses = run_update(variant, "inverse", "nonsaturating", LossWeights(), ali)
    error = (encode_by_hand(ali, decode_by_hand(ali, batch.z, None), batch.epsilon, None)[1] - batch.z).square().mean()
    expected = torch.autograd.grad(error, list(ali.encoder.parameters()))
    assert relative_error(gradients, expected) < 1e-5
    assert losses.cycle.item() / BATCH_SIZE == pytest.approx(error.item(), rel=1e-5)


def test_a_deterministic_encoder_has_one_output_for_each_latent_variable():
    """BiGAN: z = E(x), so the pair is (x, E(x)) whatever the noise, and no layer makes a log sigma."""
    variant = VARIANTS["bigan"]
    ali, batch = variant.build(), variant.make_batch()
    assert ali.encoder.stack.out_shape == (LATENT_SIZE, 1, 1)
    z_hat, mu, log_sigma = ali.encoder(batch.x, batch.epsilon)
    assert log_sigma is None
    torch.testing.assert_close(z_hat, ali.encoder.stack(batch.x).flatten(1))
    torch.testing.assert_close(z_hat, mu)
    output = ali(batch.x, batch.z, batch.epsilon * 7, PassThrough())
    torch.testing.assert_close(output.z_hat, z_hat)


# ---- unary ---------------------------------------------------------------------------------------------------------


def test_each_unary_score_depends_on_one_side_alone():
    variant = UNARY_VARIANTS["unary"]
    ali, batch = variant.build(), variant.make_batch()

    def unary_scores(x: Tensor, z: Tensor) -> Tensor:
        return ali.discriminator((x,), z).unary

    base = unary_scores(batch.x, batch.z)
    other_x = unary_scores(-batch.x, batch.z)
    other_z = unary_scores(batch.x, -batch.z)
    assert base.shape == (BATCH_SIZE, 2)
    assert torch.equal(base[:, 1], other_x[:, 1])
    assert torch.equal(base[:, 0], other_z[:, 0])
    assert bool((base[:, 0] != other_x[:, 0]).all())
    assert bool((base[:, 1] != other_z[:, 1]).all())
