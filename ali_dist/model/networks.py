"""Encoder, decoder and joint discriminator, built from the layer tables of an architecture.

B: batch, n_z: latent size, n_emb: size of a condition's embedding e. z is [B, n_z] at every interface; inside
convolutional stacks it is [B, n_z, 1, 1].
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from ali_dist.model.architectures.schema import OUTPUT, Architecture, LayerTable
from ali_dist.model.batch_norm import BatchNorm
from ali_dist.model.layers import FourierFeatures, FullConvTranspose, ResidualBlock, Shape, build_layer


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkSizes:
    """What the layer tables leave open."""

    latent: int  # n_z
    width: float = 1.0  # factor on hidden channels
    condition: int = 0  # A, numbers in a condition; 0: unconditional
    embedding_size: int = 256  # n_emb of a condition
    classes: int = 0  # K of a discriminator with K + 1 classes; 0: one logit
    unary: bool = False  # D scores x alone and z alone, too
    packing: int = 1  # pairs that D sees together
    sees_z: bool = True  # False: a plain GAN's D(x)

    @property
    def embedding(self) -> int:
        """Channels that a condition's embedding adds where it joins a network."""
        return self.embedding_size if self.condition else 0


def _latent_shape(architecture: Architecture, latent_size: int) -> Shape:
    """Shape of z inside the stacks: one pixel of n_z channels where the data are images."""
    return (latent_size,) if architecture.image_size is None else (latent_size, 1, 1)


class LayerStack(nn.Module):
    """The layers of one table in order.

    Args:
        table: The rows.
        shape: Input shape without the batch axis.
        architecture: Settings common to all layers.
        out: Channels for the row marked OUTPUT.
        width: Factor on all other rows' channels.
        joined: Channels that join the input of the last layer, see `forward`.
    """

    def __init__(
        self, table: LayerTable, shape: Shape, architecture: Architecture, *, out: int, width: float, joined: int = 0
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for number, row in enumerate(table, 1):
            pieces = row.pieces if row.act == "maxout" else 1
            channels = out if row.out == OUTPUT else max(1, round(row.out * width / pieces)) * pieces
            if joined and number == len(table):
                shape = (shape[0] + joined, *shape[1:])
            layer, shape = build_layer(row, shape, channels, architecture)
            layers.append(layer)
        self.layers = nn.Sequential(*layers)
        self.out_shape = shape

    def forward(self, x: Tensor, joined: Tensor | None = None) -> Tensor:
        """Output for x; `joined` is put beside what the last layer takes."""
        if joined is None:
            return self.layers(x)
        h = self.layers[:-1](x)
        return self.layers[-1](torch.cat([h, joined.view(*joined.shape, *[1] * (h.dim() - 2))], dim=1))

    def of_parts(self, parts: tuple[Tensor, ...]) -> Tensor:
        """Output for the rows of all parts, one above the other.

        The first layer takes each part by itself where that is the same (no batch norm), so that no gradient is
        computed for the pixels of a part that needs none: a tenth of the whole update with the CIFAR10 networks.
        """
        if not len(self.layers) or any(isinstance(m, BatchNorm) for m in self.layers[0].modules()):
            return self.layers(torch.cat(parts))
        return self.layers[1:](torch.cat([self.layers[0](part) for part in parts]))

    def hidden(self, x: Tensor, count: int, *, before_activation: bool = False) -> list[Tensor]:
        """Outputs of the last `count` layers before the last one, in order.

        Args:
            x: Input.
            count: Of layers; fewer where the table has fewer.
            before_activation: Take what the activation is given (after batch norm) instead.
        """
        outputs = []
        for layer in cast("Iterable[nn.Sequential]", self.layers[:-1]):
            inner = layer[:-1](x) if before_activation else None
            x = layer(x)
            outputs.append(x if inner is None else inner)
        return outputs[max(0, len(outputs) - count) :]


class Encoder(nn.Module):
    """q(z|x). Gaussian: mu + sigma * epsilon; the stack's last layer gives mu and log sigma (not log variance).

    A condition's embedding e joins the input of the last layer, as in the authors' code, so that mu and log sigma are
    affine in it.

    Source: arXiv 1606.00704, section 2 (reparametrization); BiGAN (arXiv 1605.09782) for the deterministic one;
    the implicit one takes epsilon beside x at its input, as the authors' code does for 2-D mixtures.
    """

    def __init__(self, architecture: Architecture, x_shape: Shape, sizes: NetworkSizes, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.latent_size = sizes.latent
        if kind == "implicit":
            if len(x_shape) != 1:
                raise ValueError("an implicit encoder takes points, not images")
            x_shape = (x_shape[0] + sizes.latent,)
        out = 2 * sizes.latent if kind == "gaussian" else sizes.latent
        self.stack = LayerStack(
            architecture.encoder, x_shape, architecture, out=out, width=sizes.width, joined=sizes.embedding
        )

    def forward(self, x: Tensor, epsilon: Tensor, e: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor | None]:
        """x [B, ...], epsilon [B, n_z], e [B, n_emb] -> z_hat, mu, log sigma (None unless Gaussian), each [B, n_z]."""
        if self.kind == "implicit":
            z_hat = self.stack(torch.cat([x, epsilon], dim=1), e)
            return z_hat, z_hat, None
        out = self.stack(x, e).flatten(1)
        if self.kind == "deterministic":
            return out, out, None
        mu, log_sigma = out.float().chunk(2, dim=1)
        return mu + log_sigma.exp() * epsilon, mu, log_sigma

    def hidden(self, x: Tensor, count: int, *, before_activation: bool = False) -> list[Tensor]:
        """Outputs of the last `count` hidden layers, [B, ...] each; see `LayerStack.hidden`."""
        if self.kind == "implicit":
            x = torch.cat([x, x.new_zeros(len(x), self.latent_size)], dim=1)
        return self.stack.hidden(x, count, before_activation=before_activation)


class Decoder(nn.Module):
    """p(x|z), deterministic: z [B, n_z] -> x_tilde [B, ...] in the model's pixel range; e [B, n_emb] joins z."""

    def __init__(self, architecture: Architecture, x_shape: Shape, sizes: NetworkSizes) -> None:
        super().__init__()
        self.z_shape = _latent_shape(architecture, sizes.latent + sizes.embedding)
        self.stack = LayerStack(architecture.decoder, self.z_shape, architecture, out=x_shape[0], width=sizes.width)
        if self.stack.out_shape != x_shape:
            raise ValueError(f"the decoder's table makes {self.stack.out_shape}, but the data are {x_shape}")

    def forward(self, z: Tensor, e: Tensor | None = None) -> Tensor:
        z = z if e is None else torch.cat([z, e], dim=1)
        return self.stack(z.view(-1, *self.z_shape)).float()


class DiscriminatorOutput(NamedTuple):
    """What D says of R pairs (or packs of pairs)."""

    d: Tensor  # [R] logit of being an encoder pair
    classes: Tensor | None  # [R, K] class logits; d is their logsumexp
    unary: Tensor | None  # [R, 2] logits of x alone and of z alone


class Discriminator(nn.Module):
    """D(x, z): D_xz(D_x(x), D_z(z)). An empty table is the identity.

    Args:
        architecture: Layer tables.
        x_shape: Shape of one sample.
        sizes: See `NetworkSizes`. With `packing` m, m adjacent rows are scored together, their channels side by side
            (PacGAN, arXiv 1712.04086). With K classes, the class logits replace the one logit: the logit of the
            K+1-th class, "decoder pair", is fixed at 0, so that d = logsumexp (Salimans et al., arXiv 1606.03498).
            `unary` adds linear heads on D_x(x) and D_z(z) (BigBiGAN, arXiv 1907.02544).
    """

    def __init__(self, architecture: Architecture, x_shape: Shape, sizes: NetworkSizes) -> None:
        super().__init__()
        self.packing = sizes.packing
        self.num_classes = sizes.classes
        self.fourier = FourierFeatures(*architecture.fourier) if architecture.fourier else nn.Identity()
        if architecture.fourier:
            x_shape = (x_shape[0] * (1 + 2 * architecture.fourier[1]),)
        x_shape = (x_shape[0] * sizes.packing, *x_shape[1:])
        self.z_shape = _latent_shape(architecture, sizes.latent * sizes.packing)
        self.d_x = LayerStack(architecture.d_x, x_shape, architecture, out=1, width=sizes.width)
        self.d_z = (
            LayerStack(architecture.d_z, self.z_shape, architecture, out=1, width=sizes.width) if sizes.sees_z else None
        )
        joint = self.d_x.out_shape[0] + sizes.embedding * sizes.packing
        if self.d_z is not None:
            if self.d_x.out_shape[1:] != self.d_z.out_shape[1:]:
                raise ValueError(f"D_x ends at {self.d_x.out_shape} and D_z at {self.d_z.out_shape}: sides must agree")
            joint += self.d_z.out_shape[0]
        out = sizes.classes or 1
        self.d_xz = LayerStack(
            architecture.d_xz, (joint, *self.d_x.out_shape[1:]), architecture, out=out, width=sizes.width
        )
        self.unary_x = nn.Linear(math.prod(self.d_x.out_shape), 1) if sizes.unary else None
        self.unary_z = nn.Linear(math.prod(self.d_z.out_shape), 1) if sizes.unary and self.d_z is not None else None

    def forward(self, x: tuple[Tensor, ...], z: Tensor | None, e: Tensor | None = None) -> DiscriminatorOutput:
        """Score pairs.

        Args:
            x: Parts of [N, ...] to be taken one above the other.
            z: [N, n_z]; None for a D that sees x alone.
            e: [N, n_emb] embedding of the condition, if there is one.
        """
        h, h_x, h_z = self._joint(x, z, e)
        out = self.d_xz(h).float().flatten(1)
        unary = None
        if self.unary_x is not None and self.unary_z is not None and h_z is not None:
            unary = torch.cat([self.unary_x(h_x.flatten(1)), self.unary_z(h_z.flatten(1))], dim=1).float()
        if self.num_classes:
            return DiscriminatorOutput(out.logsumexp(1), out, unary)
        return DiscriminatorOutput(out[:, 0], None, unary)

    def features(self, x: Tensor, z: Tensor | None, e: Tensor | None = None) -> Tensor:
        """[N, F]: output of the last hidden layer of D_xz."""
        return self.d_xz.hidden(self._joint((x,), z, e)[0], 1)[0].flatten(1)

    def _joint(self, x: tuple[Tensor, ...], z: Tensor | None, e: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        """Input of D_xz, and the parts of it that D_x and D_z made."""
        h_x = self.d_x.of_parts(tuple(self._pack(self.fourier(part)) for part in x))
        beside = h_x.shape[2:]
        h_z = None if self.d_z is None or z is None else self.d_z(z.reshape(-1, *self.z_shape))
        parts = [h_x] if h_z is None else [h_x, h_z]
        if e is not None:
            packed = self._pack(e)
            parts.append(packed.view(*packed.shape, *[1] * len(beside)))
        return (torch.cat(parts, dim=1) if len(parts) > 1 else h_x), h_x, h_z

    def _pack(self, x: Tensor) -> Tensor:
        """[N, C, ...] -> [N / m, m C, ...]: adjacent rows side by side."""
        return x if self.packing == 1 else x.reshape(-1, self.packing * x.shape[1], *x.shape[2:])


def with_dropout(architecture: Architecture, dropout: float | None) -> Architecture:
    """The same tables with `dropout` on every discriminator layer's input; None leaves them as they are."""
    if dropout is None:
        return architecture

    def set_all(table: LayerTable) -> LayerTable:
        return tuple(dataclasses.replace(row, dropout=dropout) for row in table)

    return dataclasses.replace(
        architecture, d_x=set_all(architecture.d_x), d_z=set_all(architecture.d_z), d_xz=set_all(architecture.d_xz)
    )


def _fan_in(layer: nn.Conv2d | nn.ConvTranspose2d | nn.Linear) -> float:
    """Input values that one output value sums over."""
    if isinstance(layer, FullConvTranspose):
        return layer.in_channels
    if isinstance(layer, nn.ConvTranspose2d):
        return layer.in_channels * max(1.0, (layer.kernel_size[0] / layer.stride[0]) ** 2)
    return layer.weight[0].numel()


def initialize_weights(module: nn.Module, architecture: Architecture) -> None:
    """Weights as the tables say, biases 0, batch norm at identity. Uses torch's global generator."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            gain = 2.0 / (1 + architecture.slope**2)
            nn.init.normal_(layer.weight, 0.0, architecture.init_std or (gain / _fan_in(layer)) ** 0.5)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    for layer in module.modules():
        if isinstance(layer, ResidualBlock):
            layer.start_at_shortcut()
