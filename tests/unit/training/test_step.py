"""One update: every exact rule has the gradients of two plain backward passes, and updates move what they should.

Run: `make test ARGS=tests/unit/training/test_step.py`
"""

import pytest
import torch
from torch import nn

from ali_dist.model.ali import ALI
from ali_dist.model.gradient_gates import PassThrough
from ali_dist.model.losses import OBJECTIVES
from ali_dist.training.precision import Precision
from ali_dist.training.step import LossWeights, TrainBatch
from tests.bench.operations import OperationCounter
from tests.helpers.networks import (
    BATCH_SIZE,
    CPU,
    EXACT_RULES,
    GradientRecorder,
    gradients_of_step,
    gradients_of_two_backward_passes,
    make_inputs,
    make_networks,
    make_step,
    relative_error,
    total_error,
    trained_parameters,
)
from tests.helpers.variants import Variant


@pytest.mark.parametrize(("loss", "rule"), EXACT_RULES)
def test_the_papers_networks_have_the_gradients_of_two_backward_passes(loss, rule):
    """They have maxout, an untied bias, and dropout as in the table."""
    ali = make_networks(None, cycle=False, name="cifar10")
    batch = make_inputs("cifar10")
    gradients, _ = gradients_of_step(ali, rule, loss, LossWeights(), 5, batch)
    expected = gradients_of_two_backward_passes(ali, loss, LossWeights(), 5, batch)
    # N(0, 0.01^2) weights make some gradients vanish; those are measured against the largest.
    floor = 1e-3 * max(t.norm().item() for t in expected)
    assert relative_error(gradients, expected, floor) < 1e-5


@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize(("loss", "rule"), EXACT_RULES)
def test_every_exact_rule_has_the_gradients_of_two_backward_passes(loss, rule, dropout):
    ali = make_networks(dropout)
    penalty = {"r1": 0.7, "r2": 0.3} if rule == "penalised" else {}
    weights = LossWeights(cycle_x=2.0, cycle_z=0.5, cycle_samples=1.5, **penalty)
    gradients, _ = gradients_of_step(ali, rule, loss, weights, 5, make_inputs())
    expected = gradients_of_two_backward_passes(ali, loss, weights, 5, make_inputs())
    assert relative_error(gradients, expected) < 1e-5


@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("name", ["digits", "cifar10"])
@pytest.mark.parametrize("loss", OBJECTIVES)
def test_the_penalised_rule_is_exact_to_the_rounding_of_float64(monkeypatch, loss, name, dropout):
    """With maxout and untied biases, too. In one pass through D's own graph, and in two where D does not allow that."""
    monkeypatch.setattr(torch.Tensor, "float", lambda tensor: tensor)  # networks give fp32 whatever they compute in
    ali = make_networks(dropout, name=name).double()
    with torch.no_grad():
        for p in ali.discriminator.parameters():
            p.add_(0.05 * torch.randn(p.shape, dtype=p.dtype, generator=torch.Generator().manual_seed(2)))
    weights = LossWeights(r1=0.7, r2=0.3, cycle_x=2.0, cycle_z=0.5, cycle_samples=1.5)
    x, z, epsilon = (t.double() for t in make_inputs(name))
    expected = gradients_of_two_backward_passes(ali, loss, weights, 5, (x, z, epsilon))
    floor = 1e-3 * max(t.norm().item() for t in expected)
    for is_known in (True, False):
        optimizer = GradientRecorder(trained_parameters(ali), lr=1.0)
        step = make_step(ali, "penalised", loss, optimizer)
        assert step.has_piecewise_linear_d
        step.has_piecewise_linear_d = is_known
        torch.manual_seed(5)
        step(TrainBatch(x, z, epsilon), weights)
        assert relative_error(optimizer.gradients, expected, floor) < 1e-9


def operations_of_update(ali: ALI, precision: str, *, is_known: bool, weights: LossWeights, batch: TrainBatch) -> int:
    optimizer = torch.optim.SGD(trained_parameters(ali), lr=0.0)
    step = make_step(ali, "penalised", "nonsaturating", optimizer, precision=Precision(precision, CPU))
    step.has_piecewise_linear_d = step.has_piecewise_linear_d and is_known
    with OperationCounter() as counter:
        step(batch, weights)
    return counter.total


PENALTY = LossWeights(r1=0.7, r2=0.3)


def test_a_penalised_update_goes_through_a_piecewise_linear_d_four_times_and_not_six():
    """Forward, for the input gradient, and twice for the gradients of its loss and its penalty together."""
    ali = make_networks(cycle=False)
    x, z, epsilon = make_inputs()
    with OperationCounter() as forward:
        ali.discriminator((x, x), torch.cat([z, z]))
    batch = TrainBatch(x, z, epsilon)
    known, unknown = (
        operations_of_update(ali, "fp32", is_known=is_known, weights=PENALTY, batch=batch) for is_known in (True, False)
    )
    assert unknown - known == 2 * forward.total


@pytest.mark.parametrize(
    ("classes", "precision", "weights"),
    [(4, "fp32", PENALTY), (0, "fp16", PENALTY), (0, "fp16", LossWeights()), (0, "fp32", LossWeights())],
    ids=["classes", "fp16", "fp16 between penalties", "between penalties"],
)
def test_other_penalised_updates_are_as_they_were(classes, precision, weights):
    variant = Variant(classes=classes)
    batch = variant.make_batch()
    known, unknown = (
        operations_of_update(variant.build(), precision, is_known=is_known, weights=weights, batch=batch)
        for is_known in (True, False)
    )
    assert known == unknown > 0


@pytest.mark.parametrize("loss", OBJECTIVES)
def test_in_bf16_a_penalised_update_is_as_close_to_fp32_in_one_pass_as_in_two(loss):
    batch = make_inputs()
    expected = gradients_of_two_backward_passes(make_networks(cycle=False), loss, PENALTY, 5, batch)
    errors = []
    for is_known in (True, False):
        ali = make_networks(cycle=False)
        optimizer = GradientRecorder(trained_parameters(ali), lr=1.0)
        step = make_step(ali, "penalised", loss, optimizer, precision=Precision("bf16", CPU))
        step.has_piecewise_linear_d = is_known
        step(TrainBatch(*batch), PENALTY)
        errors.append(total_error(optimizer.gradients, expected))
    in_one_pass, in_two = errors
    assert 0 < in_one_pass < 1.2 * in_two < 0.4


@pytest.mark.parametrize("loss", OBJECTIVES)
def test_in_bf16_every_rule_is_as_close_to_fp32_as_two_backward_passes_are(loss):
    batch = make_inputs()
    expected = gradients_of_two_backward_passes(make_networks(cycle=False), loss, LossWeights(), 5, batch)

    def rounding_error(rule: str) -> float:
        ali = make_networks(cycle=False)
        gradients, _ = gradients_of_step(ali, rule, loss, LossWeights(), 5, batch, precision="bf16")
        return total_error(gradients, expected)

    error_of_two_passes = rounding_error("coupled")
    assert 0 < error_of_two_passes < 0.3
    for rule in ("scaled", "penalised"):
        if (loss, rule) in EXACT_RULES:
            assert rounding_error(rule) < 1.5 * error_of_two_passes


def test_reported_losses_are_sums_over_the_batch():
    ali = make_networks(cycle=False)
    x, z, epsilon = make_inputs()
    output = ali(x, z, epsilon, PassThrough())
    _, losses = gradients_of_step(ali, "scaled", "nonsaturating", LossWeights(), 0, make_inputs())
    objective = OBJECTIVES["nonsaturating"]
    torch.testing.assert_close(losses.d_loss, objective.d_loss(output.d_q, output.d_p).sum().detach())
    torch.testing.assert_close(losses.g_loss, objective.g_loss(output.d_q, output.d_p).sum().detach())
    torch.testing.assert_close(losses.d_q, output.d_q.sigmoid().sum().detach())


def test_gradients_of_two_parts_of_a_batch_average_to_those_of_the_whole():
    """What DistributedDataParallel averages over two ranks is the gradient of the global mean."""
    ali = make_networks(cycle=False).eval()  # in training mode batch norm would depend on the parts
    x, z, epsilon = make_inputs()
    whole, _ = gradients_of_step(ali, "scaled", "nonsaturating", LossWeights(), 0, make_inputs())
    parts = []
    for rows in (slice(0, 3), slice(3, BATCH_SIZE)):
        optimizer = GradientRecorder(trained_parameters(ali), lr=1.0)
        step = make_step(ali, "scaled", "nonsaturating", optimizer, world_size=2)
        step(TrainBatch(x[rows], z[rows], epsilon[rows]), LossWeights())
        parts.append(optimizer.gradients)
    mean = [(first + second) / 2 for first, second in zip(*parts, strict=True)]
    assert relative_error(mean, whole) < 1e-5


def test_the_alternating_rule_lets_the_generators_answer_the_updated_discriminator():
    def parameters_after_an_update(rule: str) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        ali = make_networks(cycle=False)
        optimizer = torch.optim.SGD(trained_parameters(ali), lr=0.5)
        step = make_step(ali, rule, "nonsaturating", optimizer)
        step(TrainBatch(*make_inputs()), LossWeights())
        return ali.discriminator_parameters(), ali.generator_parameters()

    d_simultaneous, g_simultaneous = parameters_after_an_update("coupled")
    d_alternating, g_alternating = parameters_after_an_update("alternating")
    for a, b in zip(d_simultaneous, d_alternating, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    assert max((a - b).abs().max().item() for a, b in zip(g_simultaneous, g_alternating, strict=True)) > 1e-5


@pytest.mark.parametrize("rule", ["scaled", "penalised", "coupled", "alternating"])
def test_every_parameter_of_all_three_networks_moves(rule):
    ali = make_networks(cycle=False)
    before = [p.detach().clone() for p in ali.parameters()]
    optimizer = torch.optim.Adam(trained_parameters(ali), lr=1e-2, fused=True)
    step = make_step(ali, rule, "nonsaturating", optimizer)
    weights = LossWeights(r1=0.1, r2=0.1) if rule == "penalised" else LossWeights()
    for _ in range(2):
        step(TrainBatch(*make_inputs()), weights)
    for (name, parameter), start in zip(ali.named_parameters(), before, strict=True):
        assert not torch.equal(parameter, start), f"{name} never moves"


def test_gradients_of_the_penalised_rule_have_the_strides_of_their_parameters():
    """Fused Adam silently updates the wrong elements where a gradient's strides differ from its parameter's."""
    ali = make_networks(cycle=False)
    strides = []

    class StrideRecorder(torch.optim.SGD):
        def step(self, closure=None):  # noqa: ARG002
            strides.extend((p.stride(), p.grad.stride()) for group in self.param_groups for p in group["params"])

    optimizer = StrideRecorder(trained_parameters(ali), lr=1.0)
    step = make_step(ali, "penalised", "relativistic", optimizer)
    step(TrainBatch(*make_inputs()), LossWeights(r1=1.0, r2=1.0))
    assert strides
    assert all(of_gradient == of_parameter for of_parameter, of_gradient in strides)


def test_an_overflow_in_fp16_skips_the_update_of_all_networks_or_of_none():
    ali = make_networks(cycle=False)
    optimizer = torch.optim.SGD(trained_parameters(ali), lr=0.1)
    precision = Precision("fp16", CPU)
    step = make_step(ali, "coupled", "nonsaturating", optimizer, precision=precision)
    x, z, epsilon = make_inputs()
    before = [p.detach().clone() for p in ali.parameters()]
    handle = next(ali.discriminator.parameters()).register_hook(lambda grad: grad * float("inf"))
    step(TrainBatch(x, z, epsilon), LossWeights())
    assert all(torch.equal(a, b) for a, b in zip(before, ali.parameters(), strict=True))
    handle.remove()
    step(TrainBatch(x, z, epsilon), LossWeights())
    start = dict(zip(ali.parameters(), before, strict=True))
    for network in (ali.encoder, ali.decoder, ali.discriminator):
        assert any(not torch.equal(start[p], p) for p in network.parameters())


def test_the_loss_scale_of_fp16_falls_on_overflow_and_survives_a_checkpoint():
    precision = Precision("fp16", CPU)
    weight = nn.Parameter(torch.ones(1))
    scale_at_start = precision.state_dict()["scale"]
    precision.backward((weight * float("inf")).sum())
    precision.step(torch.optim.SGD([weight], lr=0.1))
    assert weight.item() == 1.0
    assert precision.state_dict()["scale"] < scale_at_start
    restored = Precision("fp16", CPU)
    restored.load_state_dict(precision.state_dict())
    assert restored.state_dict() == precision.state_dict()
