"""Trained networks as users see them: [0, 1] images or points in, the same out."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ali_dist.model.data_space import DataSpace
from ali_dist.model.networks import Discriminator, Encoder


class InferenceModel:
    """The networks in evaluation mode, working on unit-range data.

    N: samples; c [N, A]: their conditions, for a conditional model (class as one-hot vector, or attributes).

    Args:
        networks: `encoder`, `decoder`, `discriminator`, and `embedding` for a conditional model.
        space: The ranges they work in.
        fresh: Makes untrained networks of the same kind from a seed.

    Attributes:
        networks: The networks by name.
    """

    def __init__(
        self, networks: dict[str, nn.Module], space: DataSpace, fresh: Callable[[int], dict[str, nn.Module]]
    ) -> None:
        encoder = networks["encoder"].eval()
        discriminator = networks["discriminator"].eval()
        assert isinstance(encoder, Encoder)
        assert isinstance(discriminator, Discriminator)
        self.networks = networks
        self._encoder = encoder
        self._decoder = networks["decoder"].eval()
        self._discriminator = discriminator
        self._embedding = networks.get("embedding")
        self._space = space
        self._fresh = fresh
        self.latent_size = encoder.latent_size
        self.condition_size = 0
        if self._embedding is not None:
            assert isinstance(self._embedding, nn.Linear)
            self.condition_size = self._embedding.in_features
        self.num_classes = discriminator.num_classes

    def encode(self, x: Tensor, c: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """mu and log sigma, [N, n_z] each, of x [N, C, H, W] in [0, 1] or points [N, D].

        An encoder without a closed form (`implicit`) gives one sample for each x and None; the draws are always the
        same. A deterministic one gives z and None.
        """
        noise = torch.zeros(x.shape[0], self.latent_size)  # len(x) would be a constant of exported graphs
        if self._encoder.kind == "implicit":
            noise = torch.randn(noise.shape, generator=torch.Generator().manual_seed(0))
        _, mu, log_sigma = self._encoder(self._space.model_from_unit(x), noise.to(x.device), self._embed(c))
        return mu, log_sigma

    def features(self, x: Tensor, c: Tensor | None = None) -> Tensor:
        """[N, F]: mu beside the output of the encoder's last hidden layer."""
        last = self._encoder.hidden(self._space.model_from_unit(x), 1)
        return torch.cat([self.encode(x, c)[0], *(h.flatten(1) for h in last)], dim=1)

    def hidden(self, x: Tensor, layers: int = 3, c: Tensor | None = None) -> list[Tensor]:
        """What the activations of the encoder's last `layers` hidden layers are given, [N, ...] each, in order.

        Beside mu these are the features of the paper's SVM (arXiv 1606.00704, section 4.3, as in the authors' code).
        None of them depends on the condition.
        """
        del c
        return self._encoder.hidden(self._space.model_from_unit(x), layers, before_activation=True)

    def decode(self, z: Tensor, c: Tensor | None = None) -> Tensor:
        """x in [0, 1] (or points) for z [N, n_z]."""
        return self._space.unit_from_model(self._decoder(z, self._embed(c)))

    def score(self, x: Tensor, z: Tensor, c: Tensor | None = None) -> Tensor:
        """Logit [N] of each pair (x, z) being an encoder pair; for packs, each pair is packed with itself."""
        return self._discriminator(
            (self._discriminator_x(x),), self._discriminator_z(z), self._packed(self._embed(c))
        ).d

    def joint_features(self, x: Tensor, z: Tensor, c: Tensor | None = None) -> Tensor:
        """[N, F]: output of D's last hidden layer for pairs (x, z)."""
        return self._discriminator.features(
            self._discriminator_x(x), self._discriminator_z(z), self._packed(self._embed(c))
        )

    def classify(self, x: Tensor, c: Tensor | None = None) -> Tensor:
        """Class logits [N, K] of x at z = mu, by a discriminator with K + 1 classes."""
        if not self.num_classes:
            raise ValueError("this discriminator has no classes: train it with objective.supervised")
        z = self.encode(x, c)[0]
        classes = self._discriminator((self._space.model_from_unit(x),), z, self._embed(c)).classes
        assert classes is not None
        return classes

    def untrained(self, seed: int) -> InferenceModel:
        """The same architecture with fresh weights."""
        device = next(self._encoder.parameters()).device
        fresh = {name: module.to(device) for name, module in self._fresh(seed).items()}
        return InferenceModel(fresh, self._space, self._fresh)

    def _embed(self, c: Tensor | None) -> Tensor | None:
        if self._embedding is None:
            if c is not None:
                raise ValueError("this model is not conditional: it takes no condition c")
            return None
        if c is None:
            raise ValueError("this model is conditional: it needs c")
        return self._embedding(c)

    def _discriminator_x(self, x: Tensor) -> Tensor:
        packed = self._packed(self._space.model_from_unit(x))
        assert packed is not None
        return packed

    def _discriminator_z(self, z: Tensor) -> Tensor | None:
        return None if self._discriminator.d_z is None else self._packed(z)

    def _packed(self, x: Tensor | None) -> Tensor | None:
        packing = self._discriminator.packing
        return x if x is None or packing == 1 else x.repeat_interleave(packing, dim=0)
