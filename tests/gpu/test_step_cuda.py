"""The update on a GPU: the gradients of two plain backward passes, in every precision, with and without NCCL.

Run: `make test ARGS=tests/gpu`; needs a CUDA device.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from ali_dist.distributed import World
from ali_dist.model.losses import OBJECTIVES
from ali_dist.training.ddp import wrap_for_ddp
from ali_dist.training.precision import Precision
from ali_dist.training.step import LossWeights, Step, TrainBatch
from ali_dist.training.update_rules import UPDATE_RULES
from tests.helpers.networks import (
    BATCH,
    EXACT,
    inputs,
    networks,
    relative_error,
    state_of,
    step_gradients,
    total_error,
    two_backward_passes,
)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device here"),
]
CUDA = torch.device("cuda", 0)
# fp32 sums run in another order in each kernel, and cuDNN takes other kernels for other passes; a wrong factor is 1e-2.
FP32 = 5e-5


@pytest.fixture(autouse=True)
def _real_fp32() -> Iterator[None]:
    """Kernels that compute fp32 in fp32 (no TF32) and the same way each time."""
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
        yield


def weights_for(way: str) -> LossWeights:
    return LossWeights(cycle_x=2.0, cycle_z=0.5, **({"r1": 0.7, "r2": 0.3} if way == "penalised" else {}))


def floor(tensors: list[torch.Tensor]) -> float:
    """A ten-thousandth of the whole gradient: relativistic losses have a bias whose gradient is 0 but for rounding."""
    return 1e-4 * float(torch.cat([t.flatten() for t in tensors]).norm())


@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize(("loss", "way"), EXACT)
def test_in_fp32_every_exact_way_has_the_gradients_of_two_backward_passes(loss: str, way: str, dropout: float) -> None:
    ali, batch, weights = networks(dropout, device=CUDA), inputs(device=CUDA), weights_for(way)
    mine, _ = step_gradients(ali, way, loss, weights, 5, batch)
    theirs = two_backward_passes(ali, loss, weights, 5, batch)
    assert relative_error(mine, theirs, floor(theirs)) < FP32


@pytest.mark.parametrize("way", ["scaled", "penalised", "coupled"])
def test_the_papers_layers_have_the_gradients_of_two_backward_passes(way: str) -> None:
    """Maxout, per-pixel bias and the tables' own dropout, which digits lack."""
    ali, batch = networks(None, cycle=False, name="cifar10", device=CUDA), inputs("cifar10", CUDA)
    weights = LossWeights(r1=0.7, r2=0.3) if way == "penalised" else LossWeights()
    mine, _ = step_gradients(ali, way, "nonsaturating", weights, 5, batch)
    theirs = two_backward_passes(ali, "nonsaturating", weights, 5, batch)
    assert relative_error(mine, theirs, floor(theirs)) < FP32


def test_the_gpu_has_the_gradients_of_the_cpu() -> None:
    """The reference above runs on the GPU, too; this one does not."""
    mine, _ = step_gradients(networks(device=CUDA), "scaled", "relativistic", LossWeights(), 5, inputs(device=CUDA))
    theirs = two_backward_passes(networks(), "relativistic", LossWeights(), 5, inputs())
    assert relative_error([t.cpu() for t in mine], theirs, floor(theirs)) < 10 * FP32


def half_error(precision: str, way: str, loss: str) -> float:
    """How far one half-precision update is from fp32's two backward passes, over all parameters."""
    batch = inputs(device=CUDA)
    mine, _ = step_gradients(
        networks(cycle=False, device=CUDA), way, loss, LossWeights(), 5, batch, precision=precision
    )
    return total_error(mine, two_backward_passes(networks(cycle=False, device=CUDA), loss, LossWeights(), 5, batch))


@pytest.mark.parametrize("loss", OBJECTIVES)
def test_in_bf16_every_way_is_as_close_to_fp32_as_two_backward_passes_are(loss: str) -> None:
    if not torch.cuda.is_bf16_supported(including_emulation=False):
        pytest.skip("this GPU does not compute in bf16")
    rounding = half_error("bf16", "coupled", loss)
    assert 0 < rounding < 0.3
    for way in ("scaled", "penalised"):
        if (loss, way) in EXACT:
            assert half_error("bf16", way, loss) < 1.5 * rounding


@pytest.mark.parametrize("loss", OBJECTIVES)
@pytest.mark.parametrize("way", ["coupled", "penalised"])
def test_in_fp16_the_loss_scale_is_taken_out_again(loss: str, way: str) -> None:
    """The scale is 16,384: left in, or taken out of one player only, it is no rounding error."""
    assert 0 < half_error("fp16", way, loss) < 0.1


def test_fp16_overflow_skips_both_players_or_neither() -> None:
    ali, batch, precision = networks(cycle=False, device=CUDA), inputs(device=CUDA), Precision("fp16", CUDA)
    parameters = [*ali.generator_parameters(), *ali.discriminator_parameters()]
    optimizer = torch.optim.Adam(parameters, lr=1e-2, fused=True)  # takes the scale as an argument of its kernel
    step = Step(UPDATE_RULES["coupled"], "nonsaturating", ali, ali, optimizer, precision, global_batch_size=BATCH)
    before = [p.detach().clone() for p in parameters]
    handle = next(ali.discriminator.parameters()).register_hook(lambda grad: grad * float("inf"))
    step(TrainBatch(*batch), LossWeights())
    assert all(torch.equal(a, b) for a, b in zip(before, parameters, strict=True))
    handle.remove()
    step(TrainBatch(*batch), LossWeights())
    unmoved = [a.shape for a, b in zip(before, parameters, strict=True) if torch.equal(a, b)]
    assert not unmoved


@pytest.mark.parametrize("way", ["scaled", "penalised", "coupled", "alternating"])
def test_weights_after_three_updates_are_those_of_another_run(way: str) -> None:
    """Nothing in an update depends on anything but its inputs, weights and seed: bit for bit."""

    def after_three() -> dict[str, torch.Tensor]:
        ali, batch = networks(0.3, device=CUDA), inputs(device=CUDA)
        parameters = [*ali.generator_parameters(), *ali.discriminator_parameters()]
        optimizer = torch.optim.Adam(parameters, lr=1e-3, fused=True)
        step = Step(
            UPDATE_RULES[way], "nonsaturating", ali, ali, optimizer, Precision("fp32", CUDA), global_batch_size=BATCH
        )
        for number in range(3):
            torch.manual_seed(number)
            step(TrainBatch(*batch), weights_for(way))
        return state_of(ali)

    first, second = after_three(), after_three()
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
@pytest.mark.parametrize("way", ["scaled", "penalised", "coupled"])
def test_wrapped_for_nccl_an_update_has_the_gradients_of_the_bare_one(way: str) -> None:
    """The wrappers of several ranks, reducing over NCCL, here with one rank in the group."""
    weights, batch = weights_for(way), inputs(device=CUDA)
    bare, _ = step_gradients(networks(0.3, device=CUDA), way, "relativistic", weights, 5, batch)
    ali = networks(0.3, device=CUDA)
    players = wrap_for_ddp(
        ali, UPDATE_RULES[way], CUDA, World(size=2)
    )  # `World` decides on wrapping, the group on what is averaged
    wrapped, _ = step_gradients(ali, way, "relativistic", weights, 5, batch, players=players)
    assert players is not ali
    assert relative_error(wrapped, bare, floor(bare)) < FP32
