"""Encoder, decoder and joint discriminator, built from the layer tables.

B: batch, n_z: latent size. z is [B, n_z] at every interface; inside convolutional stacks it is [B, n_z, 1, 1].
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn

from ali_dist.model.layers import BatchNorm, FourierFeatures, FullConvTranspose, Shape, build_layer
from ali_dist.model.tables import OUTPUT, Architecture, Table


def _latent_shape(tables: Architecture, latent_size: int) -> Shape:
    """Shape of z inside the stacks: one pixel of n_z channels where the data are images."""
    return (latent_size,) if tables.image_size is None else (latent_size, 1, 1)


class Stack(nn.Module):
    """The layers of one table in order.

    Args:
        table: The rows.
        shape: Input shape without the batch axis.
        tables: Settings common to all layers.
        out: Channels for the row marked OUTPUT.
        width: Factor on all other rows' channels.
    """

    def __init__(self, table: Table, shape: Shape, tables: Architecture, *, out: int, width: float) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for row in table:
            pieces = row.pieces if row.act == "maxout" else 1
            channels = out if row.out == OUTPUT else max(1, round(row.out * width / pieces)) * pieces
            layer, shape = build_layer(row, shape, channels, tables)
            layers.append(layer)
        self.layers = nn.Sequential(*layers)
        self.out_shape = shape

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)

    def of_parts(self, parts: tuple[Tensor, ...]) -> Tensor:
        """Output for the rows of all parts, one above the other.

        The first layer takes each part by itself where that is the same (no batch norm), so that no gradient is
        computed for the pixels of a part that needs none: a tenth of the whole update with the CIFAR10 networks.
        """
        if not len(self.layers) or any(isinstance(m, BatchNorm) for m in self.layers[0].modules()):
            return self.layers(torch.cat(parts))
        return self.layers[1:](torch.cat([self.layers[0](part) for part in parts]))

    def hidden(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Output, and the outputs of all layers before it."""
        outputs = []
        for layer in self.layers:
            x = layer(x)
            outputs.append(x)
        return x, outputs[:-1]


class Encoder(nn.Module):
    """q(z|x). Gaussian: mu + sigma * epsilon; the stack's last layer gives mu and log sigma (not log variance).

    Source: arXiv 1606.00704, section 2.1 (reparametrisation); BiGAN (arXiv 1605.09782) for the deterministic one;
    the implicit one takes epsilon beside x at its input, as the authors' code does for 2-D mixtures.
    """

    def __init__(self, tables: Architecture, x_shape: Shape, latent_size: int, kind: str, width: float) -> None:
        super().__init__()
        self.kind, self.latent_size = kind, latent_size
        if kind == "implicit":
            if len(x_shape) != 1:
                raise ValueError("an implicit encoder takes points, not images")
            x_shape = (x_shape[0] + latent_size,)
        out = 2 * latent_size if kind == "gaussian" else latent_size
        self.stack = Stack(tables.encoder, x_shape, tables, out=out, width=width)

    def forward(self, x: Tensor, epsilon: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """x [B, ...], epsilon [B, n_z] -> z_hat, mu, log sigma (None unless Gaussian), each [B, n_z]."""
        if self.kind == "implicit":
            z_hat = self.stack(torch.cat([x, epsilon], dim=1))
            return z_hat, z_hat, None
        out = self.stack(x).flatten(1)
        if self.kind == "deterministic":
            return out, out, None
        mu, log_sigma = out.float().chunk(2, dim=1)
        return mu + log_sigma.exp() * epsilon, mu, log_sigma

    def features(self, x: Tensor) -> Tensor:
        """[B, F]: mu beside the flattened outputs of the last hidden layer. Source: section 4.3, in small."""
        if self.kind == "implicit":
            x = torch.cat([x, x.new_zeros(len(x), self.latent_size)], dim=1)
        out, hidden = self.stack.hidden(x)
        return torch.cat([out.flatten(1)[:, : self.latent_size], hidden[-1].flatten(1)], dim=1)


class Decoder(nn.Module):
    """p(x|z), deterministic: z [B, n_z] -> x_tilde [B, ...] in the model's pixel range."""

    def __init__(self, tables: Architecture, x_shape: Shape, latent_size: int, width: float) -> None:
        super().__init__()
        self.z_shape = _latent_shape(tables, latent_size)
        self.stack = Stack(tables.decoder, self.z_shape, tables, out=x_shape[0], width=width)
        if self.stack.out_shape != x_shape:
            raise ValueError(f"the decoder's table makes {self.stack.out_shape}, but the data are {x_shape}")

    def forward(self, z: Tensor) -> Tensor:
        return self.stack(z.view(-1, *self.z_shape)).float()


class Discriminator(nn.Module):
    """D(x, z) as a logit [B]: D_xz(D_x(x), D_z(z)). An empty table is the identity."""

    def __init__(self, tables: Architecture, x_shape: Shape, latent_size: int, width: float) -> None:
        super().__init__()
        self.z_shape = _latent_shape(tables, latent_size)
        self.fourier = FourierFeatures(*tables.fourier) if tables.fourier else nn.Identity()
        if tables.fourier:
            x_shape = (x_shape[0] * (1 + 2 * tables.fourier[1]),)
        self.d_x = Stack(tables.d_x, x_shape, tables, out=1, width=width)
        self.d_z = Stack(tables.d_z, self.z_shape, tables, out=1, width=width)
        if self.d_x.out_shape[1:] != self.d_z.out_shape[1:]:
            raise ValueError(f"D_x ends at {self.d_x.out_shape} and D_z at {self.d_z.out_shape}: sides must agree")
        joint = (self.d_x.out_shape[0] + self.d_z.out_shape[0], *self.d_x.out_shape[1:])
        self.d_xz = Stack(tables.d_xz, joint, tables, out=1, width=width)

    def forward(self, x: Tensor | tuple[Tensor, ...], z: Tensor) -> Tensor:
        """x [N, ...], or parts of it to be taken one above the other, and z [N, n_z]; logits [N]."""
        parts = x if isinstance(x, tuple) else (x,)
        h_x = self.d_x.of_parts(tuple(self.fourier(part) for part in parts))
        return self.d_xz(torch.cat([h_x, self.d_z(z.view(-1, *self.z_shape))], dim=1)).flatten()


def with_dropout(tables: Architecture, dropout: float | None) -> Architecture:
    """The same tables with `dropout` on every discriminator layer's input; None leaves them as they are."""
    if dropout is None:
        return tables

    def set_all(table: Table) -> Table:
        return tuple(dataclasses.replace(row, dropout=dropout) for row in table)

    return dataclasses.replace(tables, d_x=set_all(tables.d_x), d_z=set_all(tables.d_z), d_xz=set_all(tables.d_xz))


def _fan_in(layer: nn.Conv2d | nn.ConvTranspose2d | nn.Linear) -> float:
    """Input values that one output value sums over."""
    if isinstance(layer, FullConvTranspose):
        return layer.in_channels
    if isinstance(layer, nn.ConvTranspose2d):
        return layer.in_channels * max(1.0, (layer.kernel_size[0] / layer.stride[0]) ** 2)
    return layer.weight[0].numel()


def initialise(module: nn.Module, tables: Architecture) -> None:
    """Weights as the tables say, biases 0, batch norm at identity. Uses torch's global generator."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            gain = 2.0 / (1 + tables.slope**2)
            nn.init.normal_(layer.weight, 0.0, tables.init_std or (gain / _fan_in(layer)) ** 0.5)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
