"""The networks of a run with everything that updates them: built from a config, saved and restored as tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from ali_dist.config import Config
from ali_dist.data.index import Index
from ali_dist.errors import InputError
from ali_dist.model.ali import ALI, build_ali
from ali_dist.model.space import DataSpace
from ali_dist.model.tables import ARCHITECTURES, Architecture
from ali_dist.training.checkpoint import load_optimizer, optimizer_tensors
from ali_dist.training.distributed import World, wrap
from ali_dist.training.ema import Average
from ali_dist.training.precision import Precision
from ali_dist.training.step import Step, Weights, choose_way


def architecture(name: str) -> Architecture:
    """The layer tables called `name`.

    Raises:
        InputError: There are none.
    """
    if name not in ARCHITECTURES:
        raise InputError(f"model.architecture is {name!r}, but must be one of {', '.join(sorted(ARCHITECTURES))}.")
    return ARCHITECTURES[name]


def build_networks(config: Config, index: Index, seed: int) -> tuple[ALI, DataSpace]:
    """Freshly initialised networks for the data of `index`, on the CPU, and the space they work in.

    Raises:
        InputError: The architecture does not fit the data.
    """
    tables = architecture(config.model.architecture)
    size, wanted = tables.image_size, config.data.image_size
    if wanted is not None and wanted != size:
        raise InputError(
            f"data.image_size is {wanted}, but architecture {config.model.architecture!r} works at {size}: "
            "leave data.image_size out or choose another model.architecture."
        )
    kind = "points [D]" if size is None else "images [C, H, W]"
    if (len(index.shape) == 1) != (size is None):
        raise InputError(
            f"The data have samples of shape {list(index.shape)}, but architecture {config.model.architecture!r} "
            f"takes {kind}: choose another data.url or model.architecture."
        )
    if config.model.encoder == "implicit" and size is not None:
        raise InputError("model.encoder is 'implicit', which is for points: use 'gaussian' or 'deterministic'.")
    space = DataSpace.of(tables, tuple(index.shape))
    ali = build_ali(
        tables,
        space.model_shape,
        latent_size=config.model.latent_size,
        encoder=config.model.encoder,
        width=config.model.width,
        discriminator_dropout=config.model.discriminator_dropout,
        cycle_x=config.objective.cycle_x > 0,
        cycle_z=config.objective.cycle_z > 0,
        cycle_samples=config.objective.cycle_samples > 0,
        native=space.native_from_unit,
        seed=seed,
    )
    if config.model.output_bias_from_data:
        _start_at_mean(ali, space, index)
    return ali, space


@torch.no_grad()
def _start_at_mean(ali: ALI, space: DataSpace, index: Index) -> None:
    """Set the decoder's output bias to the logit of the data's per-pixel mean. Source: the authors' code."""
    last = [m for m in ali.decoder.modules() if getattr(m, "bias", None) is not None][-1]
    if not any(isinstance(m, nn.Sigmoid) for m in ali.decoder.modules()):
        raise InputError(
            "model.output_bias_from_data is true, which needs a decoder that ends in a sigmoid: set it to false."
        )
    mean = space.unit_from_stored(torch.tensor(index.pixel_mean).view(1, *index.shape)).clamp(1e-7, 1 - 1e-7)
    bias = last.bias
    assert isinstance(bias, Tensor)
    bias.copy_(torch.logit(mean)[0] if bias.dim() > 1 else torch.logit(mean.mean((0, 2, 3))))


@dataclass(frozen=True, slots=True)
class Players:
    """The game's state on this rank."""

    ali: ALI
    space: DataSpace
    average: Average | None
    optimizer: torch.optim.Optimizer
    precision: Precision
    step: Step

    @classmethod
    def build(cls, config: Config, index: Index, device: torch.device, world: World) -> Players:
        """Networks, optimiser and update for one rank; identical on every rank. Collective.

        Raises:
            InputError: Model, objective, precision and data do not go together.
        """
        objective, optim, scale = config.objective, config.optim, config.scale
        precision = Precision(scale.precision, device)
        ali, space = build_networks(config, index, config.run.seed)
        penalised = objective.r1 > 0 or objective.r2 > 0
        way = choose_way(
            objective.update,
            objective.loss,
            couples_samples=architecture(config.model.architecture).couples_samples,
            penalised=penalised,
            precision=precision.name,
        )
        ali.fp32_discriminator = penalised and precision.name == "fp16"
        ali.to(device)
        average = Average(ali) if optim.ema_half_life else None
        optimizer = torch.optim.Adam(
            [
                {"params": ali.generator_parameters(), "lr": optim.lr_g},
                {"params": ali.discriminator_parameters(), "lr": optim.lr_d},
            ],
            betas=(optim.beta1, optim.beta2),
            eps=optim.eps,
            # Exact only for gradients with their parameters' strides, which .backward() makes; never set .grad by hand.
            fused=True,
        )
        step = Step(
            way,
            objective.loss,
            ali,
            wrap(_compiled(ali, way, penalised) if scale.compile else ali, way, device, world),
            optimizer,
            precision,
            global_batch_size=config.data.global_batch_size,
            world_size=world.size,
        )
        return cls(ali, space, average, optimizer, precision, step)

    def set_learning_rates(self, lr_g: float, lr_d: float) -> None:
        """Rates of the next update."""
        for group, rate in zip(self.optimizer.param_groups, (lr_g, lr_d), strict=True):
            group["lr"] = rate

    def generators(self) -> tuple[nn.Module, nn.Module]:
        """Encoder and decoder to judge: the averages if there are any."""
        source = self.average or self.ali
        return source.encoder, source.decoder

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """Everything a checkpoint holds as tensors, by file; still on the device."""
        parts = {
            "model": dict(self.ali.state_dict()),
            "optimizer": optimizer_tensors(self.optimizer, dict(self.ali.named_parameters())),
        }
        if self.average is not None:
            parts["ema"] = dict(self.average.state_dict())
        return parts

    def restore(self, tensors: Mapping[str, Mapping[str, Tensor]], precision: dict[str, float]) -> None:
        """Inverse of `tensors`."""
        self.ali.load_state_dict(dict(tensors["model"]))
        load_optimizer(self.optimizer, dict(self.ali.named_parameters()), tensors["optimizer"])
        if self.average is not None:
            self.average.load_state_dict(dict(tensors.get("ema") or self._fresh_average()))
        self.precision.load_state_dict(precision)

    def _fresh_average(self) -> dict[str, Tensor]:
        return {n: t for n, t in self.ali.state_dict().items() if not n.startswith("discriminator.")}


def _compiled(ali: ALI, way: str, penalised: bool) -> ALI:
    """The same parameters with the networks compiled; the boundary between them stays eager.

    So does D where its graph is used twice (coupled) or differentiated twice (a penalty): compiled code cannot be.
    """
    plain_d = penalised or way in ("penalised", "coupled")
    discriminator = ali.discriminator if plain_d else cast("nn.Module", torch.compile(ali.discriminator))
    encoder, decoder = (cast("nn.Module", torch.compile(part)) for part in (ali.encoder, ali.decoder))
    return ali.with_networks(encoder, decoder, discriminator)


def weights_at(config: Config, step: int, factor: float) -> Weights:
    """Factors of the update's terms: penalties times `factor`, taken every k-th update at k times their weight."""
    objective = config.objective
    due = factor * objective.penalty_every if step % objective.penalty_every == 0 else 0.0
    return Weights(
        r1=objective.r1 * due,
        r2=objective.r2 * due,
        cycle_x=objective.cycle_x,
        cycle_z=objective.cycle_z,
        cycle_samples=objective.cycle_samples,
    )
