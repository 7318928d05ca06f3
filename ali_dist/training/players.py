"""The networks of a run with everything that updates them: built from a config, saved and restored as tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, cast

import torch
from torch import Tensor, nn

from ali_dist.config import Config, ObjectiveConfig
from ali_dist.data.index import Index
from ali_dist.errors import InputError
from ali_dist.model.ali import ALI, Game, build_ali
from ali_dist.model.networks import Sizes
from ali_dist.model.space import DataSpace
from ali_dist.model.tables import ARCHITECTURES, Architecture
from ali_dist.training.checkpoint import load_optimizer, optimizer_tensors
from ali_dist.training.distributed import World, wrap
from ali_dist.training.ema import Average
from ali_dist.training.posthoc import take_decoder
from ali_dist.training.precision import Precision
from ali_dist.training.step import Step, Weights
from ali_dist.training.ways import choose_way


class Form(Protocol):
    """What networks must know of data; an `Index` says it, and so does a checkpoint."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of a stored sample."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, or empty."""

    @property
    def attributes(self) -> tuple[str, ...]:
        """Names of the attributes, or empty."""


def architecture(name: str) -> Architecture:
    """The layer tables called `name`.

    Raises:
        InputError: There are none.
    """
    if name not in ARCHITECTURES:
        raise InputError(f"model.architecture is {name!r}, but must be one of {', '.join(sorted(ARCHITECTURES))}.")
    return ARCHITECTURES[name]


def network_sizes(config: Config, classes: int, attributes: int) -> Sizes:
    """What the config and the data's labels make of the tables.

    Args:
        config: Of the run.
        classes: Number of the data's classes; 0 without.
        attributes: Number of the data's attributes; 0 without.

    Raises:
        InputError: The config needs labels that the data do not have.
    """
    model, objective = config.model, config.objective
    there = {"none": 0, "classes": classes, "attributes": attributes}
    if model.condition != "none" and not there[model.condition]:
        other = "classes" if attributes == 0 else "attributes"
        have = f"has {there[other]} {other}: use {other!r}" if there[other] else "has no labels: use 'none'"
        raise InputError(
            f"model.condition is {model.condition!r}, but the data at {config.data.url} {have}, or give data with "
            f"{model.condition}."
        )
    if objective.supervised and classes < 2:
        raise InputError(
            f"objective.supervised is {objective.supervised:g}, which makes D a classifier, but the data at "
            f"{config.data.url} has no class labels: set it to 0, or give data with classes."
        )
    return Sizes(
        latent=model.latent_size,
        width=model.width,
        condition=there[model.condition],
        embedding_size=model.embedding_size,
        classes=classes if objective.supervised else 0,
        unary=objective.unary,
        packing=objective.packing,
        sees_z=objective.game == "ali",
    )


def game_of(objective: ObjectiveConfig) -> Game:
    """Who plays, and which cycles are taken."""
    return Game(
        kind=objective.game,
        cycle_x=objective.cycle_x > 0,
        cycle_z=objective.cycle_z > 0,
        cycle_samples=objective.cycle_samples > 0,
    )


def build_networks(config: Config, index: Form, seed: int) -> tuple[ALI, DataSpace]:
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
    sides = tuple(index.shape[1:])
    if size is not None and wanted is None and len(sides) == 2 and sides != (size, size):
        raise InputError(
            f"The data have images of {sides[0]}x{sides[1]}, but architecture {config.model.architecture!r} works at "
            f"{size}x{size}: set data.image_size to {size} to have them resized, or choose another data.url or "
            "model.architecture."
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
        network_sizes(config, len(index.classes), len(index.attributes)),
        encoder=config.model.encoder,
        discriminator_dropout=config.model.discriminator_dropout,
        game=game_of(config.objective),
        native=space.native_from_unit,
        seed=seed,
    )
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
        if config.model.output_bias_from_data:
            _start_at_mean(ali, space, index)
        if config.model.decoder_from is not None:
            take_decoder(ali, config)
        penalised = objective.r1 > 0 or objective.r2 > 0
        couples = architecture(config.model.architecture).couples_samples
        way = choose_way(objective, couples_samples=couples, precision=precision.name)
        ali.fp32_discriminator = penalised and precision.name == "fp16"
        ali.to(device)
        average = Average(ali, discriminator=objective.supervised > 0) if optim.ema_half_life else None
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
            packing=objective.packing,
        )
        return cls(ali, space, average, optimizer, precision, step)

    def set_learning_rates(self, lr_g: float, lr_d: float) -> None:
        """Rates of the next update."""
        for group, rate in zip(self.optimizer.param_groups, (lr_g, lr_d), strict=True):
            group["lr"] = rate

    def judged(self) -> dict[str, nn.Module]:
        """The networks to judge, by name: averages where there are any."""
        return dict(self.ali.named_children()) | dict(self.average.named_children() if self.average else ())

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
        assert self.average is not None
        return {n: t for n, t in self.ali.state_dict().items() if n.partition(".")[0] in self.average.names}


def _compiled(ali: ALI, way: str, penalised: bool) -> ALI:
    """The same parameters with the networks compiled; the boundary between them stays eager.

    So does D where its graph is used twice (coupled) or differentiated twice (a penalty): compiled code cannot be.
    """
    plain_d = penalised or way in ("penalised", "coupled")
    discriminator = ali.discriminator if plain_d else cast("nn.Module", torch.compile(ali.discriminator))
    encoder, decoder = (cast("nn.Module", torch.compile(part)) for part in (ali.encoder, ali.decoder))
    return ali.with_networks(encoder, decoder, discriminator, ali.embedding)


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
        supervised=objective.supervised,
        entropy=objective.entropy,
        balance=objective.balance,
    )
