"""How latents and D's logits are spread over a few images: what histograms of a run show. Legend in `model/ali.py`."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ali_dist.model.ali import ALI
from ali_dist.training.network_modes import evaluation_mode


@torch.no_grad()
def measure_distributions(
    ali: ALI, game: str, x: Tensor, z: Tensor, epsilon: Tensor, c: Tensor | None
) -> dict[str, NDArray[np.float32]]:
    """Finite values [n] by name: `mu` and `sigma` of all latents, and the logits `d_q` and `d_p`, where there are any.

    Args:
        ali: The networks as they are trained; D has not seen the averaged ones.
        game: `objective.game`.
        x: Images in the model's range, on the networks' device.
        z: Prior latents, as many.
        epsilon: Noise of the encoder, as many.
        c: Conditions, as many, for a conditional model.
    """
    with evaluation_mode(ali):
        e = None if ali.embedding is None or c is None else ali.embedding(c)
        found: dict[str, Tensor] = {}
        if game != "gan":
            z_hat, mu, log_sigma = ali.encoder(x, epsilon, e)
            found["mu"] = mu
            if log_sigma is not None:
                found["sigma"] = log_sigma.float().exp()
        if game == "ali":
            found["d_q"] = ali.discriminator((x,), z_hat, e).d
            found["d_p"] = ali.discriminator((ali.decoder(z, e),), z, e).d
        elif game == "gan":
            found["d_q"] = ali.discriminator((x,), None, e).d
            found["d_p"] = ali.discriminator((ali.decoder(z, e),), None, e).d
    arrays = {name: values.float().cpu().numpy().ravel() for name, values in found.items()}
    finite = {name: values[np.isfinite(values)] for name, values in arrays.items()}
    return {name: values for name, values in finite.items() if len(values)}
