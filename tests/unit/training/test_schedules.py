"""Schedules and averages follow from the images seen, and noise from the seed and the step.

Run: `make test ARGS=tests/unit/training/test_schedules.py`
"""

from typing import Literal

import pytest
import torch

from ali_dist.config import OptimConfig
from ali_dist.model.architectures import ARCHITECTURES
from ali_dist.model.build import build_ali
from ali_dist.model.networks import NetworkSizes
from ali_dist.training import schedules
from ali_dist.training.ema import WeightAverage
from ali_dist.training.randomness import NoiseSource
from ali_dist.training.schedules import adam_epsilon

CPU = torch.device("cpu")


@pytest.mark.parametrize("batch", [7, 64, 250])
def test_an_event_is_due_equally_often_at_every_batch_size(batch):
    steps = range(0, 10_000 // batch)
    due = [schedules.is_due(1_000, step * batch, (step + 1) * batch) for step in steps]
    assert sum(due) == len(steps) * batch // 1_000


def test_an_interval_of_zero_is_never_due():
    assert not any(schedules.is_due(0, n, n + 100) for n in range(0, 1000, 100))


def test_the_cosine_schedule_holds_until_half_time_and_ends_at_zero():
    optim = OptimConfig(schedule="cosine")
    rates = [schedules.learning_rate_factor(optim, 10, n, 1000) for n in range(0, 1001, 50)]
    assert rates[:10] == [1.0] * 10
    assert rates[15] == pytest.approx(0.5)
    assert rates[-1] == pytest.approx(0.0)
    assert rates == sorted(rates, reverse=True)


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_learning_rates_rise_in_a_line_and_are_never_0(schedule: Literal["constant", "cosine"]) -> None:
    optim = OptimConfig(schedule=schedule, warmup=100)
    rates = [schedules.learning_rate_factor(optim, 25, n, 1000) for n in range(0, 200, 25)]
    assert rates == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 1.0, 1.0]
    assert schedules.learning_rate_factor(OptimConfig(schedule=schedule), 25, 0, 1000) == 1.0


def test_the_penalty_falls_from_half_time_to_its_final_share():
    assert schedules.penalty_factor(0.1, 500, 1000) == 1.0
    assert schedules.penalty_factor(0.1, 750, 1000) == pytest.approx(0.1**0.5)
    assert schedules.penalty_factor(0.1, 1000, 1000) == pytest.approx(0.1)
    assert schedules.penalty_factor(1.0, 1000, 1000) == 1.0


def test_an_average_forgets_half_in_its_half_life_at_every_batch_size():
    for batch_size in (10, 100):
        share_kept = 1.0
        for step in range(1000 // batch_size):
            share_kept *= schedules.ema_decay(1000, batch_size, 10**9 + step * batch_size)
        assert share_kept == pytest.approx(0.5)


def test_an_early_average_forgets_the_initial_weights():
    assert schedules.ema_decay(10_000, 64, 64) < 0.01


def test_an_average_moves_towards_weights_and_statistics_by_one_minus_its_decay():
    ali = build_ali(ARCHITECTURES["digits"], (1, 16, 16), NetworkSizes(latent=2, width=0.1))
    average = WeightAverage(ali)
    with torch.no_grad():
        for tensor in (*ali.parameters(), *ali.buffers()):
            tensor.add_(1)
    before = {name: t.clone() for name, t in average.state_dict().items()}
    average.update(0.75)
    for name, t in average.state_dict().items():
        if t.is_floating_point():
            torch.testing.assert_close(t - before[name], torch.full_like(t, 0.25))


def test_ranks_have_slices_of_the_same_noise():
    whole = NoiseSource(3, 12, 5, slice(0, 12), CPU).at_step(7)
    parts = [NoiseSource(3, 12, 5, rows, CPU).at_step(7) for rows in (slice(0, 5), slice(5, 12))]
    for k in range(2):
        assert torch.equal(whole[k], torch.cat([part[k] for part in parts]))


def test_z_differs_from_epsilon_and_between_steps_and_seeds():
    noise = NoiseSource(3, 12, 5, slice(0, 12), CPU)
    z, epsilon = noise.at_step(7)
    z_again, _ = noise.at_step(7)
    assert torch.equal(z, z_again)
    z_of_next_step, _ = noise.at_step(8)
    z_of_other_seed, _ = NoiseSource(4, 12, 5, slice(0, 12), CPU).at_step(7)
    assert not any(torch.equal(z, other) for other in (epsilon, z_of_next_step, z_of_other_seed))


def test_noise_is_standard_normal():
    z = torch.cat([NoiseSource(0, 500, 20, slice(0, 500), CPU).at_step(step)[0] for step in range(20)])
    assert abs(z.mean().item()) < 0.01
    assert z.std().item() == pytest.approx(1.0, abs=0.01)


def blocks_steps(gradients: list[torch.Tensor], optim: OptimConfig) -> list[torch.Tensor]:
    """Steps of the authors' library, by hand: epsilon is added to the moment as it stands, and the rate corrected."""
    mean = variance = torch.zeros_like(gradients[0])
    steps = []
    for t, gradient in enumerate(gradients, 1):
        mean = (1 - optim.beta1) * gradient + optim.beta1 * mean
        variance = (1 - optim.beta2) * gradient * gradient + optim.beta2 * variance
        rate = optim.lr_d * (1 - optim.beta2**t) ** 0.5 / (1 - optim.beta1**t)
        steps.append(rate * mean / (variance**0.5 + optim.eps))
    return steps


@pytest.mark.parametrize("size", [1e-9, 1e-7, 1e-2])
@pytest.mark.parametrize("beta1", [0.5, 0.2])
def test_epsilon_inside_takes_the_steps_of_the_authors_library(size, beta1):
    """In float64, over 300 updates, with gradients below, about and above epsilon."""
    optim = OptimConfig(beta1=beta1, eps_inside=True)
    g = torch.Generator().manual_seed(0)
    gradients = [size * torch.randn(50, generator=g, dtype=torch.float64) for _ in range(300)]
    p = torch.nn.Parameter(torch.zeros(50, dtype=torch.float64))
    adam = torch.optim.Adam([p], lr=optim.lr_d, betas=(optim.beta1, optim.beta2), eps=optim.eps, fused=True)
    for update, (gradient, expected) in enumerate(zip(gradients, blocks_steps(gradients, optim), strict=True), 1):
        with torch.no_grad():
            p.zero_()
        p.grad = gradient.clone()
        adam.param_groups[0]["eps"] = adam_epsilon(optim, update)
        adam.step()
        torch.testing.assert_close(-p.detach(), expected, rtol=1e-10, atol=0)


def test_epsilon_beside_is_the_one_that_was_set():
    assert {adam_epsilon(OptimConfig(eps=3e-8), update) for update in (1, 2, 10_000)} == {3e-8}
    inside = [adam_epsilon(OptimConfig(eps_inside=True), update) for update in (1, 100, 100_000)]
    assert inside[0] == pytest.approx(3.162e-7, rel=1e-3)
    assert inside == sorted(inside, reverse=True)
    assert inside[2] == pytest.approx(1e-8)
