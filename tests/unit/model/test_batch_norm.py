"""Batch norm over the rows of all ranks: torch's own where there is one rank, and for one rank the same numbers.

With several processes: `tests/distributed/test_ranks.py`. Run: `make test ARGS=tests/unit/model/test_batch_norm.py`
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ali_dist.model.batch_norm import BatchNorm1d, BatchNorm2d

KINDS = {"points": (BatchNorm1d, nn.BatchNorm1d, (6, 5)), "images": (BatchNorm2d, nn.BatchNorm2d, (6, 5, 3, 2))}


def pair_of_norms(kind: str) -> tuple[Any, nn.Module, Tensor]:
    """Ours over all of one rank, torch's with the same weights, and an input far from mean 0 and variance 1."""
    ours_class, theirs_class, shape = KINDS[kind]
    ours = ours_class(5, eps=1e-4, momentum=0.05)
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        ours.weight.copy_(torch.randn(5, generator=g))
        ours.bias.copy_(torch.randn(5, generator=g))
    theirs = theirs_class(5, eps=1e-4, momentum=0.05)
    theirs.load_state_dict(ours.state_dict())
    ours.sum_over_ranks = torch.clone  # of one rank
    return ours, theirs, 100 + 3 * torch.randn(shape, generator=g)


def outcome(norm: nn.Module, x: Tensor) -> list[Tensor]:
    """Output, gradients and buffers after one pass in both directions."""
    norm.zero_grad()
    x = x.clone().requires_grad_()
    y = norm(x)
    (y.float() * torch.arange(y.numel()).view(y.shape).cos()).sum().backward()
    gradients = [p.grad for p in norm.parameters() if p.grad is not None]
    assert x.grad is not None
    return [y.detach(), x.grad, *gradients, *(b.clone() for b in norm.buffers())]


@pytest.mark.parametrize("kind", KINDS)
def test_over_one_rank_it_is_torchs_batch_norm(kind):
    ours, theirs, x = pair_of_norms(kind)
    for _ in range(2):  # running statistics move from where they are
        for mine, expected in zip(outcome(ours, x), outcome(theirs, x), strict=True):
            torch.testing.assert_close(mine, expected, rtol=1e-5, atol=2e-5)


@pytest.mark.filterwarnings("ignore:Input #0 requires gradient")  # statistics are fp32
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_ours_are_the_derivatives_of_its_output(kind):
    ours, _, x = pair_of_norms(kind)
    x = (x - 100).requires_grad_()

    def normed(x: Tensor) -> Tensor:
        fresh = copy.deepcopy(ours)
        return fresh(x)

    assert torch.autograd.gradcheck(normed, x, eps=1e-2, atol=2e-3, rtol=2e-2, nondet_tol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_under_autocast_statistics_are_fp32_and_output_stays_half(kind):
    ours, theirs, x = pair_of_norms(kind)
    x = (x - 100).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mine, expected = outcome(ours, x), outcome(theirs, x)
    assert mine[0].dtype == mine[1].dtype == torch.bfloat16
    for a, b in zip(mine, expected, strict=True):
        torch.testing.assert_close(a.float(), b.float(), rtol=2e-2, atol=2e-2)
    torch.testing.assert_close(mine[-3], x.float().transpose(0, 1).flatten(1).mean(1) * 0.05, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_in_evaluation_and_without_ranks_it_is_torchs_own(kind):
    ours, theirs, x = pair_of_norms(kind)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert torch.equal(ours.eval()(x), theirs.eval()(x))
    ours.sum_over_ranks = None
    for mine, expected in zip(outcome(ours.train(), x), outcome(theirs.train(), x), strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-5, atol=1e-5)


def test_statistics_of_images_far_from_zero_are_exact():
    """Their sum of squares in fp32 would have lost the variance."""
    x = 1000 + torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    norm = BatchNorm2d(3, momentum=1.0)
    norm(x)
    values = x.double().transpose(0, 1).flatten(1)
    torch.testing.assert_close(norm.running_mean, values.mean(1).float(), rtol=1e-6, atol=0)
    torch.testing.assert_close(norm.running_var, values.var(1).float(), rtol=1e-4, atol=0)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_every_layout_of_images_gives_the_same(layout):
    x = torch.randn(6, 5, 4, 4, generator=torch.Generator().manual_seed(0))
    expected, mine = nn.BatchNorm2d(5)(x), BatchNorm2d(5)(x.contiguous(memory_format=layout))
    torch.testing.assert_close(mine, expected, rtol=1e-5, atol=1e-5)
