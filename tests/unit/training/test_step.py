"""The update's gradients: every exact way against a plain reference of two backward passes."""

import pytest
import torch
from torch import nn

from ali_dist.config import ObjectiveConfig
from ali_dist.errors import InputError
from ali_dist.model.gradient_gates import PassThrough
from ali_dist.model.losses import OBJECTIVES
from ali_dist.training.precision import Precision
from ali_dist.training.step import LossWeights, Step, TrainBatch
from ali_dist.training.update_rules import UPDATE_RULES, Situation, choose_update_rule
from tests.helpers.networks import (
    BATCH,
    CPU,
    EXACT,
    Recorder,
    inputs,
    networks,
    relative_error,
    step_gradients,
    total_error,
    two_backward_passes,
)


@pytest.mark.parametrize(("loss", "way"), EXACT)
def test_the_papers_networks_have_the_gradients_of_two_backward_passes(loss, way):
    """Maxout, untied bias, and dropout as in the table."""
    ali, batch = networks(None, cycle=False, name="cifar10"), inputs("cifar10")
    mine, _ = step_gradients(ali, way, loss, LossWeights(), 5, batch)
    # N(0, 0.01^2) weights make some gradients vanish; those are measured against the largest.
    theirs = two_backward_passes(ali, loss, LossWeights(), 5, batch)
    floor = 1e-3 * max(t.norm().item() for t in theirs)
    assert relative_error(mine, theirs, floor) < 1e-5


@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize(("loss", "way"), EXACT)
def test_every_exact_way_has_the_gradients_of_two_backward_passes(loss, way, dropout):
    ali = networks(dropout)
    penalty = {"r1": 0.7, "r2": 0.3} if way == "penalised" else {}
    weights = LossWeights(cycle_x=2.0, cycle_z=0.5, cycle_samples=1.5, **penalty)
    mine, _ = step_gradients(ali, way, loss, weights, 5, inputs())
    assert relative_error(mine, two_backward_passes(ali, loss, weights, 5, inputs())) < 1e-5


@pytest.mark.parametrize("loss", OBJECTIVES)
def test_in_bf16_every_way_is_as_close_to_fp32_as_two_backward_passes_are(loss):
    def error(way: str) -> float:
        mine, _ = step_gradients(networks(cycle=False), way, loss, LossWeights(), 5, inputs(), precision="bf16")
        return total_error(mine, two_backward_passes(networks(cycle=False), loss, LossWeights(), 5, inputs()))

    rounding = error("coupled")
    assert 0 < rounding < 0.3
    for way in ("scaled", "penalised"):
        if (loss, way) in EXACT:
            assert error(way) < 1.5 * rounding


def test_losses_are_sums_over_the_batch():
    ali = networks(cycle=False)
    x, z, epsilon = inputs()
    pairs = ali(x, z, epsilon, PassThrough())
    _, losses = step_gradients(ali, "scaled", "nonsaturating", LossWeights(), 0, inputs())
    game = OBJECTIVES["nonsaturating"]
    torch.testing.assert_close(losses.d_loss, game.d_loss(pairs.d_q, pairs.d_p).sum().detach())
    torch.testing.assert_close(losses.g_loss, game.g_loss(pairs.d_q, pairs.d_p).sum().detach())
    torch.testing.assert_close(losses.d_q, pairs.d_q.sigmoid().sum().detach())


def test_two_halves_of_a_batch_add_up_to_the_whole_with_their_share():
    """What DistributedDataParallel averages over two ranks is the gradient of the global mean."""
    ali = networks(cycle=False).eval()  # batch norm would see other batches
    x, z, epsilon = inputs()
    whole, _ = step_gradients(ali, "scaled", "nonsaturating", LossWeights(), 0, inputs())
    parts = []
    for rows in (slice(0, 3), slice(3, BATCH)):
        optimizer = Recorder([*ali.generator_parameters(), *ali.discriminator_parameters()], lr=1.0)
        step = Step(
            UPDATE_RULES["scaled"],
            "nonsaturating",
            ali,
            ali,
            optimizer,
            Precision("fp32", CPU),
            global_batch_size=BATCH,
            world_size=2,
        )
        step(TrainBatch(x[rows], z[rows], epsilon[rows]), LossWeights())
        parts.append(optimizer.seen)
    mean = [(a + b) / 2 for a, b in zip(*parts, strict=True)]
    assert relative_error(mean, whole) < 1e-5


def test_alternating_lets_the_generators_answer_the_updated_discriminator():
    def after_one_update(way: str) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        ali = networks(cycle=False)
        optimizer = torch.optim.SGD([*ali.generator_parameters(), *ali.discriminator_parameters()], lr=0.5)
        Step(UPDATE_RULES[way], "nonsaturating", ali, ali, optimizer, Precision("fp32", CPU), global_batch_size=BATCH)(
            TrainBatch(*inputs()), LossWeights()
        )
        return ali.discriminator_parameters(), ali.generator_parameters()

    d_together, g_together = after_one_update("coupled")
    d_in_turn, g_in_turn = after_one_update("alternating")
    for a, b in zip(d_together, d_in_turn, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    assert max((a - b).abs().max().item() for a, b in zip(g_together, g_in_turn, strict=True)) > 1e-5


@pytest.mark.parametrize("way", ["scaled", "penalised", "coupled", "alternating"])
def test_all_three_networks_move(way):
    ali = networks(cycle=False)
    before = [p.detach().clone() for p in ali.parameters()]
    optimizer = torch.optim.Adam([*ali.generator_parameters(), *ali.discriminator_parameters()], lr=1e-2, fused=True)
    step = Step(
        UPDATE_RULES[way], "nonsaturating", ali, ali, optimizer, Precision("fp32", CPU), global_batch_size=BATCH
    )
    weights = LossWeights(r1=0.1, r2=0.1) if way == "penalised" else LossWeights()
    for _ in range(2):
        step(TrainBatch(*inputs()), weights)
    for (name, now), then in zip(ali.named_parameters(), before, strict=True):
        assert not torch.equal(now, then), f"{name} never moves"


def test_penalised_gradients_have_their_parameters_strides():
    """Fused Adam silently updates the wrong elements where a gradient's strides differ from its parameter's."""
    ali = networks(cycle=False)
    seen = {}

    class Strides(torch.optim.SGD):
        def step(self, closure=None):  # noqa: ARG002
            seen.update({p: (p.stride(), p.grad.stride()) for group in self.param_groups for p in group["params"]})

    optimizer = Strides([*ali.generator_parameters(), *ali.discriminator_parameters()], lr=1.0)
    step = Step(
        UPDATE_RULES["penalised"], "relativistic", ali, ali, optimizer, Precision("fp32", CPU), global_batch_size=BATCH
    )
    step(TrainBatch(*inputs()), LossWeights(r1=1.0, r2=1.0))
    assert seen
    assert all(mine == theirs for mine, theirs in seen.values())


def test_fp16_overflow_skips_both_players_or_neither():
    ali = networks(cycle=False)
    optimizer = torch.optim.SGD([*ali.generator_parameters(), *ali.discriminator_parameters()], lr=0.1)
    precision = Precision("fp16", CPU)
    step = Step(UPDATE_RULES["coupled"], "nonsaturating", ali, ali, optimizer, precision, global_batch_size=BATCH)
    x, z, epsilon = inputs()
    before = [p.detach().clone() for p in ali.parameters()]
    handle = next(ali.discriminator.parameters()).register_hook(lambda grad: grad * float("inf"))
    step(TrainBatch(x, z, epsilon), LossWeights())
    assert all(torch.equal(a, b) for a, b in zip(before, ali.parameters(), strict=True))
    handle.remove()
    step(TrainBatch(x, z, epsilon), LossWeights())
    for part in (ali.encoder, ali.decoder, ali.discriminator):
        old = dict(zip(ali.parameters(), before, strict=True))
        assert any(not torch.equal(old[p], p) for p in part.parameters())


def test_fp16_loss_scale_falls_on_overflow_and_survives_a_checkpoint():
    precision, fresh = Precision("fp16", CPU), Precision("fp16", CPU)
    weight = nn.Parameter(torch.ones(1))
    start = precision.state_dict()
    precision.backward((weight * float("inf")).sum())
    precision.step(torch.optim.SGD([weight], lr=0.1))
    assert weight.item() == 1.0
    assert precision.state_dict()["scale"] < Precision("fp16", CPU).state_dict().get("scale", start["scale"])
    fresh.load_state_dict(precision.state_dict())
    assert fresh.state_dict() == precision.state_dict()


@pytest.mark.parametrize(
    ("update", "loss", "couples", "penalised", "precision", "expected"),
    [
        ("auto", "nonsaturating", False, False, "fp32", "scaled"),
        ("auto", "relativistic", False, True, "bf16", "penalised"),
        ("auto", "nonsaturating", True, False, "fp32", "coupled"),
        ("auto", "hinge", False, False, "fp32", "scaled"),
        ("auto", "nonsaturating", False, False, "fp16", "coupled"),
        ("alternating", "hinge", True, False, "fp16", "alternating"),
    ],
)
def test_the_cheapest_exact_way_is_chosen(update, loss, couples, penalised, precision, expected):
    objective = ObjectiveConfig(update=update, loss=loss, r1=1.0 * penalised)
    situation = Situation(objective=objective, couples_samples=couples, precision=precision)
    assert choose_update_rule(update, situation).name == expected


@pytest.mark.parametrize(
    ("update", "couples", "penalised", "precision", "names"),
    [
        ("scaled", True, False, "fp32", "batch norm"),
        ("penalised", True, False, "fp32", "batch norm"),
        ("auto", True, True, "fp32", "objective.r1"),
        ("scaled", False, False, "fp16", "fp16"),
        ("coupled", False, True, "fp32", "objective.r1"),
    ],
)
def test_a_way_that_would_be_wrong_is_refused(update, couples, penalised, precision, names):
    objective = ObjectiveConfig(r1=1.0 * penalised)
    with pytest.raises(InputError, match=names):
        choose_update_rule(update, Situation(objective=objective, couples_samples=couples, precision=precision))
