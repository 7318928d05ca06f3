"""Calling a model for evaluation: in batches, without gradients, with noise that depends on a seed alone.

Data stays on the CPU; each batch travels to the device and its result back. Noise is drawn on the CPU, so the same
seed gives the same samples on every device. Torch's global generators are never used.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable

import torch
from torch import Tensor

from ali_dist.evaluation.protocol import Bidirectional

BATCH = 500


def generator(seed: int, purpose: str) -> torch.Generator:
    """A CPU generator of its own for each purpose, so that one metric's draws do not shift another's.

    Seed and purpose are hashed into 32 bits because torch's CPU generator ignores all higher bits of its seed.
    """
    return torch.Generator().manual_seed(zlib.crc32(f"{purpose} {seed}".encode()))


def in_batches(function: Callable[[Tensor], Tensor], x: Tensor, device: torch.device | str, what: str) -> Tensor:
    """`function` over `x` [N, ...], at most `BATCH` rows at a time; the results [N, ...] on the CPU in float32.

    Raises:
        FloatingPointError: a result is not finite; `what` names it.
    """
    with torch.inference_mode():
        parts = [function(part.to(device)).float().cpu() for part in x.split(BATCH)]
        result = torch.cat(parts)
        if not bool(result.isfinite().all()):
            raise FloatingPointError(f"The {what} holds NaN or infinity: the model has diverged, or its input is bad.")
    return result


def decode(model: Bidirectional, z: Tensor, device: torch.device | str) -> Tensor:
    """G(z) of `z` [N, n_z], on the CPU."""
    return in_batches(model.decode, z, device, "decoder's output")


def sample_decoder(model: Bidirectional, count: int, seed: int, device: torch.device | str) -> Tensor:
    """`count` decoder samples G(z), z ~ N(0, I), on the CPU."""
    z = torch.randn(count, model.latent_size, generator=generator(seed, "prior"))
    return decode(model, z, device)


def encode_mean(model: Bidirectional, x: Tensor, device: torch.device | str) -> Tensor:
    """mu [N, n_z] of q(z|x), on the CPU."""
    return in_batches(lambda part: model.encode(part)[0], x, device, "encoder's mean")


def encode(model: Bidirectional, x: Tensor, seed: int, device: torch.device | str) -> tuple[Tensor, Tensor, Tensor]:
    """The encoder's view of `x` [N, ...].

    Returns:
        mu, sigma and one sample z ~ q(z|x), each [N, n_z] on the CPU; sigma is 0 for a deterministic encoder.
    """

    def mean_and_sigma(part: Tensor) -> Tensor:
        mu, log_sigma = model.encode(part)
        sigma = torch.zeros_like(mu) if log_sigma is None else log_sigma.exp()
        return torch.cat([mu, sigma], dim=1)

    mu, sigma = in_batches(mean_and_sigma, x, device, "encoder's mean or sigma").chunk(2, dim=1)
    epsilon = torch.randn(mu.shape, generator=generator(seed, "posterior"))
    return mu, sigma, mu + sigma * epsilon
