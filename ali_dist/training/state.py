"""The networks of a run with everything that updates them: built from a config, saved and restored as tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn

from ali_dist.config import Config
from ali_dist.data.shards.index import Index
from ali_dist.distributed import World
from ali_dist.errors import InputError
from ali_dist.model.ali import ALI
from ali_dist.model.augmentation import Augmentation
from ali_dist.model.batch_norm import BatchNorm, keep_out_of_compiled_graphs
from ali_dist.model.build import build_networks, find_architecture, start_output_bias_at_mean
from ali_dist.model.data_space import DataSpace
from ali_dist.model.layers import Dropout, FullConv, FullConvTranspose
from ali_dist.runs.checkpoint_tensors import (
    UnusableCheckpoint,
    check_optimizer,
    check_shapes,
    find_non_finite,
    load_optimizer,
    optimizer_tensors,
)
from ali_dist.training.adaptive_augmentation import AugmentationProbability
from ali_dist.training.captured_update import CapturedUpdates, why_not_captured
from ali_dist.training.ddp import pause_reduction, share_batch_norm, wrap_for_ddp
from ali_dist.training.ema import WeightAverage
from ali_dist.training.optimizer import make_optimizer
from ali_dist.training.precision import Precision
from ali_dist.training.pretrained_decoder import load_frozen_decoder
from ali_dist.training.randomness import AugmentationDraws, DropoutMasks
from ali_dist.training.step import LossWeights, Step, StepResult, TrainBatch
from ali_dist.training.train_batches import rows_of_rank
from ali_dist.training.update_rules import Situation, UpdateRule, choose_update_rule


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainState:
    """All that learns on this rank, and how it moves.

    Attributes:
        ali: The networks, unwrapped, on the device.
        space: The ranges of stored, [0, 1] and model values.
        average: Averaged copies of the generators; None where the run keeps no average.
        optimizer: One Adam with a parameter group for theta_g and one for theta_d, in this order.
        precision: What is cast and scaled.
        step: One update.
        augmentation: The probability of what is done to the images that D sees; None where nothing is.
        captured: The same update, replayed on a GPU; None where it cannot be.
        why_launched: Why it cannot be, on a GPU.
    """

    ali: ALI
    space: DataSpace
    average: WeightAverage | None
    optimizer: torch.optim.Optimizer
    precision: Precision
    step: Step
    augmentation: AugmentationProbability | None = None
    captured: CapturedUpdates | None = None
    why_launched: str = ""

    @property
    def launching(self) -> str:
        """How the GPU is given an update, in words; empty on a CPU."""
        if self.captured is not None:
            return self.captured.describe()
        return f"not replayed as a CUDA graph ({self.why_launched})" if self.why_launched else ""

    def update(self, batch: TrainBatch, weights: LossWeights) -> StepResult:
        """Update from this rank's part of a global batch; the result is valid until the next update. Collective."""
        return self.step(batch, weights) if self.captured is None else self.captured(batch, weights)

    def set_learning_rates(self, *, lr_g: float, lr_d: float) -> None:
        """Set the rates of the next update."""
        for group, rate in zip(self.optimizer.param_groups, (lr_g, lr_d), strict=True):
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate

    def set_epsilon(self, epsilon: float) -> None:
        """Set Adam's epsilon of the next update."""
        for group in self.optimizer.param_groups:
            group["eps"] = epsilon

    def rates(self) -> dict[str, float]:
        """What the last update was done with, by the names it has in metrics.jsonl; waits for the device."""
        lr_g, lr_d = (float(group["lr"]) for group in self.optimizer.param_groups)
        rates = {"lr_g": lr_g, "lr_d": lr_d}
        return rates if self.augmentation is None else rates | {"augment_probability": float(self.augmentation.value)}

    def update_average(self, decay: float) -> None:
        """Move the average towards the networks, where there is one. Local: replicas agree, so averages do."""
        if self.average is not None:
            self.average.update(decay)

    def adapt_augmentation(self, signs: Tensor, images: int, step: int) -> None:
        """Count the signs of D's logits in update `step`; see `AugmentationProbability`. Collective."""
        if self.augmentation is not None:
            self.augmentation.count_signs(signs, images, step)

    def gather_counts(self) -> None:
        """Bring to rank 0 what only all ranks together know, before it saves `tensors`. Collective."""
        if self.augmentation is not None:
            self.augmentation.gather_counts()

    def inference_networks(self) -> dict[str, nn.Module]:
        """The networks to draw and evaluate with, by name: averages where there are any."""
        return dict(self.ali.named_children()) | dict(self.average.named_children() if self.average else ())

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """Everything a checkpoint holds as tensors, by file; still on the device."""
        files = {
            "model": dict(self.ali.state_dict()),
            "optimizer": optimizer_tensors(self.optimizer, dict(self.ali.named_parameters())),
        }
        if self.average is not None:
            files["ema"] = dict(self.average.state_dict())
        if self.augmentation is not None and (adapted := self.augmentation.tensors()):
            files["augmentation"] = adapted
        return files

    def check_tensors(self, tensors: Mapping[str, Mapping[str, Tensor]], step: int) -> None:
        """Refuse tensors that `restore` could not take over.

        Args:
            tensors: Those of a checkpoint, by file, then by name.
            step: Updates done at the time: before the first one Adam has no state.

        Raises:
            UnusableCheckpoint: A tensor is missing, has another shape, or is not finite; the message names it.
        """
        expected: dict[str, Mapping[str, Tensor]] = {"model": self.ali.state_dict()}
        if self.average is not None and "ema" in tensors:
            expected["ema"] = self.average.state_dict()
        for file, wanted in expected.items():
            check_shapes(file, wanted, tensors.get(file, {}))
        updated = {id(p) for p in (*self.step.theta_g, *self.step.theta_d)}
        parameters = {name: p for name, p in self.ali.named_parameters() if id(p) in updated}
        if step > 0:
            check_optimizer(parameters, tensors.get("optimizer", {}))
        if (name := find_non_finite(tensors)) is not None:
            raise UnusableCheckpoint(f"{name} is not finite")

    def restore(self, tensors: Mapping[str, Mapping[str, Tensor]], precision: dict[str, float]) -> None:
        """Take over what a checkpoint holds: the inverse of `tensors`, and the state of the precision."""
        self.ali.load_state_dict(dict(tensors["model"]))
        load_optimizer(self.optimizer, dict(self.ali.named_parameters()), tensors["optimizer"])
        if self.average is not None:
            # A run that keeps an average only from now on starts it at the networks.
            self.average.load_state_dict(dict(tensors.get("ema") or self.average.weights_of(self.ali)))
        if self.augmentation is not None:
            self.augmentation.restore(tensors.get("augmentation", {}))
        self.precision.load_state_dict(precision)
        if self.captured is not None:
            self.captured.forget()


def build_train_state(config: Config, index: Index, device: torch.device, world: World) -> TrainState:
    """Networks, optimizer and update for one rank; identical on every rank. Collective.

    Args:
        config: The config of the run.
        index: The index of the training split.
        device: Where this rank computes.
        world: The ranks.

    Raises:
        InputError: Model, objective, precision and data do not go together.
    """
    precision = Precision(config.scale.precision, device)
    ali, space = build_networks(config, index.spec, config.run.seed)
    if config.model.output_bias_from_data:
        start_output_bias_at_mean(ali, space, index.pixel_mean)
    if config.model.decoder_from is not None:
        load_frozen_decoder(ali, config)
    situation = Situation(
        objective=config.objective,
        couples_samples=find_architecture(config, index.spec).couples_samples,
        precision=precision.name,
    )
    rule = choose_update_rule(config.objective.update, situation)
    _check_micro_batch(config, ali, rule)
    ali.fp32_discriminator = situation.has_penalty and precision.name == "fp16"
    ali.to(device)
    if device.type == "cuda":
        _lay_out_channels_last(ali)
    average = None
    if config.optim.ema_half_life:
        average = WeightAverage(ali, discriminator=config.objective.supervised > 0)
    if config.scale.batch_norm == "global":
        share_batch_norm(ali, world)
    augmentation = None
    if config.objective.augment != "none":
        # Before the networks are wrapped, which takes it over.
        ali.augmentation = Augmentation(config.objective.augmentations(), space.pixel_range, space.model_shape[-1])
        augmentation = _make_probability(config, device, world)
    optimizer = make_optimizer(ali, config.optim, device)
    networks = _compile_networks(ali, rule, situation) if config.scale.compile else ali
    wrapped = wrap_for_ddp(networks, rule, device, world)
    step = Step(
        rule,
        config.objective.loss,
        ali,
        wrapped,
        optimizer,
        precision,
        global_batch_size=config.data.global_batch_size,
        world_size=world.size,
        packing=config.objective.packing,
        masks=_make_masks(ali, config, device, world),
        augmentation=_make_augmentation_draws(ali, augmentation, config, world),
        micro_batch=config.scale.micro_batch,
        pause_reduction=partial(pause_reduction, wrapped),
    )
    captured, why_launched = None, ""
    if device.type == "cuda":
        why_launched = why_not_captured(config, rule, precision.name, world) or ""
        captured = None if why_launched else CapturedUpdates(step, device)
    return TrainState(
        ali=ali,
        space=space,
        average=average,
        optimizer=optimizer,
        precision=precision,
        step=step,
        augmentation=augmentation,
        captured=captured,
        why_launched=why_launched,
    )


def _check_micro_batch(config: Config, ali: ALI, rule: UpdateRule) -> None:
    """Refuse parts of a batch whose gradients do not add up to the whole's.

    Raises:
        InputError: They do not.
    """
    size, packing = config.scale.micro_batch, config.objective.packing
    if size is None:
        return
    if size % packing:
        raise InputError(
            f"scale.micro_batch is {size}, but D judges packs of {packing} pairs (objective.packing): use a multiple."
        )
    if rule.forward_passes > 1:
        raise InputError(
            f"scale.micro_batch is {size}, but the update rule {rule.name!r} moves D before the generators' gradient "
            "is there: use objective.update 'auto', or no micro batch."
        )
    if config.objective.balance:
        raise InputError(
            f"scale.micro_batch is {size}, but objective.balance is {config.objective.balance:g}, a term of the whole "
            "batch's classes: set objective.balance to 0, or use no micro batch."
        )
    if config.scale.batch_norm == "global" and any(isinstance(module, BatchNorm) for module in ali.modules()):
        raise InputError(
            f"scale.micro_batch is {size}, but architecture {config.model.architecture!r} has batch norm over the "
            "whole batch: set scale.batch_norm to 'local' to have it over each part, or use no micro batch."
        )


def _lay_out_channels_last(ali: ALI) -> None:
    """Keep the weights of convolutions as cuDNN's kernels want them, which would else transpose at every call."""
    for module in ali.modules():
        is_convolution = isinstance(module, nn.Conv2d | nn.ConvTranspose2d)
        if is_convolution and not isinstance(module, FullConv | FullConvTranspose):  # those are matrix products
            module.to(memory_format=torch.channels_last)


def _make_masks(ali: ALI, config: Config, device: torch.device, world: World) -> DropoutMasks | None:
    """The masks of D's dropout layers; None where it has none, or does not play."""
    layers = [layer for layer in ali.discriminator.modules() if isinstance(layer, Dropout)]
    if not layers or config.objective.game == "inverse":
        return None
    rows, packing = rows_of_rank(config, world), config.objective.packing
    return DropoutMasks(
        layers,
        seed=config.run.seed,
        rows=slice(rows.start // packing, rows.stop // packing),
        global_rows=config.data.global_batch_size // packing,
        parts=_count_parts(config),
        packing=packing,
        device=device,
    )


def _count_parts(config: Config) -> int:
    """What D is given one row of for each sample: encoder pairs, decoder pairs, and labelled data if it has classes."""
    return 3 if config.objective.supervised else 2


def _make_probability(config: Config, device: torch.device, world: World) -> AugmentationProbability:
    objective = config.objective
    return AugmentationProbability(
        objective.augment_probability,
        objective.augment_target,
        global_batch_size=config.data.global_batch_size,
        run_images=config.run.images,
        device=device,
        world=world,
    )


def _make_augmentation_draws(
    ali: ALI, probability: AugmentationProbability | None, config: Config, world: World
) -> AugmentationDraws | None:
    if ali.augmentation is None or probability is None:
        return None
    return AugmentationDraws(
        ali.augmentation,
        probability.value,
        seed=config.run.seed,
        rows=rows_of_rank(config, world),
        global_batch_size=config.data.global_batch_size,
        parts=_count_parts(config),
    )


def _compile_networks(ali: ALI, rule: UpdateRule, situation: Situation) -> ALI:
    """The same parameters with the networks compiled; the gate between them stays eager.

    So does D where its graph is used or differentiated twice: compiled code cannot be.
    """
    keep_out_of_compiled_graphs()
    keeps_d_eager = rule.reuses_discriminator_graph or situation.has_penalty
    discriminator = ali.discriminator if keeps_d_eager else cast("nn.Module", torch.compile(ali.discriminator))
    encoder, decoder = (cast("nn.Module", torch.compile(part)) for part in (ali.encoder, ali.decoder))
    return ali.with_networks(encoder, decoder, discriminator, ali.embedding)
