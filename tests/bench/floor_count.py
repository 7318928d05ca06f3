"""The arithmetic and the memory traffic of one update, counted on tensors that have no numbers.

Arithmetic is that of matrix products and convolutions, a multiplication with its addition as two operations.

Traffic is what no implementation that keeps what a backward pass needs can do without:

    4 bytes * (10 P + 2 A) + 2 S + X

P: parameters. Each is read by the forward and by the backward pass (2), and read and written by Adam (2), as are its
two moments (4); its gradient is written once and read once (2). A: parameters that are averaged; the average is read
and written (2). S: bytes of activations, each written once in the forward pass and read once in the backward pass, so
that it counts twice; an activation is what is saved for a backward pass. X: bytes of the batch, read once. Nothing else
counts: a kernel that makes an activation would hand it on to the next one, and weights stay in a cache between them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from ali_dist.config import Config
from ali_dist.model.ali import ALI
from ali_dist.model.build import build_networks, find_architecture
from ali_dist.model.data_space import DataSpace
from ali_dist.model.data_spec import DataSpec
from ali_dist.training.memory import SavedBytes
from ali_dist.training.precision import Precision
from ali_dist.training.step import LossWeights, Step, TrainBatch, loss_weights_at
from ali_dist.training.update_rules import Situation, UpdateRule, choose_update_rule
from tests.bench.floor_cases import FloorCase, configure, draw_batch, index_of
from tests.bench.operations import OperationCounter
from tests.bench.reference_step import UsualStep

META = torch.device("meta")  # whose tensors have shapes and no numbers
_NUMBER = 4  # bytes, fp32
_PARAMETER_MOVES, _AVERAGE_MOVES = 10, 2


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateCount:
    """What one update does.

    Attributes:
        rule: Its name in `objective.update`.
        batch: Images of an update.
        parameters: Of all networks.
        forward: Operations of the forward passes, without a penalty.
        backward: Operations of the backward passes, without a penalty.
        penalty: Operations more of an update with a penalty; 0 where there is none.
        usual: Operations of the same update in the usual style, with its penalty.
        saved_bytes: Of activations that are saved for backward passes, in fp32.
        bytes_moved: See the formula above.
    """

    rule: str
    batch: int
    parameters: int
    forward: int
    backward: int
    penalty: int
    usual: int
    saved_bytes: int
    bytes_moved: int

    @property
    def total(self) -> int:
        """Operations of the update."""
        return self.forward + self.backward + self.penalty

    @property
    def intensity(self) -> float:
        """Operations for each byte that is moved."""
        return self.total / self.bytes_moved

    @property
    def allowed_speed_up(self) -> float:
        """How much faster than the usual style the update is, where both reach the same share of the same roof."""
        return self.usual / self.total


def count_update(case: FloorCase, *, batch: int | None = None, width: float | None = None) -> UpdateCount:
    """Count one update of our rule, and one in the usual style.

    Args:
        case: Whose.
        batch: Images of an update; None: as in the preset.
        width: Factor on the channels of hidden layers; None: as in the preset.
    """
    config, spec = configure(case, batch=batch, width=width), index_of(case).spec
    with_penalty = loss_weights_at(config.objective, 0, 1.0)
    without = loss_weights_at(config.objective, 0, 0.0)
    rule = choose_rule(config, spec)
    plain, _ = count_step(config, spec, rule, without)
    due, saved_bytes = count_step(config, spec, rule, with_penalty)
    usual = count_usual(config, spec, with_penalty)
    ali, space = _build_without_numbers(config, spec)
    parameters = sum(p.numel() for p in ali.parameters())
    averaged = sum(p.numel() for p in ali.generator_parameters()) if config.optim.ema_half_life else 0
    numbers = _PARAMETER_MOVES * parameters + _AVERAGE_MOVES * averaged
    inputs = draw_batch(config, ali, space, META)
    read = sum(part.nbytes for part in inputs if isinstance(part, torch.Tensor))
    return UpdateCount(
        rule=rule.name,
        batch=config.data.global_batch_size,
        parameters=parameters,
        forward=plain.forward,
        backward=plain.backward,
        penalty=due.total - plain.total,
        usual=usual.total,
        saved_bytes=saved_bytes,
        bytes_moved=_NUMBER * numbers + 2 * saved_bytes + read,
    )


def choose_rule(config: Config, spec: DataSpec) -> UpdateRule:
    """The rule that a run takes."""
    couples = find_architecture(config, spec).couples_samples
    situation = Situation(objective=config.objective, couples_samples=couples, precision="fp32")
    return choose_update_rule(config.objective.update, situation)


def count_step(config: Config, spec: DataSpec, rule: UpdateRule, weights: LossWeights) -> tuple[OperationCounter, int]:
    """The operations of one of our updates, and the bytes that it saves for its backward passes."""

    def make(ali: ALI) -> Callable[[TrainBatch, LossWeights], object]:
        optimizer = torch.optim.SGD([p for p in ali.parameters() if p.requires_grad], lr=0.0)
        size = config.data.global_batch_size
        return Step(rule, config.objective.loss, ali, ali, optimizer, Precision("fp32", META), global_batch_size=size)

    return _count(config, spec, make, weights)


def count_usual(config: Config, spec: DataSpec, weights: LossWeights) -> OperationCounter:
    """The operations of the usual style's update."""

    def make(ali: ALI) -> Callable[[TrainBatch, LossWeights], object]:
        return UsualStep(ali, config.objective.loss, config.optim, Precision("fp32", META))

    return _count(config, spec, make, weights)[0]


def _build_without_numbers(config: Config, spec: DataSpec) -> tuple[ALI, DataSpace]:
    with META:
        return build_networks(config, spec, seed=0)


def _count(
    config: Config,
    spec: DataSpec,
    make: Callable[[ALI], Callable[[TrainBatch, LossWeights], object]],
    weights: LossWeights,
) -> tuple[OperationCounter, int]:
    ali, space = _build_without_numbers(config, spec)
    update = make(ali)
    batch = draw_batch(config, ali, space, META)
    saved = SavedBytes(list(ali.parameters()))
    hooks = torch.autograd.graph.saved_tensors_hooks(saved.count, lambda tensor: tensor)
    with OperationCounter() as counter, hooks:
        update(batch, weights)
    return counter, saved.total
