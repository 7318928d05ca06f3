"""Calling a model for evaluation: in batches, without gradients, with noise that depends on a seed alone.

Data stays on the CPU; each batch travels to the device and its result back. Noise is drawn on the CPU, so the same
seed gives the same samples on every device. Torch's global generators are never used.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable

import torch
from torch import Tensor

from ali_dist.evaluation.interfaces import BidirectionalModel
from ali_dist.model.data_space import condition_vectors

BATCH = 500


def make_generator(seed: int, purpose: str) -> torch.Generator:
    """A CPU generator of its own for each purpose, so that one metric's draws do not shift another's.

    Seed and purpose are hashed into 32 bits because torch's CPU generator ignores all higher bits of its seed.
    """
    return torch.Generator().manual_seed(zlib.crc32(f"{purpose} {seed}".encode()))


def in_batches(
    function: Callable[..., Tensor], x: Tensor, device: torch.device | str, what: str, c: Tensor | None = None
) -> Tensor:
    """`function` over `x` [N, ...], at most `BATCH` rows at a time; the results [N, ...] on the CPU in float32.

    With conditions `c` [N, A] the function gets those of its rows as a second argument.

    Raises:
        FloatingPointError: a result is not finite; `what` names it.
    """
    with torch.inference_mode():
        if c is None:
            parts = [function(part.to(device)).float().cpu() for part in x.split(BATCH)]
        else:
            pairs = zip(x.split(BATCH), c.split(BATCH), strict=True)
            parts = [function(part.to(device), given.to(device)).float().cpu() for part, given in pairs]
        result = torch.cat(parts)
        if not bool(result.isfinite().all()):
            raise FloatingPointError(f"The {what} holds NaN or infinity: the model has diverged, or its input is bad.")
    return result


def conditions_from_labels(model: BidirectionalModel, y: Tensor | None) -> Tensor | None:
    """What `model` takes as conditions [N, A] for labels `y` (int64 [N] or float32 [N, A]); None if it takes none."""
    if not model.condition_size:
        return None
    assert y is not None, "a conditional model needs labelled data"
    return condition_vectors(y, model.condition_size)


def decode_batched(model: BidirectionalModel, z: Tensor, device: torch.device | str, c: Tensor | None = None) -> Tensor:
    """G(z) of `z` [N, n_z] (under conditions `c`), on the CPU."""
    return in_batches(model.decode, z, device, "decoder's output", c)


def sample_decoder(
    model: BidirectionalModel, count: int, seed: int, device: torch.device | str, c: Tensor | None = None
) -> Tensor:
    """`count` decoder samples G(z), z ~ N(0, I), on the CPU; for a conditional model under `c` [count, A]."""
    z = torch.randn(count, model.latent_size, generator=make_generator(seed, "prior"))
    return decode_batched(model, z, device, c)


def draw_rows(pool: Tensor, count: int, seed: int) -> Tensor:
    """`count` rows of `pool` [N, ...], drawn with replacement."""
    return pool[torch.randint(len(pool), (count,), generator=make_generator(seed, "conditions"))]


def encode_mean(model: BidirectionalModel, x: Tensor, device: torch.device | str, c: Tensor | None = None) -> Tensor:
    """mu [N, n_z] of q(z|x), on the CPU."""
    return in_batches(lambda *part: model.encode(*part)[0], x, device, "encoder's mean", c)


def encode_batched(
    model: BidirectionalModel, x: Tensor, seed: int, device: torch.device | str, c: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """The encoder's view of `x` [N, ...] (under conditions `c`).

    Returns:
        mu, sigma and one sample z ~ q(z|x), each [N, n_z] on the CPU; sigma is 0 for a deterministic encoder.
    """

    def mean_and_sigma(*part: Tensor) -> Tensor:
        mu, log_sigma = model.encode(*part)
        sigma = torch.zeros_like(mu) if log_sigma is None else log_sigma.exp()
        return torch.cat([mu, sigma], dim=1)

    mu, sigma = in_batches(mean_and_sigma, x, device, "encoder's mean or sigma", c).chunk(2, dim=1)
    epsilon = torch.randn(mu.shape, generator=make_generator(seed, "posterior"))
    return mu, sigma, mu + sigma * epsilon
