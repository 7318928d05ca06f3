"""The networks of a run with everything that updates them: built from a config, saved and restored as tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from ali_dist.config import Config
from ali_dist.data.shards.index import Index
from ali_dist.distributed import World
from ali_dist.model.ali import ALI
from ali_dist.model.build import build_networks, find_architecture, start_output_bias_at_mean
from ali_dist.model.data_space import DataSpace
from ali_dist.runs.checkpoint import load_optimizer, optimizer_tensors
from ali_dist.training.ddp import wrap_for_ddp
from ali_dist.training.ema import WeightAverage
from ali_dist.training.precision import Precision
from ali_dist.training.pretrained_decoder import load_frozen_decoder
from ali_dist.training.step import LossWeights, Step
from ali_dist.training.update_rules import choose_way


@dataclass(frozen=True, slots=True)
class TrainState:
    """The game's state on this rank."""

    ali: ALI
    space: DataSpace
    average: WeightAverage | None
    optimizer: torch.optim.Optimizer
    precision: Precision
    step: Step

    @classmethod
    def build(cls, config: Config, index: Index, device: torch.device, world: World) -> TrainState:
        """Networks, optimiser and update for one rank; identical on every rank. Collective.

        Raises:
            InputError: Model, objective, precision and data do not go together.
        """
        objective, optim, scale = config.objective, config.optim, config.scale
        precision = Precision(scale.precision, device)
        ali, space = build_networks(config, index.spec, config.run.seed)
        if config.model.output_bias_from_data:
            start_output_bias_at_mean(ali, space, index.pixel_mean)
        if config.model.decoder_from is not None:
            load_frozen_decoder(ali, config)
        penalised = objective.r1 > 0 or objective.r2 > 0
        couples = find_architecture(config.model.architecture).couples_samples
        way = choose_way(objective, couples_samples=couples, precision=precision.name)
        ali.fp32_discriminator = penalised and precision.name == "fp16"
        ali.to(device)
        average = WeightAverage(ali, discriminator=objective.supervised > 0) if optim.ema_half_life else None
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
            wrap_for_ddp(_compile_networks(ali, way, penalised) if scale.compile else ali, way, device, world),
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


def _compile_networks(ali: ALI, way: str, penalised: bool) -> ALI:
    """The same parameters with the networks compiled; the boundary between them stays eager.

    So does D where its graph is used twice (coupled) or differentiated twice (a penalty): compiled code cannot be.
    """
    plain_d = penalised or way in ("penalised", "coupled")
    discriminator = ali.discriminator if plain_d else cast("nn.Module", torch.compile(ali.discriminator))
    encoder, decoder = (cast("nn.Module", torch.compile(part)) for part in (ali.encoder, ali.decoder))
    return ali.with_networks(encoder, decoder, discriminator, ali.embedding)


def loss_weights_at(config: Config, step: int, factor: float) -> LossWeights:
    """Factors of the update's terms: penalties times `factor`, taken every k-th update at k times their weight."""
    objective = config.objective
    due = factor * objective.penalty_every if step % objective.penalty_every == 0 else 0.0
    return LossWeights(
        r1=objective.r1 * due,
        r2=objective.r2 * due,
        cycle_x=objective.cycle_x,
        cycle_z=objective.cycle_z,
        cycle_samples=objective.cycle_samples,
        supervised=objective.supervised,
        entropy=objective.entropy,
        balance=objective.balance,
    )
