"""A trained encoder and decoder as users see them: [0, 1] images or points in, the same out."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ali_dist.model.networks import Encoder
from ali_dist.model.space import DataSpace


class Trained:
    """Encoder and decoder in evaluation mode, working on unit-range data.

    Args:
        encoder: q(z|x).
        decoder: p(x|z).
        space: The ranges they work in.
        latent_size: n_z.
        fresh: Makes untrained networks of the same kind from a seed: (encoder, decoder).
    """

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        space: DataSpace,
        latent_size: int,
        fresh: Callable[[int], tuple[nn.Module, nn.Module]],
    ) -> None:
        assert isinstance(encoder, Encoder)
        self._encoder, self._decoder = encoder.eval(), decoder.eval()
        self._space, self._fresh = space, fresh
        self.latent_size = latent_size

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """mu and log sigma, [N, n_z] each, of x [N, C, H, W] in [0, 1] or points [N, D].

        An encoder without a closed form (`implicit`) gives one sample for each x and None; the draws are always the
        same. A deterministic one gives z and None.
        """
        noise = torch.zeros(len(x), self.latent_size)
        if self._encoder.kind == "implicit":
            noise = torch.randn(noise.shape, generator=torch.Generator().manual_seed(0))
        _, mu, log_sigma = self._encoder(self._space.model_from_unit(x), noise.to(x.device))
        return mu, log_sigma

    def features(self, x: Tensor) -> Tensor:
        """[N, F]: mu and the encoder's last hidden layer."""
        return self._encoder.features(self._space.model_from_unit(x))

    def decode(self, z: Tensor) -> Tensor:
        """x in [0, 1] (or points) for z [N, n_z]."""
        return self._space.unit_from_model(self._decoder(z))

    def untrained(self, seed: int) -> Trained:
        """The same architecture with fresh weights."""
        device = next(self._encoder.parameters()).device
        encoder, decoder = (module.to(device) for module in self._fresh(seed))
        return Trained(encoder, decoder, self._space, self.latent_size, self._fresh)
