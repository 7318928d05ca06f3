"""The discriminator with K + 1 classes: its probabilities, its losses, and which networks labels train.

Run: `make test ARGS=tests/unit/training/test_class_losses.py`
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ali_dist.model.ali import ALI
from ali_dist.model.gradient_gates import PassThrough
from ali_dist.model.losses import jsd_estimate
from ali_dist.training.step import LossWeights
from tests.helpers.networks import BATCH_SIZE, relative_error
from tests.helpers.variants import (
    CLASS_COUNT,
    VARIANTS,
    Variant,
    expected_d_gradients,
    expected_g_gradients,
    run_update,
)


def logits_of_encoder_pairs(variant: Variant) -> tuple[Tensor, Tensor]:
    """Compute D's logits of encoder pairs and of their classes."""
    ali, batch = variant.build(), variant.make_batch()
    z_hat, _, _ = ali.encoder(batch.x, batch.epsilon)
    output = ali.discriminator((batch.x,), z_hat)
    return output.d, output.classes


def test_the_probability_of_the_last_class_is_the_softmax_with_its_logit_at_zero():
    """P(decoder pair) = 1 / (1 + sum exp l) = 1 - sigmoid(d), and all K + 1 probabilities add up to 1."""
    d, classes = logits_of_encoder_pairs(VARIANTS["k+1"])
    assert classes.shape == (BATCH_SIZE, CLASS_COUNT)
    with_last = torch.cat([classes, torch.zeros(BATCH_SIZE, 1)], dim=1).softmax(1)
    torch.testing.assert_close(with_last[:, -1], torch.sigmoid(-d))
    torch.testing.assert_close(with_last[:, -1], 1 / (1 + classes.exp().sum(1)))
    torch.testing.assert_close(with_last[:, :-1].sum(1), torch.sigmoid(d))


def test_the_class_loss_is_the_cross_entropy_of_the_real_classes_alone():
    variant = VARIANTS["k+1"]
    ali, batch = variant.build(), variant.make_batch()
    assert batch.labelled is not None
    x, y, epsilon = batch.labelled
    classes = ali.discriminator((x,), ali.encoder(x, epsilon)[0]).classes
    log_shares = classes.log_softmax(1)[torch.arange(len(y)), y]
    _, losses = run_update(variant, "scaled", "nonsaturating", LossWeights(supervised=3.0))
    torch.testing.assert_close(losses.supervised, -log_shares.sum().detach())


def test_labelled_rows_do_not_touch_the_logits_of_the_game():
    """In evaluation mode they change neither d_q nor d_p, and are not counted among them."""
    variant = VARIANTS["k+1"]
    ali, batch = variant.build(), variant.make_batch()
    x, z, epsilon = batch.x, batch.z, batch.epsilon
    with_labels = ali(x, z, epsilon, PassThrough(), None, batch.labelled)
    without = ali(x, z, epsilon, PassThrough())
    torch.testing.assert_close(with_labels.d_q, without.d_q)
    torch.testing.assert_close(with_labels.d_p, without.d_p)
    assert without.classes is not None
    assert without.classes.supervised is None


@pytest.mark.parametrize("rule", ["scaled", "penalised", "coupled"])
def test_labels_do_not_train_the_encoder(rule):
    variant = VARIANTS["k+1"]
    count = len(variant.build().generator_parameters())
    with_labels, _ = run_update(variant, rule, "nonsaturating", LossWeights(supervised=10.0))
    without, _ = run_update(variant, rule, "nonsaturating", LossWeights())
    assert relative_error(with_labels[:count], without[:count]) < 1e-6
    assert relative_error(with_labels[count:], without[count:]) > 0.1


@pytest.mark.parametrize("terms", [{"entropy": 0.8}, {"balance": 0.8}], ids=["entropy", "balance"])
@pytest.mark.parametrize(("rule", "penalty"), [("penalised", 0.7), ("penalised", 0.0), ("coupled", 0.0)])
def test_class_terms_of_unlabelled_data_have_their_gradient_and_train_d_alone(rule, penalty, terms):
    """Where no penalty is due, `penalised` must not fall back on scaling, with which the terms would reach E."""
    variant = VARIANTS["k+1"]
    weights = LossWeights(supervised=2.0, r1=penalty, r2=penalty, **terms)
    ali = variant.build().eval()
    gradients, _ = run_update(variant, rule, "nonsaturating", weights, ali)
    expected = [
        *expected_g_gradients(ali, variant, "nonsaturating", weights),
        *expected_d_gradients(ali, variant, "nonsaturating", weights),
    ]
    assert relative_error(gradients, expected, floor=1e-6) < 2e-5
    without, _ = run_update(variant, rule, "nonsaturating", LossWeights(supervised=2.0, r1=penalty, r2=penalty), ali)
    assert relative_error(gradients, without, floor=1e-6) > 0.01


def test_with_one_class_the_game_is_plain_ali():
    """The log-sum-exp of one logit is that logit, and its class is certain."""
    gradients, losses = run_update(Variant(classes=1), "scaled", "nonsaturating", LossWeights(supervised=1.0))
    expected, _ = run_update(Variant(), "scaled", "nonsaturating", LossWeights())
    assert relative_error(gradients, expected) < 1e-6
    assert losses.supervised.item() == 0.0


def flatten_last_layer(ali: ALI, bias: float) -> None:
    """Make all of D's logits equal to `bias`."""
    convolutions = [m for m in ali.discriminator.get_submodule("d_xz").modules() if isinstance(m, torch.nn.Conv2d)]
    last_layer = convolutions[-1]
    assert last_layer.bias is not None
    torch.nn.init.zeros_(last_layer.weight)
    torch.nn.init.constant_(last_layer.bias, bias)


@pytest.mark.parametrize(
    ("variant", "bias"),
    [(Variant(), 0.0), (Variant(packing=2), 0.0), (Variant(classes=CLASS_COUNT), -math.log(CLASS_COUNT))],
    ids=["plain", "packing", "k+1"],
)
def test_an_undecided_discriminator_has_a_loss_of_two_log_two_and_finds_no_divergence(variant, bias):
    """With K + 1 classes, d = 0 means that the last class is as likely as all others together."""
    ali = variant.build()
    flatten_last_layer(ali, bias)
    _, losses = run_update(variant, "scaled", "nonsaturating", LossWeights(supervised=1.0), ali)
    d_loss = losses.d_loss.item() / BATCH_SIZE
    g_loss = losses.g_loss.item() / BATCH_SIZE
    assert (d_loss, g_loss) == pytest.approx((2 * math.log(2), 2 * math.log(2)), rel=1e-6)
    assert jsd_estimate(d_loss) == pytest.approx(0.0, abs=1e-6)
    if variant.classes:
        assert losses.supervised.item() / len(variant.make_batch().labelled.y) == pytest.approx(math.log(CLASS_COUNT))


def test_classes_that_are_all_alike_are_worse_than_chance_and_no_negative_divergence():
    """K logits of 0 make d = ln K: D believes every pair, with a probability of K / (K + 1), to be the encoder's."""
    variant = Variant(classes=CLASS_COUNT)
    ali = variant.build()
    flatten_last_layer(ali, 0.0)
    _, losses = run_update(variant, "scaled", "nonsaturating", LossWeights(), ali)
    d_loss = losses.d_loss.item() / BATCH_SIZE
    assert d_loss == pytest.approx(math.log(1 + 1 / CLASS_COUNT) + math.log(1 + CLASS_COUNT), rel=1e-6)
    assert d_loss > 2 * math.log(2)
    assert jsd_estimate(d_loss) == 0.0
