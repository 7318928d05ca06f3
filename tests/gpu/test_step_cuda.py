"""The update on a GPU: the gradients of two plain backward passes, in every precision, with and without NCCL.

Run: `make test ARGS=tests/gpu`; needs a CUDA device.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from ali_dist.config import AUGMENTATIONS
from ali_dist.distributed import World
from ali_dist.model.augmentation import Augmentation
from ali_dist.model.losses import OBJECTIVES
from ali_dist.training.ddp import wrap_for_ddp
from ali_dist.training.precision import Precision
from ali_dist.training.randomness import AugmentationDraws
from ali_dist.training.step import LossWeights, TrainBatch
from ali_dist.training.update_rules import UPDATE_RULES
from tests.helpers.networks import (
    EXACT_RULES,
    copy_state,
    gradients_of_step,
    gradients_of_two_backward_passes,
    make_inputs,
    make_networks,
    make_step,
    relative_error,
    total_error,
    trained_parameters,
)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device here"),
]
CUDA = torch.device("cuda", 0)
# Each kernel sums in an order of its own, and cuDNN takes other kernels for other passes; a wrong factor is 1e-2.
FP32_ROUNDING = 5e-5


@pytest.fixture(autouse=True)
def _real_fp32() -> Iterator[None]:
    """Kernels that compute fp32 in fp32 (no TF32) and the same way each time."""
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
        yield


def weights_for(rule: str) -> LossWeights:
    return LossWeights(cycle_x=2.0, cycle_z=0.5, **({"r1": 0.7, "r2": 0.3} if rule == "penalised" else {}))


def smallest_norm(tensors: list[torch.Tensor]) -> float:
    """A ten-thousandth of the whole gradient: relativistic losses have a bias whose gradient is 0 but for rounding."""
    return 1e-4 * float(torch.cat([t.flatten() for t in tensors]).norm())


@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize(("loss", "rule"), EXACT_RULES)
def test_in_fp32_every_exact_rule_has_the_gradients_of_two_backward_passes(
    loss: str, rule: str, dropout: float
) -> None:
    ali = make_networks(dropout, device=CUDA)
    batch = make_inputs(device=CUDA)
    weights = weights_for(rule)
    gradients, _ = gradients_of_step(ali, rule, loss, weights, 5, batch)
    expected = gradients_of_two_backward_passes(ali, loss, weights, 5, batch)
    assert relative_error(gradients, expected, smallest_norm(expected)) < FP32_ROUNDING


@pytest.mark.parametrize("rule", ["scaled", "penalised", "coupled"])
def test_the_papers_layers_have_the_gradients_of_two_backward_passes(rule: str) -> None:
    """They have maxout, a per-pixel bias and the dropout of the tables, which the networks for digits lack."""
    ali = make_networks(None, cycle=False, name="cifar10", device=CUDA)
    batch = make_inputs("cifar10", CUDA)
    weights = LossWeights(r1=0.7, r2=0.3) if rule == "penalised" else LossWeights()
    gradients, _ = gradients_of_step(ali, rule, "nonsaturating", weights, 5, batch)
    expected = gradients_of_two_backward_passes(ali, "nonsaturating", weights, 5, batch)
    assert relative_error(gradients, expected, smallest_norm(expected)) < FP32_ROUNDING


def test_the_gpu_has_the_gradients_of_the_cpu() -> None:
    """The references of the tests above are computed on the GPU, too; this one is not."""
    gradients, _ = gradients_of_step(
        make_networks(device=CUDA), "scaled", "relativistic", LossWeights(), 5, make_inputs(device=CUDA)
    )
    expected = gradients_of_two_backward_passes(make_networks(), "relativistic", LossWeights(), 5, make_inputs())
    assert relative_error([t.cpu() for t in gradients], expected, smallest_norm(expected)) < 10 * FP32_ROUNDING


def half_precision_error(precision: str, rule: str, loss: str) -> float:
    """How far an update in half precision is from two backward passes in fp32, over all parameters."""
    batch = make_inputs(device=CUDA)
    gradients, _ = gradients_of_step(
        make_networks(cycle=False, device=CUDA), rule, loss, LossWeights(), 5, batch, precision=precision
    )
    reference = make_networks(cycle=False, device=CUDA)
    return total_error(gradients, gradients_of_two_backward_passes(reference, loss, LossWeights(), 5, batch))


@pytest.mark.parametrize("loss", OBJECTIVES)
def test_in_bf16_every_rule_is_as_close_to_fp32_as_two_backward_passes_are(loss: str) -> None:
    if not torch.cuda.is_bf16_supported(including_emulation=False):
        pytest.skip("this GPU does not compute in bf16")
    rounding = half_precision_error("bf16", "coupled", loss)
    assert 0 < rounding < 0.3
    for rule in ("scaled", "penalised"):
        if (loss, rule) in EXACT_RULES:
            assert half_precision_error("bf16", rule, loss) < 1.5 * rounding


@pytest.mark.parametrize("loss", OBJECTIVES)
@pytest.mark.parametrize("rule", ["coupled", "penalised"])
def test_in_fp16_the_loss_scale_is_taken_out_again(loss: str, rule: str) -> None:
    """The scale is 16,384; left in, or taken out for D or for the generators alone, it would not look like rounding."""
    assert 0 < half_precision_error("fp16", rule, loss) < 0.1


def test_an_overflow_in_fp16_skips_the_update_of_all_networks_or_of_none() -> None:
    ali = make_networks(cycle=False, device=CUDA)
    batch = make_inputs(device=CUDA)
    parameters = trained_parameters(ali)
    optimizer = torch.optim.Adam(parameters, lr=1e-2, fused=True)  # takes the scale as an argument of its kernel
    step = make_step(ali, "coupled", "nonsaturating", optimizer, precision=Precision("fp16", CUDA))
    before = [p.detach().clone() for p in parameters]
    handle = next(ali.discriminator.parameters()).register_hook(lambda grad: grad * float("inf"))
    step(TrainBatch(*batch), LossWeights())
    assert all(torch.equal(a, b) for a, b in zip(before, parameters, strict=True))
    handle.remove()
    step(TrainBatch(*batch), LossWeights())
    unmoved = [a.shape for a, b in zip(before, parameters, strict=True) if torch.equal(a, b)]
    assert not unmoved


@pytest.mark.parametrize("rule", ["scaled", "penalised", "coupled", "alternating"])
def test_three_updates_give_the_same_weights_each_time(rule: str) -> None:
    """An update depends on its inputs, its weights and its seed alone, bit for bit."""

    def weights_after_three_updates() -> dict[str, torch.Tensor]:
        ali = make_networks(0.3, device=CUDA)
        batch = make_inputs(device=CUDA)
        optimizer = torch.optim.Adam(trained_parameters(ali), lr=1e-3, fused=True)
        step = make_step(ali, rule, "nonsaturating", optimizer, precision=Precision("fp32", CUDA))
        for number in range(3):
            torch.manual_seed(number)
            step(TrainBatch(*batch), weights_for(rule))
        return copy_state(ali)

    first, second = weights_after_three_updates(), weights_after_three_updates()
    different = [name for name in first if not torch.equal(first[name], second[name])]
    assert not different


@pytest.fixture
def nccl(tmp_path: Path) -> Iterator[None]:
    """A process group of this process alone."""
    if not dist.is_nccl_available():
        pytest.skip("this torch is built without NCCL")
    torch.cuda.set_device(CUDA)
    dist.init_process_group("nccl", init_method=(tmp_path / "store").as_uri(), rank=0, world_size=1, device_id=CUDA)
    try:
        yield
    finally:
        dist.destroy_process_group()


@pytest.mark.usefixtures("nccl")
@pytest.mark.parametrize("rule", ["scaled", "penalised", "coupled"])
def test_wrapped_for_nccl_an_update_has_the_gradients_of_the_bare_one(rule: str) -> None:
    """The wrappers are those of several ranks and reduce over NCCL, here with one rank in the group."""
    weights = weights_for(rule)
    batch = make_inputs(device=CUDA)
    bare, _ = gradients_of_step(make_networks(0.3, device=CUDA), rule, "relativistic", weights, 5, batch)
    ali = make_networks(0.3, device=CUDA)
    # `World` decides on wrapping, and the group on what is averaged.
    wrapped_networks = wrap_for_ddp(ali, UPDATE_RULES[rule], CUDA, World(size=2))
    wrapped, _ = gradients_of_step(ali, rule, "relativistic", weights, 5, batch, networks=wrapped_networks)
    assert wrapped_networks is not ali
    assert relative_error(wrapped, bare, smallest_norm(bare)) < FP32_ROUNDING


def test_a_captured_augmentation_does_what_is_drawn_later() -> None:
    """Its forward pass draws nothing and waits for nothing; parameters lie where the graph reads them."""
    augmentation = Augmentation(AUGMENTATIONS, (-1.0, 1.0), 32)
    probability = torch.tensor(1.0, device=CUDA)
    draws = AugmentationDraws(augmentation, probability, seed=0, rows=slice(0, 8), global_batch_size=8, parts=2)
    x = torch.rand(8, 3, 32, 32, device=CUDA)
    draws.draw()
    first = augmentation((x, x))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = augmentation((x, x))
    draws.start_update(1)
    draws.draw()
    graph.replay()
    for found, expected, before in zip(captured, augmentation((x, x)), first, strict=True):
        assert torch.equal(found, expected)
        assert not torch.equal(found, before)
