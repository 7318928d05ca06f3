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
    """Make a CPU generator for one purpose, so that one metric's draws do not shift another's.

    Seed and purpose are hashed into 32 bits because torch's CPU generator ignores all higher bits of its seed.
    """
    return torch.Generator().manual_seed(zlib.crc32(f"{purpose} {seed}".encode()))


def in_batches(
    function: Callable[..., Tensor],
    x: Tensor,
    device: torch.device | str,
    result_name: str,
    c: Tensor | None = None,
    on_batch: Callable[[int], None] | None = None,
) -> Tensor:
    """Apply `function` to `x` [N, ...], at most `BATCH` rows at a time.

    Args:
        function: Called with a batch on `device`, under `torch.inference_mode`.
        x: Samples, on the CPU.
        device: Where the function works.
        result_name: What the error calls the result.
        c: Conditions [N, A]; the function gets those of its rows as a second argument.
        on_batch: Called after each batch with its number of rows; may raise to end the work.

    Returns:
        The results [N, ...] on the CPU in float32.

    Raises:
        FloatingPointError: A result is not finite.
    """
    results = torch.empty(0)
    start = 0
    with torch.inference_mode():
        for rows in torch.arange(len(x)).split(BATCH):  # one empty batch where there are no samples
            given = [x[start : start + len(rows)].to(device)]
            if c is not None:
                given.append(c[start : start + len(rows)].to(device))
            batch = function(*given).float().cpu()
            if start == 0:  # filled in place: a list of batches and their concatenation would hold everything twice
                results = torch.empty(len(x), *batch.shape[1:])
            results[start : start + len(rows)] = batch
            if not bool(batch.isfinite().all()):
                raise FloatingPointError(
                    f"The {result_name} holds NaN or infinity: the model has diverged, or its input is bad."
                )
            start += len(rows)
            if on_batch is not None:
                on_batch(len(rows))
    return results


def conditions_from_labels(model: BidirectionalModel, y: Tensor | None) -> Tensor | None:
    """Turn labels `y` (int64 [N] or float32 [N, A]) into the conditions [N, A] that `model` takes; None if none."""
    if not model.condition_size:
        return None
    assert y is not None, "a conditional model needs labelled data"
    return condition_vectors(y, model.condition_size)


def decode_batched(model: BidirectionalModel, z: Tensor, device: torch.device | str, c: Tensor | None = None) -> Tensor:
    """Decode `z` [N, n_z] (under conditions `c` [N, A]) to G(z) [N, ...], on the CPU."""
    return in_batches(model.decode, z, device, "decoder's output", c)


def sample_decoder(
    model: BidirectionalModel, count: int, seed: int, device: torch.device | str, c: Tensor | None = None
) -> Tensor:
    """Draw `count` decoder samples G(z), z ~ N(0, I), on the CPU; for a conditional model under `c` [count, A]."""
    z = torch.randn(count, model.latent_size, generator=make_generator(seed, "prior"))
    return decode_batched(model, z, device, c)


def draw_rows(pool: Tensor, count: int, seed: int) -> Tensor:
    """Draw `count` rows of `pool` [N, ...] with replacement."""
    return pool[torch.randint(len(pool), (count,), generator=make_generator(seed, "conditions"))]


def encode_mean(model: BidirectionalModel, x: Tensor, device: torch.device | str, c: Tensor | None = None) -> Tensor:
    """Encode `x` [N, ...] (under conditions `c` [N, A]) to mu [N, n_z] of q(z|x), on the CPU."""
    return in_batches(lambda *batch: model.encode(*batch)[0], x, device, "encoder's mean", c)


def encode_batched(
    model: BidirectionalModel, x: Tensor, seed: int, device: torch.device | str, c: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Encode `x` [N, ...] (under conditions `c` [N, A]).

    Returns:
        mu, sigma and one sample z_hat ~ q(z|x), each [N, n_z] on the CPU; sigma is 0 for a deterministic encoder.
    """

    def encode_mean_and_sigma(*batch: Tensor) -> Tensor:
        mu, log_sigma = model.encode(*batch)
        sigma = torch.zeros_like(mu) if log_sigma is None else log_sigma.exp()
        return torch.cat([mu, sigma], dim=1)

    mu, sigma = in_batches(encode_mean_and_sigma, x, device, "encoder's mean or sigma", c).chunk(2, dim=1)
    epsilon = torch.randn(mu.shape, generator=make_generator(seed, "posterior"))
    return mu, sigma, mu + sigma * epsilon
