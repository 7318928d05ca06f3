"""The discriminator with K + 1 classes: probabilities, losses, and whom labels train.

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
from tests.helpers.networks import BATCH, relative_error
from tests.helpers.variants import CLASSES, VARIANTS, Variant, d_gradients, g_gradients, update


def judged(variant: Variant) -> tuple[ALI, Tensor, Tensor]:
    """Networks, and D's logits and class logits of the encoder pairs."""
    ali, batch = variant.build(), variant.batch()
    z_hat = ali.encoder(batch.x, batch.epsilon)[0]
    said = ali.discriminator((batch.x,), z_hat)
    return ali, said.d, said.classes


def test_probability_of_the_last_class_is_the_softmax_with_its_logit_at_zero():
    """P(decoder pair) = 1 / (1 + sum exp l) = 1 - sigmoid(d), and all K + 1 probabilities add up to 1."""
    _, d, classes = judged(VARIANTS["k+1"])
    assert classes.shape == (BATCH, CLASSES)
    with_last = torch.cat([classes, torch.zeros(BATCH, 1)], dim=1).softmax(1)
    torch.testing.assert_close(with_last[:, -1], torch.sigmoid(-d))
    torch.testing.assert_close(with_last[:, -1], 1 / (1 + classes.exp().sum(1)))
    torch.testing.assert_close(with_last[:, :-1].sum(1), torch.sigmoid(d))


def test_class_loss_is_the_cross_entropy_of_the_real_classes_alone():
    variant = VARIANTS["k+1"]
    ali, batch = variant.build(), variant.batch()
    assert batch.labelled is not None
    x, y, epsilon = batch.labelled
    classes = ali.discriminator((x,), ali.encoder(x, epsilon)[0]).classes
    log_shares = classes.log_softmax(1)[torch.arange(len(y)), y]
    _, losses = update(variant, "scaled", "nonsaturating", LossWeights(supervised=3.0))
    torch.testing.assert_close(losses.supervised, -log_shares.sum().detach())


def test_class_loss_does_not_touch_the_logits_of_the_game():
    """In evaluation mode labelled rows change neither d_q nor d_p, and they are not counted among them."""
    variant = VARIANTS["k+1"]
    ali, batch = variant.build(), variant.batch()
    x, z, epsilon = batch.x, batch.z, batch.epsilon
    with_labels = ali(x, z, epsilon, PassThrough(), None, batch.labelled)
    without = ali(x, z, epsilon, PassThrough())
    torch.testing.assert_close(with_labels.d_q, without.d_q)
    torch.testing.assert_close(with_labels.d_p, without.d_p)
    assert without.classes is not None
    assert without.classes.supervised is None


@pytest.mark.parametrize("way", ["scaled", "penalised", "coupled"])
def test_labels_do_not_train_the_encoder(way):
    variant = VARIANTS["k+1"]
    count = len(variant.build().generator_parameters())
    with_labels, _ = update(variant, way, "nonsaturating", LossWeights(supervised=10.0))
    without, _ = update(variant, way, "nonsaturating", LossWeights())
    assert relative_error(with_labels[:count], without[:count]) < 1e-6
    assert relative_error(with_labels[count:], without[count:]) > 0.1


@pytest.mark.parametrize("terms", [{"entropy": 0.8}, {"balance": 0.8}], ids=["entropy", "balance"])
@pytest.mark.parametrize(("way", "penalty"), [("penalised", 0.7), ("penalised", 0.0), ("coupled", 0.0)])
def test_terms_of_unlabelled_classes_have_their_gradient_and_train_nobody_but_d(way, penalty, terms):
    """Without a penalty, as between lazy ones, `penalised` must not fall back to scaling, which would reach E."""
    variant, weights = VARIANTS["k+1"], LossWeights(supervised=2.0, r1=penalty, r2=penalty, **terms)
    ali = variant.build().eval()
    mine, _ = update(variant, way, "nonsaturating", weights, ali)
    theirs = [
        *g_gradients(ali, variant, "nonsaturating", weights),
        *d_gradients(ali, variant, "nonsaturating", weights),
    ]
    assert relative_error(mine, theirs, floor=1e-6) < 2e-5
    without, _ = update(variant, way, "nonsaturating", LossWeights(supervised=2.0, r1=penalty, r2=penalty), ali)
    assert relative_error(mine, without, floor=1e-6) > 0.01


def test_with_one_class_the_game_is_plain_ali():
    """log sum exp of one logit is that logit, and its class is certain."""
    one, plain = Variant(classes=1), Variant()
    mine, losses = update(one, "scaled", "nonsaturating", LossWeights(supervised=1.0))
    theirs, _ = update(plain, "scaled", "nonsaturating", LossWeights())
    assert relative_error(mine, theirs) < 1e-6
    assert losses.supervised.item() == 0.0


def flatten_last_layer(ali: ALI, bias: float) -> None:
    """All of D's logits become `bias`."""
    last = [m for m in ali.discriminator.get_submodule("d_xz").modules() if isinstance(m, torch.nn.Conv2d)][-1]
    assert last.bias is not None
    torch.nn.init.zeros_(last.weight)
    torch.nn.init.constant_(last.bias, bias)


@pytest.mark.parametrize(
    ("variant", "bias"),
    [(Variant(), 0.0), (Variant(packing=2), 0.0), (Variant(classes=CLASSES), -math.log(CLASSES))],
    ids=["plain", "packing", "k+1"],
)
def test_an_undecided_discriminator_costs_two_log_two_and_sees_no_divergence(variant, bias):
    """d = 0 for K + 1 classes means that the last one has the odds of all others together."""
    ali = variant.build()
    flatten_last_layer(ali, bias)
    _, losses = update(variant, "scaled", "nonsaturating", LossWeights(supervised=1.0), ali)
    d_loss, g_loss = losses.d_loss.item() / BATCH, losses.g_loss.item() / BATCH
    assert (d_loss, g_loss) == pytest.approx((2 * math.log(2), 2 * math.log(2)), rel=1e-6)
    assert jsd_estimate(d_loss) == pytest.approx(0.0, abs=1e-6)
    if variant.classes:
        assert losses.supervised.item() / len(variant.batch().labelled.y) == pytest.approx(math.log(CLASSES))
